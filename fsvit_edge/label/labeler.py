"""`Labeler`: a picture's bytes in, what is found in it out; the same on one machine and on many."""

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge import __version__
from fsvit_edge.fewshot.class_choice import choose_classes
from fsvit_edge.fewshot.full_size import enlarged, scale_of
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.label.records import About, LabeledClass, LabeledPicture, Part
from fsvit_edge.remote.client import RemoteModel, bank_on_box, is_box, refuse_what_a_box_decides
from fsvit_edge.remote.wire import Facts, Options
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, bundle_sha256
from fsvit_edge.runtime.engines.choose import CPU_ENGINES
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.limits import free_memory, usable_cores
from fsvit_edge.runtime.machine import resident_memory_mb
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.pictures import decode_with_size
from fsvit_edge.runtime.storage import version_of

_MOST_AT_ONCE = 4
"""Labelers on one CPU: each needs the memory of a model."""
_SHARE_OF_FREE = 0.8
"""Of the memory that is free beside the first of them, for the others; pictures need the rest."""


@dataclass(frozen=True)
class LabelerOptions:
    """What a labeler looks for, and by which model.

    Attributes:
        bank: File with the enrolled classes; with a box, the name of one of its banks.
        bundle: Folder of the bundle; None: the bundled model.
        engine: Engine that runs the model, as in `FewShotModel.load`; or the address of a box, as in `RemoteModel`.
        precision: Precision of the engine, as in `FewShotModel.load`.
        threads: Threads of the engine; None: every core.
        classes: The classes of the bank to look for, as if it had no others, each a name or several with commas
            between; empty: all.
        min_score: A level below which no class's own may be, in (0, 1); None leaves them as they are.
    """

    bank: Path
    bundle: Path | None = None
    engine: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    classes: tuple[str, ...] = ()
    min_score: float | None = None


