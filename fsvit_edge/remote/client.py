"""The device's side of a box: `RemoteModel` takes the place of a model that answers here."""

import re
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from fsvit_edge.fewshot.names import escaped
from fsvit_edge.fewshot.prediction import STAGES, Prediction, StageClock
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.remote import wire
from fsvit_edge.remote.answer_checks import check_details, check_facts, check_tensors, label_map_of
from fsvit_edge.remote.status import BoxStatus
from fsvit_edge.remote.wire import Details, Facts, Options
from fsvit_edge.runtime.engines.choose import EngineChoice
from fsvit_edge.runtime.errors import (
    ArtifactError,
    EnvironmentLacksError,
    FsvitEdgeError,
    InputError,
    package_error,
)
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.preprocess import check_rgb, resize_image

SCHEME = "triton://"
_PORT = 8001  # of gRPC, in Triton
_ANSWER_WITHIN_S = 60.0
"""TensorRT-RTX may compile at the first frame. A frame that takes longer is sent again."""
_FACTS_WITHIN_S = 20.0
_PAUSE_S = 0.5  # between two tries while it is lost
_PATIENCE_S, _RETRY_S = 3.0, 0.02
"""How long requests fail before the box counts as lost, and the pause between them until then: of two processes there,
one may be dead, and Triton 2.51 goes on to give it each second request."""
_SOUND_S = 60.0  # without a failure, after which a box is sound again
_EXPECTED = f"expected {SCHEME}HOST:PORT/MODEL, with the port of the server's gRPC"
_KINDS = {kind.__name__: kind for kind in (FsvitEdgeError, InputError, EnvironmentLacksError, ArtifactError)}
_TOLD = re.compile(rf"\b({'|'.join(_KINDS)}): (.+)", re.DOTALL)
_UNKNOWN = re.compile(r"unknown model\b.* is not found")
_SHOWN = 200
_MOST_TOLD = 1000  # characters of a sentence that the box itself says
_MOST_BYTES = 100_000_000  # of an answer: more than the largest label map has; the client's own limit is 2 GB
_ANSWER = tuple(wire.OUTPUTS)


def is_box(engine: str) -> bool:
    """Whether an engine is the address of a box."""
    return engine.lower().startswith(SCHEME)


def bank_on_box(bank: Path) -> str:
    """Return the name of a bank on a box from what --bank is given; an InputError if it is a path."""
    if bank.name != str(bank):
        raise InputError(
            f"With --engine {SCHEME}..., --bank is the name of a bank in the box's own folder, without a path; got "
            f"{bank}."
        )
    return bank.name.removesuffix(".safetensors")


def refuse_with_box(options: Mapping[str, bool], why: str) -> None:
    """Raise an InputError for the first option that was given and that a box cannot do."""
    for option, is_given in options.items():
        if is_given:
            raise InputError(f"{option} does not go with --engine {SCHEME}...: {why}; leave it out.")


def refuse_what_a_box_decides(bundle: Path | None, precision: str, threads: int | None) -> None:
    """Raise an InputError if one of the options is given that a box decides for all devices."""
    given = {"--bundle": bundle is not None, "--precision": precision != "auto", "--threads": threads is not None}
    refuse_with_box(given, "the box decides it for all devices")


