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
from fsvit_edge.fewshot.prediction import Prediction, StageClock
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.remote import wire
from fsvit_edge.remote.answers import check_details, check_facts, check_tensors, label_map_of
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
_PAUSE_S = 0.5  # between two tries
_EXPECTED = f"expected {SCHEME}HOST:PORT/MODEL, with the port of the server's gRPC"
_KINDS = {kind.__name__: kind for kind in (FsvitEdgeError, InputError, EnvironmentLacksError, ArtifactError)}
_TOLD = re.compile(rf"\b({'|'.join(_KINDS)}): (.+)", re.DOTALL)
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
    any size is 200 kB to 500 kB. A box that goes away is told once and waited for.

    Args:
        address: triton://HOST:PORT/MODEL.
        bank: Name of a bank on the box.
        say: Takes a line when the box goes away, comes back, or keeps a former bank.
        options: How to answer.
        zones: Zones that replace those of the bank, unless there are none.

    Attributes:
        name: The address, safe to print.
        facts: By what the box answered last.

    Raises:
        InputError: The address is none, or the box has no such bank or class.
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
        self._trouble = self._problem = self._facts_text = ""
        try:
            tensors = self._ask({}, options, (wire.FACTS,), _FACTS_WITHIN_S)
            with self._understood():
                self.facts = self._facts_of(tensors)
        except _AwayError as error:
            self.close()
            raise FsvitEdgeError(f"The box {self.address} does not answer: {error}.") from error
        except FsvitEdgeError:
            self.close()
            raise

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

        Raises:
            InputError: The frame is not a picture, or the bank has lost a class that was asked for.
            ArtifactError: The box has come back with another version or with a bank that does not fit.
        """
        check_rgb(rgb, "The frame")
        clock = StageClock()
        with self._blas.limit(limits=1):  # as in `FewShotModel.predict`: with more threads, sums may be rounded apart
            image = resize_image(rgb, self.facts.image_size)
        clock.lap("preprocess")
        steady = None if over_time is None else over_time.state
        options = replace(self._options, size_hw=(rgb.shape[0], rgb.shape[1]), steady=steady)
        try:
            tensors = self._ask({wire.FRAME: image}, options, _ANSWER, _ANSWER_WITHIN_S)
        except _AwayError as error:
            self._tell(f"The box {self.address} does not answer, and is waited for: {error}.")
            time.sleep(_PAUSE_S)
            return None
        self._tell("")
        with self._understood():
            self.facts = facts = self._facts_of(tensors)
            details = wire.from_json(Details, tensors, wire.DETAILS)
            check_tensors(tensors, facts)
            check_details(details, facts)
            label_map = label_map_of(tensors, facts, (rgb.shape[0], rgb.shape[1]))
        if bool(details.problem) != bool(self._problem):
            self._say(f"{self.address}: {escaped(details.problem)[:_MOST_TOLD] or 'the bank of now is used.'}")
        self._problem = details.problem
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

    def _facts_of(self, tensors: wire.Tensors) -> Facts:
        text = wire.text_of(tensors, wire.FACTS)
        if text == self._facts_text:  # as in nearly all answers; those of 255 classes take a millisecond to read
            return self.facts
        facts = wire.from_json(Facts, tensors, wire.FACTS)
        if facts.wire != wire.WIRE_VERSION:
            raise ArtifactError(
                f"The box {self.address} has fsvit-edge {escaped(facts.fsvit_edge)[:_SHOWN]}, whose answers have "
                f"version {facts.wire!r:.20}, not {wire.WIRE_VERSION}; install the same version on both."
            )
        check_facts(facts)
        self._facts_text = text
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

    def _tell(self, trouble: str) -> None:
        """Say that the box is away, or is back; once, whatever the reasons of later tries are."""
        if bool(trouble) != bool(self._trouble):
            self._say(trouble or f"The box {self.address} answers again.")
        self._trouble = trouble


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
    """The stages of an answer: those of the box, and what the way there and back took beside them."""
    network_ms = here_ms["network"] - sum(box_ms.values())
    return {**box_ms, "preprocess": here_ms["preprocess"] + box_ms.get("preprocess", 0.0), "network": network_ms}