class Labeler:
    """A model with the classes of a bank; close it or use it as a context manager.

    Args:
        options: What to look for, and by which model; they can be pickled.
        say: Gets notes on the choice of an engine.

    Attributes:
        about: The facts by which its answers can be reproduced.

    Raises:
        InputError: A class is not in the bank, the bank has none, or a score is out of range.
        ArtifactError: The bundle or bank is missing, damaged or does not fit.
        EnvironmentLacksError: The engine is not installed here, or finds no device.
    """

    def __init__(self, options: LabelerOptions, say: Say = lambda _: None) -> None:
        self._model: FewShotModel | RemoteModel
        if is_box(options.engine):
            self._model = _open_box(options, say)
            self.about = _about(self._model.facts)
            return
        self._before_mb = resident_memory_mb([os.getpid()])
        self._bundle, self._threads = options.bundle or DEFAULT_BUNDLE, options.threads
        chosen = (options.engine, options.precision, options.threads)
        self._model = model = FewShotModel.load(self._bundle, *chosen, options.bank, say)
        try:
            for note in model.choice.notes:
                say(f"Note: {note}")
            bank_sha256 = _load_bank(model, options.bank)
            choose_classes(model, str(options.bank), options.classes, options.min_score)
            choice, bank = model.choice, model.bank
            self.about = About(
                fsvit_edge=__version__,
                bundle_sha256=bundle_sha256(self._bundle),
                bank_sha256=bank_sha256,
                classes=bank.classes,
                levels=tuple(map(float, bank.levels)),
                engine=choice.engine,
                precision=choice.precision,
                outlines=model.outlines,
            )
        except BaseException:
            self.close()
            raise

    def __call__(self, data: bytes, path: str) -> LabeledPicture:
        """Label the bytes of a picture file; `path` names it in the label files and in errors.

        Raises:
            InputError: It is damaged, too large, or of another format.
            EnvironmentLacksError: What decodes it is not installed.
        """
        image, size_hw = decode_with_size(data, path)
        return label_picture(path, self.predict(image), size_hw)

    def predict(self, rgb: Image) -> Prediction:
        """Return what the model finds in an (H, W, 3) uint8 RGB picture; for `label_picture`, in any thread.

        A box that is away is waited for, as long as it takes.

        Raises:
            ArtifactError: The box answers by another bank or model than at the start.
        """
        while (found := self._model.predict(rgb)) is None:
            pass
        if isinstance(self._model, RemoteModel) and _about(self._model.facts) != self.about:
            raise ArtifactError(
                f"The bank or the model of {self._model.address} was replaced, and labels of two would be mixed; label "
                "into another folder, or put the former one back."
            )
        return found

    def needed_mb(self) -> float:
        """Return the memory that a model took here up to its first answer, in 10^6 bytes: about that of a twin."""
        self.predict(np.zeros((64, 64, 3), np.uint8))
        return resident_memory_mb([os.getpid()]) - self._before_mb

    def twin(self) -> "Labeler":
        """Open the model of a bundle once more, for another thread, with the same classes, which are kept once."""
        assert isinstance(self._model, FewShotModel)
        twin = copy.copy(self)
        twin._model = FewShotModel.load(self._bundle, self.about.engine, self.about.precision, self._threads)
        twin._model.bank = self._model.bank.copy()
        return twin

    def close(self) -> None:
        """Free the engines; a second call does nothing."""
        self._model.close()

    def __enter__(self) -> "Labeler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def open_side_by_side(
    make: type[Labeler], options: LabelerOptions, say: Say = lambda _: None
) -> Iterator[Sequence[Labeler]]:
    """Open as many labelers of a class as label fastest at once, and as the memory takes; raises like `Labeler`.

    Where a CPU computes, models of one thread each need less of its time for a picture than one of all threads, which
    wait for each other: cst-nano labeled 62 pictures per second on two cores instead of 44.
    """
    with ExitStack() as stack:
        if is_box(options.engine):
            yield [stack.enter_context(make(options, say))]
            return
        threads = options.threads or usable_cores()
        count = min(threads, _MOST_AT_ONCE)
        first = stack.enter_context(make(replace(options, threads=threads // count), say))
        if first.about.engine not in CPU_ENGINES:
            yield [first]
            return
        fitting = _number_that_fit(first, count, say)
        if fitting < count:
            first.close()
            chosen = replace(options, engine=first.about.engine, precision=first.about.precision)
            first = stack.enter_context(make(replace(chosen, threads=threads // fitting), lambda _: None))
        yield [first, *(stack.enter_context(first.twin()) for _ in range(fitting - 1))]


def _number_that_fit(first: Labeler, most: int, say: Say) -> int:
    """Return how many labelers like the first one, with it, the memory takes; at most so many."""
    if most == 1:
        return 1
    needed_mb = max(first.needed_mb(), 1.0)
    free = free_memory()  # of after its first answer
    if free is None:
        return most
    free_mb = free / 1e6
    number = 1 + min(most - 1, int(_SHARE_OF_FREE * free_mb / needed_mb))
    if number < most:
        models = "1 model labels" if number == 1 else f"{number} models label"
        say(f"Note: {models}, not {most}: each needs {needed_mb:.0f} MB, and {free_mb:.0f} MB are free.")
    return number


def label_picture(
    path: str, prediction: Prediction, size_hw: tuple[int, int], time_s: float | None = None
) -> LabeledPicture:
    """Describe what was found in a picture of a size, which may have been read smaller, or in a video's frame."""
    height, width = size_hw
    # A large JPEG is read at a half, a quarter or an eighth of its size, and the last pixel may stand for fewer.
    scale = scale_of(prediction.label_map.shape, size_hw)
    classes = []
    for one in prediction.results:
        parts = []
        for part, pixels in zip(prediction.instances(one.name), prediction.instance_pixels(one.name), strict=True):
            left, top = (scale * side for side in part.box_xyxy[:2])
            whole = enlarged(pixels, scale, (height - top, width - left))
            box = (left, top, left + whole.shape[1], top + whole.shape[0])
            parts.append(Part(int(np.count_nonzero(whole)), box, _counts_of_box(whole, left, top, size_hw)))
        classes.append(LabeledClass(one.name, one.score, one.level, one.is_present, tuple(parts)))
    return LabeledPicture(path, size_hw, time_s, tuple(classes))


def _counts_of_box(pixels: npt.NDArray[np.bool_], left: int, top: int, size_hw: tuple[int, int]) -> tuple[int, ...]:
    """`run_lengths` of pixels at (left, top) of a picture that is off elsewhere: of 2 megapixels, in a tenth of it."""
    height, width = size_hw
    columns = np.zeros((pixels.shape[1], pixels.shape[0] + 2), np.int8)
    columns[:, 1:-1] = pixels.T
    changes = np.diff(columns, axis=1)
    first = (left + np.arange(len(columns))) * height + top  # of each column, in the order of the run lengths
    starts, ends = (first[column] + row for column, row in (np.nonzero(changes == 1), np.nonzero(changes == -1)))
    goes_on = ends[:-1] == starts[1:]  # from the bottom of a column to the top of the next
    starts, ends = starts[np.append(True, ~goes_on)], ends[np.append(~goes_on, True)]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(np.concatenate(([0], edges, [height * width]))).tolist()
    return tuple(counts if counts[-1] else counts[:-1])


def _open_box(options: LabelerOptions, say: Say) -> RemoteModel:
    refuse_what_a_box_decides(options.bundle, options.precision, options.threads)
    wishes = Options(classes=tuple(options.classes), min_score=options.min_score)
    return RemoteModel(options.engine, bank_on_box(options.bank), say, wishes)


def _about(facts: Facts) -> About:
    return About(
        facts.fsvit_edge,
        facts.bundle_sha256,
        facts.bank_sha256,
        facts.classes,
        facts.levels,
        facts.engine,
        facts.precision,
        facts.outlines,
    )


def _load_bank(model: FewShotModel, file: Path) -> str:
    """Give a model the classes of a bank, and return the sum of that bank's file."""
    before = version_of(file)
    model.load_bank(file)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(f"Bank {file} cannot be read: {error.strerror}.") from error
    if version_of(file) != before:  # the sum may be of another bank than the labels
        raise ArtifactError(f"Bank {file} was replaced while it was read; give the same command again.")
    return digest
