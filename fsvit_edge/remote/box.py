"""`Box`: tensors of a request in, tensors of its answer out, by one model and the banks of a folder."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge import __version__
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.bank_file import check_bank_header
from fsvit_edge.fewshot.class_choice import choose_classes
from fsvit_edge.fewshot.first_look import FirstLook
from fsvit_edge.fewshot.index_mask import index_png
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.remote import wire
from fsvit_edge.remote.wire import Details, Facts, Options, Tensors
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, bundle_sha256
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.json_records import read_json_object, record_from_json
from fsvit_edge.runtime.limits import usable_cores
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.pictures import MAX_PICTURE_PX, decode_image
from fsvit_edge.runtime.preprocess import check_rgb
from fsvit_edge.runtime.storage import open_regular, version_of

SETTINGS_NAME = "fsvit-edge.json"
FORMAT_VERSION = 1
BANK_SUFFIX = ".safetensors"

_MOST_CHOICES = 32
"""Choices of classes and levels that are kept for each bank: a labeling asks for one, again and again."""
_PART_BYTES = 2**20
_MAX_SIDE_PX = 32_767
"""Of a frame, as of OpenCV's pictures: one of 1 x 40,000,000 pixels held up all cameras for more than a minute."""


@dataclass(frozen=True)
class Settings:
    """What a box answers by: `fsvit-edge.json` in the model's folder.

    Attributes:
        format_version: Version of this format.
        bundle: Folder of the bundle; null: the bundled model.
        banks: Folder of the banks, each NAME.safetensors.
        engine: As `run --engine`.
        precision: As `run --precision`.
        threads: CPU threads of each instance; null: its share of the cores.
        instances: How many instances share a processor or a GPU.
    """

    format_version: int
    bundle: str | None
    banks: str
    engine: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    instances: int = 1

    def to_json(self) -> bytes:
        """Return what `load` reads."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def load(cls, folder: Path) -> "Settings":
        """Read them from a model's folder; an ArtifactError if that cannot be done."""
        file = folder / SETTINGS_NAME
        try:
            values = read_json_object(file, FORMAT_VERSION, "make the folder again with: fsvit-edge triton")
        except FileNotFoundError as error:
            raise ArtifactError(f"{file} is missing; make the folder again with: fsvit-edge triton.") from error
        return record_from_json(cls, file, values)


@dataclass(frozen=True)
class _Loaded:
    """A bank as it was last read."""

    version: tuple[int, ...] | None  # of the file that was looked at last
    sha256: str
    bank: SupportBank
    choices: "OrderedDict[tuple[tuple[str, ...], float | None], tuple[SupportBank, npt.NDArray[np.object_]]]"
    problem: str = ""  # why the file of now is not used