class RemoteModel:
    """A model on a box, for one caller at a time; close it.

    A frame is sent as the encoder sees it, with its size, so that the answer is that of a model here, and a frame of
    any size is 200 kB to 500 kB. A box that goes away, or loses the bank, is told once and waited for.

    Args:
        address: triton://HOST:PORT/MODEL.
        bank: Name of a bank on the box.
        say: Takes a line when the box goes away, comes back, or keeps a former bank.
        options: How to answer.
        zones: Zones that replace those of the bank, unless there are none.

    Attributes:
        address: The same, safe to print.
        facts: By what the box answered last.
        box: Its state; any thread may read it.

    Raises:
        InputError: The address is none, or the box has no such model, bank or class.
        EnvironmentLacksError: tritonclient is not installed.
        ArtifactError: The bank is damaged or does not fit the box's model, or the box has another version.
        FsvitEdgeError: The box cannot be reached.
    """

    processing: int | None = None  # no answer is waited for longer than `_ANSWER_WITHIN_S`: this model cannot hang
    is_first_frame = False
    steps = 0

    def __init__(
        self,
        address: str,
        bank: str,
        say: Say = lambda _: None,
        options: Options = Options(),  # noqa: B008 - frozen
        zones: tuple[Zone, ...] = (),
    ) -> None:
        host, self._model_name = _parsed(address)
        self.address = f"{SCHEME}{host}/{self._model_name}"
        try:
            from tritonclient import grpc
            from tritonclient.utils import InferenceServerException
        except (ImportError, OSError) as error:
            install = 'pip install "fsvit-edge[triton]"'
            raise package_error(f"{self.address} needs tritonclient", "tritonclient", install, error) from error
        self._grpc, self._error = grpc, InferenceServerException
        self._client = grpc.InferenceServerClient(host, channel_args=[("grpc.max_receive_message_length", _MOST_BYTES)])
        self._bank, self._options, self._zones, self._say = bank, options, zones, say
        self._blas = ThreadpoolController().select(user_api="blas")
        self._facts_text = self._failure = ""
        self._failing_s: float | None = None  # since when all requests fail
        self._failed_s = 0.0
        try:
            self.facts = self._first_facts()
        except _AwayError as error:
            unknown = _UNKNOWN.search(str(error)) is not None
            models = self._models() if unknown else ""
            self.close()
            if unknown:
                raise InputError(
                    f"The box {self.address} has no model {self._model_name!r}; it has: {models or 'none'}."
                ) from error
            raise FsvitEdgeError(
                f"The box {self.address} does not answer: {error}; see whether it runs, and give the port of its gRPC "
                f"({_PORT} unless it was changed), not that of HTTP."
            ) from error
        except FsvitEdgeError:
            self.close()
            raise
        self.box = BoxStatus(self.address, time.time(), bank_sha256=self.facts.bank_sha256)

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.facts.model

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the box looked for last."""
        return self.facts.classes

    @property
    def scene_frames(self) -> int:
        """Pictures of the empty scene that the bank has."""
        return self.facts.scene_frames

    @property
    def choice(self) -> EngineChoice:
        """What computes."""
        facts = self.facts
        return EngineChoice("triton", facts.precision, f"{facts.engine} in {facts.precision.upper()} on {self.address}")

    def predict(self, rgb: Image, over_time: SteadyAnswers | None = None) -> Prediction | None:
        """Answer one frame like `FewShotModel.predict`; None if the box is away, which takes a moment or a minute.

        It is away as well while the bank there is gone, damaged or does not fit, or while it has another version: that
        may be put right there, and nobody may be here to start this again.

        Raises:
            InputError: The frame is not a picture, or the bank has lost a class that was asked for.
        """
        check_rgb(rgb, "The frame")
        clock = StageClock()
        with self._blas.limit(limits=1):  # as in `FewShotModel.predict`: with more threads, sums may be rounded apart
            image = resize_image(rgb, self.facts.image_size)
        clock.lap("preprocess")
        steady = None if over_time is None else over_time.state
        options = replace(self._options, size_hw=(rgb.shape[0], rgb.shape[1]), steady=steady)
        asked_s = time.monotonic()
        try:
            tensors, self.facts = self._ask_frame(image, options)
        except _AwayError as error:
            self._note_failure(str(error), asked_s)
            return None
        with self._understood():
            facts, details = self.facts, wire.from_json(Details, tensors, wire.DETAILS)
            check_tensors(tensors, facts)
            check_details(details, facts)
            label_map = label_map_of(tensors, facts, (rgb.shape[0], rgb.shape[1]))
        self._note_answer(escaped(details.problem)[:_MOST_TOLD])
        if over_time is not None and details.steady is not None:
            over_time.take(details.steady)
        clock.lap("network")
        return Prediction(
            facts.classes,
            tensors[wire.SCORES],
            tensors[wire.LEVELS],
            label_map,
            None,
            _laps(clock.laps_ms, details.latency_ms),
            tensors[wire.RAW_SCORES],
            None if over_time is None else tensors[wire.PRESENT],
            zones=self._zones or facts.zones,
            contested=tensors[wire.CONTESTED],
        )

    def run_requests(self) -> None:
        """Do nothing: nobody changes the classes from here."""

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._client.close()

    def _first_facts(self) -> Facts:
        due_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._facts_of(self._ask_facts(self._options))
            except _AwayError:
                if time.monotonic() >= due_s:
                    raise
            time.sleep(_RETRY_S)

    def _ask_frame(self, image: Image, options: Options) -> tuple[wire.Tensors, Facts]:
        """Return an answer and its facts; an _AwayError also if it is the bank or the version that is refused."""

        def ask() -> tuple[wire.Tensors, Facts]:
            tensors = self._ask({wire.FRAME: image}, options, _ANSWER, _ANSWER_WITHIN_S)
            return tensors, self._facts_of(tensors)

        try:
            return ask()
        except FsvitEdgeError as error:
            try:
                self._checked(self._ask_facts(Options()))
            except FsvitEdgeError:
                raise _AwayError(str(error).rstrip(".")) from error
        return ask()  # it is the frame, or what is asked of the bank, unless that was put right just now

    def _ask_facts(self, options: Options) -> wire.Tensors:
        return self._ask({}, options, (wire.FACTS,), _FACTS_WITHIN_S)

    def _models(self) -> str:
        """Return the names of the models that the server has ready."""
        try:
            listed = self._client.get_model_repository_index(as_json=True, client_timeout=_FACTS_WITHIN_S)
        except self._error:
            return ""
        return ", ".join(sorted({one["name"] for one in listed.get("models", ()) if one.get("state") == "READY"}))

    def _facts_of(self, tensors: wire.Tensors) -> Facts:
        text = wire.text_of(tensors, wire.FACTS)
        if text == self._facts_text:  # as in nearly all answers; those of 255 classes take a millisecond to read
            return self.facts
        facts = self._checked(tensors)
        self._facts_text = text
        return facts

    def _checked(self, tensors: wire.Tensors) -> Facts:
        """Return the facts of an answer; an ArtifactError if the box has another version."""
        with self._understood():
            facts = wire.from_json(Facts, tensors, wire.FACTS)
        if facts.wire != wire.WIRE_VERSION:
            raise ArtifactError(
                f"The box {self.address} has fsvit-edge {escaped(facts.fsvit_edge)[:_SHOWN]}, whose answers have "
                f"version {facts.wire!r:.20}, not {wire.WIRE_VERSION}; install the same version on both."
            )
        with self._understood():
            check_facts(facts)
        return facts

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Turn what is wrong with an answer into our error about the box."""
        try:
            yield
        except InputError as error:
            raise ArtifactError(
                f"The box {self.address} answers in a form that this fsvit-edge does not know "
                f"({escaped(str(error).rstrip('.'))[:_SHOWN]}); install the same version on both."
            ) from error

    def _ask(
        self, pictures: Mapping[str, Image], options: Options, wanted: tuple[str, ...], within_s: float
    ) -> dict[str, npt.NDArray[Any]]:
        """Send a request; an _AwayError if nobody answers, otherwise what the box itself raised."""
        tensors = {
            **pictures,
            wire.BANK: wire.text_tensor(self._bank.encode()),
            wire.OPTIONS: wire.to_json(options),
        }
        inputs = []
        for name, array in tensors.items():
            inputs.append(self._grpc.InferInput(name, list(array.shape), "UINT8" if name == wire.FRAME else "BYTES"))
            inputs[-1].set_data_from_numpy(array)
        outputs = [self._grpc.InferRequestedOutput(name) for name in wanted]
        try:
            answer = self._client.infer(self._model_name, inputs, outputs=outputs, client_timeout=within_s)
        except self._error as error:
            text = str(error.message())
            told = _TOLD.search(text)
            if told is None:
                reason = escaped(" ".join(text.split())).rstrip(".")[:_SHOWN]
                raise _AwayError(reason or "no reason is given") from error
            raise _KINDS[told[1]](escaped(told[2])[:_MOST_TOLD]) from error
        with self._understood():
            return {name: _tensor_of(answer, name) for name in wanted}

    def _note_failure(self, why: str, asked_s: float) -> None:
        """Say once that the box is away, whatever the reasons of later tries are, and let it rest between them."""
        self._failure = why
        if self._failing_s is None:
            self._failing_s = asked_s
        if self.box.state == "lost":
            self.box = replace(self.box, trouble=why)
            time.sleep(_PAUSE_S)
        elif time.monotonic() - self._failing_s < _PATIENCE_S:
            time.sleep(_RETRY_S)
        else:
            self.box = replace(self.box, state="lost", since_s=time.time(), trouble=why)
            self._say(f"The box {self.address} does not answer, and is waited for: {why}.")

    def _note_answer(self, bank_trouble: str) -> None:
        """Say what an answer has changed: the box is back, answers only some requests, or has a bank in trouble."""
        before, now_s = self.box, time.monotonic()
        box = replace(before, bank_sha256=self.facts.bank_sha256, bank_trouble=bank_trouble)
        if before.state == "lost":
            box = replace(box, state="live", since_s=time.time(), trouble="")
            told = f"The box {self.address} answers again."
        elif self._failing_s is not None:
            box = replace(box, trouble=self._failure)
            self._failed_s = now_s
            told = f"The box {self.address} answers only some requests, so frames come more slowly: {self._failure}."
        elif before.trouble and now_s - self._failed_s > _SOUND_S:
            box = replace(box, trouble="")
            told = f"The box {self.address} answers every request again."
        else:
            told = ""
        self.box, self._failing_s = box, None
        if told and box.condition[:2] != before.condition[:2]:
            self._say(told)
        if bool(bank_trouble) != bool(before.bank_trouble):  # its reasons may differ each time
            self._say(f"{self.address}: {bank_trouble or 'the bank of now is used.'}")


