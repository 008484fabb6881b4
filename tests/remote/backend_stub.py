"""Stands in for what Triton's Python backend gives a model, and for a server that has one."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

BACKEND = "triton_python_backend_utils"


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray)
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array

    @staticmethod
    def from_dlpack(name: str, tensor: "Tensor") -> "Tensor":
        return Tensor(name, tensor.as_numpy())


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        assert (output_tensors is None) != (error is None)
        self.output_tensors, self.error = output_tensors or [], error


class Request:
    def __init__(self, tensors: dict[str, np.ndarray], wanted: list[str]) -> None:
        self._tensors, self._wanted = tensors, wanted

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._tensors.items()]

    def requested_output_names(self) -> list[str]:
        return self._wanted


class Backend(ModuleType):
    """The module, which collects what is logged."""

    Tensor, TritonError, InferenceResponse = Tensor, TritonError, InferenceResponse

    def __init__(self) -> None:
        super().__init__(BACKEND)
        self.logged: list[str] = []
        self.Logger = type("Logger", (), {"log_info": self.logged.append})


def open_model(folder: Path, kind: str = "CPU", device: str = "0") -> Any:
    """Load the file of a model as the backend does, and initialize it."""
    source = (folder / "1" / "model.py").read_text()
    made: dict[str, Any] = {}
    exec(compile(source, str(folder / "1" / "model.py"), "exec"), made)
    model = made["TritonPythonModel"]()
    model.initialize({"model_repository": str(folder), "model_instance_kind": kind, "model_instance_device_id": device})
    return model


class Loopback:
    """Takes the place of tritonclient's client: the model is here, and is away while `away` gives a reason."""

    model: Any = None
    away: Callable[[], str] = staticmethod(lambda: "")
    asked: ClassVar[list[str]] = []  # what it was connected to

    def __init__(self, url: str, channel_args: list[tuple[str, int]]) -> None:
        assert channel_args
        Loopback.asked.append(url)

    def infer(self, model_name: str, inputs: list[Any], outputs: list[Any], client_timeout: float) -> "Answer":
        utils = importlib.import_module("tritonclient.utils")
        assert client_timeout > 0
        assert model_name == "cst-nano"
        if reason := Loopback.away():
            raise utils.InferenceServerException(reason, status="StatusCode.UNAVAILABLE")
        tensors = {one.name(): _array(one, utils) for one in inputs}
        wanted = [one.name() for one in outputs]
        (response,) = Loopback.model.execute([Request(tensors, wanted)])
        if response.error is not None:
            raise utils.InferenceServerException(response.error.message(), status="StatusCode.INTERNAL")
        return Answer({tensor.name(): tensor.as_numpy() for tensor in response.output_tensors})

    def get_model_repository_index(self, as_json: bool, client_timeout: float) -> dict[str, Any]:
        assert as_json
        assert client_timeout > 0
        models = [{"name": "other", "version": "1", "state": "UNAVAILABLE"}, {"name": "cst-nano", "state": "READY"}]
        return {"models": models}

    def close(self) -> None:
        pass


class Answer:
    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self._tensors = tensors

    def as_numpy(self, name: str) -> np.ndarray | None:
        return self._tensors.get(name)


def _array(sent: Any, utils: Any) -> np.ndarray:
    content = sent._get_content()
    if sent.datatype() == "BYTES":
        return utils.deserialize_bytes_tensor(content).reshape(sent.shape())
    assert sent.datatype() == "UINT8"
    return np.frombuffer(content, np.uint8).reshape(sent.shape())


def install(backend: Backend) -> None:
    sys.modules[BACKEND] = backend