class Box:
    """A model that answers requests one after the other, each by the bank that it names; close it.

    It remembers nothing of a camera, so it may end and start again between two frames. A bank is read again when its
    file has changed; one that cannot be read, or is another encoder's, leaves the one before in its place.

    Args:
        settings: What to answer by.
        say: Takes a line for the log.

    Raises:
        ArtifactError: The bundle is missing, altered or damaged, or no engine that fits was built.
        EnvironmentLacksError: The engine is not installed here, or finds no device.
        InputError: The engine or precision is unknown.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        self._folder, self._say = Path(settings.banks), say
        bundle = DEFAULT_BUNDLE if settings.bundle is None else Path(settings.bundle)
        threads = settings.threads
        if threads is None and settings.instances > 1:
            threads = max(1, usable_cores() // settings.instances)
        first = min(self._folder.glob(f"*{BANK_SUFFIX}"), default=None)  # "auto" prefers the precision of a bank
        self._model = FewShotModel.load(bundle, settings.engine, settings.precision, threads, first, say)
        self._bundle_sha256 = bundle_sha256(bundle)
        self._banks: dict[str, _Loaded] = {}
        say(f"{self._model.manifest.name}: {self._model.choice.description}, banks in {self._folder}")
        for note in self._model.choice.notes:
            say(f"Note: {note}")

    def answer(self, tensors: Tensors, wanted: Collection[str]) -> dict[str, npt.NDArray[np.generic]]:
        """Answer one request.

        Args:
            tensors: By `wire.INPUTS`.
            wanted: Names of `wire.OUTPUTS`; without a picture, only the facts are answered.

        Raises:
            InputError: The picture or an option cannot be used, or there is no such bank or class.
            ArtifactError: The bank is damaged, or was made by another encoder or in another precision.
            EnvironmentLacksError: What decodes the picture is not installed.
        """
        options = wire.from_json(Options, tensors, wire.OPTIONS) if wire.OPTIONS in tensors else Options()
        if wire.BANK not in tensors:
            raise InputError(f"The tensor {wire.BANK!r} is missing: name one of the banks.")
        loaded = self._loaded(wire.text_of(tensors, wire.BANK))
        bank, facts = self._chosen(loaded, options)
        image = _image(tensors)
        if image is None:
            return {wire.FACTS: facts}
        self._model.bank = bank
        self._model.set_level_for_all(options.level)
        self._model.exclusive = options.exclusive
        if options.first_look != (None if self._model.first_look is None else self._model.first_look.most):
            self._model.first_look = None if options.first_look is None else FirstLook(options.first_look)
        if options.size_hw is not None:
            _check_size("size_hw", options.size_hw)
        steady = None
        if options.steady is not None:
            steady = SteadyAnswers()
            steady.take(options.steady)
        prediction = self._model.predict(image, over_time=steady, size_hw=options.size_hw)
        details = Details(prediction.latency_ms, None if steady is None else steady.state, loaded.problem)
        answered = _tensors_of(prediction, wanted)
        return {**answered, wire.FACTS: facts, wire.DETAILS: wire.to_json(details)}

    def close(self) -> None:
        """Free the engines."""
        self._model.close()

    def _loaded(self, name: str) -> _Loaded:
        """Return a bank, read again if its file has changed."""
        known = self._banks.get(name)
        # So no name leads out of the folder, and none is another one of a bank that is read already, as "./shelf" is.
        if known is None and name not in (names := [path.stem for path in self._files()]):
            raise InputError(f"There is no bank {name!r:.90} on the box; it has: {', '.join(names) or 'none'}.")
        path = self._folder / f"{name}{BANK_SUFFIX}"
        version = version_of(path)
        if known is not None and known.version == version:
            return known
        try:
            loaded = self._read(path, version, known)
        except FsvitEdgeError as error:
            if known is None:
                raise
            loaded = replace(known, version=version, problem=f"The former bank goes on: {error}")
            self._say(loaded.problem)
        self._banks[name] = loaded
        return loaded

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"*{BANK_SUFFIX}") if path.name[0] != ".")

    def _read(self, path: Path, version: tuple[int, ...] | None, known: _Loaded | None) -> _Loaded:
        try:
            with open_regular(path) as file:  # a pipe would hold up all cameras
                check_bank_header(path)  # and so would a large file that is no bank
                total = hashlib.sha256()
                for part in iter(lambda: file.read(_PART_BYTES), b""):
                    total.update(part)
        except OSError as error:
            raise ArtifactError(f"Bank {path} cannot be read: {error.strerror}.") from error
        digest = total.hexdigest()
        if known is not None and known.sha256 == digest:
            return replace(known, version=version, problem="")
        self._model.load_bank(path)
        self._say(f"Read the bank {path}, {digest[:12]}...: {', '.join(self._model.classes)}")
        return _Loaded(version, digest, self._model.bank, OrderedDict())

    def _chosen(self, loaded: _Loaded, options: Options) -> tuple[SupportBank, npt.NDArray[np.object_]]:
        """Return the classes and levels that a request asks for, and the facts to answer with."""
        key = (options.classes, options.min_score)
        if key in loaded.choices:
            loaded.choices.move_to_end(key)
            return loaded.choices[key]
        self._model.bank = loaded.bank.copy()
        choose_classes(self._model, "on the box", *key)
        bank, choice = self._model.bank, self._model.choice
        facts = Facts(
            wire.WIRE_VERSION,
            __version__,
            self._model.manifest.name,
            self._model.manifest.image_size,
            choice.engine,
            choice.precision,
            self._model.outlines,
            self._bundle_sha256,
            loaded.sha256,
            bank.classes,
            tuple(map(float, bank.levels)),
            len(bank.scene),
            bank.zones,
        )
        loaded.choices[key] = bank, wire.to_json(facts)
        if len(loaded.choices) > _MOST_CHOICES:
            loaded.choices.popitem(last=False)
        return loaded.choices[key]


def _image(tensors: Tensors) -> Image | None:
    if wire.FRAME in tensors and wire.JPEG in tensors:
        raise InputError(f"Give {wire.FRAME!r} or {wire.JPEG!r}, not both.")
    if wire.JPEG in tensors:
        return decode_image(wire.bytes_of(tensors, wire.JPEG), "The picture")
    frame = tensors.get(wire.FRAME)
    if frame is not None:
        check_rgb(frame, "The frame")
        _check_size("The size of the frame", frame.shape[:2])
    return frame


def _check_size(what: str, size_hw: Sequence[int]) -> None:
    if min(size_hw) < 1 or max(size_hw) > _MAX_SIDE_PX or size_hw[0] * size_hw[1] > MAX_PICTURE_PX:
        raise InputError(
            f"{what} must be above 0, at most {_MAX_SIDE_PX:,} pixels a side, and at most {MAX_PICTURE_PX // 10**6} "
            f"megapixels, got {tuple(size_hw)!r:.80}."
        )


def _tensors_of(prediction: Prediction, wanted: Collection[str]) -> dict[str, npt.NDArray[np.generic]]:
    raw_scores, contested = prediction.raw_scores, prediction.contested
    assert raw_scores is not None
    assert contested is not None
    answered: dict[str, npt.NDArray[np.generic]] = {
        wire.NAMES: wire.text_tensor(*(name.encode() for name in prediction.classes)),
        wire.SCORES: prediction.scores,
        wire.RAW_SCORES: raw_scores,
        wire.LEVELS: prediction.levels,
        wire.PRESENT: prediction.present,
        wire.CONTESTED: contested,
    }
    if wire.LABEL_PNG in wanted:  # a millisecond or two
        answered[wire.LABEL_PNG] = wire.text_tensor(index_png(prediction.label_map))
    return answered