def _tensor_of(answer: Any, name: str) -> npt.NDArray[Any]:
    try:
        tensor: npt.NDArray[Any] | None = answer.as_numpy(name)
    except (ValueError, TypeError, struct.error) as error:  # its bytes are not of its shape, or end within a text
        raise InputError(f"the tensor {name!r} cannot be read: {error}") from error
    if tensor is None:
        raise InputError(f"the tensor {name!r} is missing")
    return tensor


class _AwayError(Exception):
    """Nobody answers, or only the server does and not its model; the text says why."""


def _parsed(address: str) -> tuple[str, str]:
    """Return HOST:PORT and the model of an address; an InputError that shows no password."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        raise InputError(f"The address of a box is wrong; {_EXPECTED}.") from None
    model = parts.path.strip("/")
    if not host or "@" in address or parts.query or parts.fragment or not re.fullmatch(r"[\w.-]+", model):
        raise InputError(f"The address of a box is wrong; {_EXPECTED}.")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", model


def _laps(here_ms: Mapping[str, float], box_ms: Mapping[str, float]) -> dict[str, float]:
    """The stages of an answer: those of the box, and what the way there and back took beside them.

    Stages that are not known are left out: each new name would be kept for as long as the run.
    """
    box_ms = {stage: box_ms[stage] for stage in STAGES if stage in box_ms}
    network_ms = max(0.0, here_ms["network"] - sum(box_ms.values()))
    return {**box_ms, "preprocess": here_ms["preprocess"] + box_ms.get("preprocess", 0.0), "network": network_ms}
