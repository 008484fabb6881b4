"""The model of Triton's Python backend: it hands requests to a `Box`, in a process of its own for each instance."""

import importlib
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fsvit_edge.remote.box import Box, Settings
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


# By whose child a process is: the server may stay as a zombie, and the number of a process that has ended be another's.
_WATCH = """
is_child() { grep -qsx "PPid:.$2" "/proc/$1/status"; }
while is_child "$2" "$1"; do sleep 1; done
is_child $$ "$2" && kill -9 "$2"
"""


def end_with_server() -> None:
    """Let this process end when the one that started it does, as a server that is killed.

    The backend's process of Triton 2.51 went on after each of five kills in the middle of a request, with 130 MB, and
    did not end at SIGTERM: it waits for the server and holds Python's lock, so no thread of ours could end it.
    """
    nowhere = subprocess.DEVNULL
    command = ["sh", "-c", _WATCH, "sh", str(os.getppid()), str(os.getpid())]
    with suppress(OSError):  # a system that starts no more processes still answers
        subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)  # noqa: S603 - two numbers


class TritonPythonModel:
    """What the backend looks for in the file `model.py` of a model repository."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model; what this raises is what the server says of a model that it cannot load."""
        # Only the backend has this module.
        self._utils: Any = importlib.import_module("triton_python_backend_utils")
        self._check_arrays()
        end_with_server()
        if args["model_instance_kind"] == "GPU":
            # Engines take the first GPU that they see.
            visible = [one for one in os.environ.get(_VISIBLE, "").split(",") if one]
            device = args["model_instance_device_id"]
            os.environ[_VISIBLE] = visible[int(device)] if visible else device
        self._box = Box(Settings.load(Path(args["model_repository"])), self._utils.Logger.log_info)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each by itself: one that cannot be answered takes no other with it."""
        return list(map(self._response, requests))

    def finalize(self) -> None:
        """Free the engines."""
        self._box.close()

    def _check_arrays(self) -> None:
        """Refuse a numpy that the backend was not built for: it reads other values, and crashes at the first request.

        So did Triton 2.51 with numpy 2.4.
        """
        sent = np.arange(6, dtype=np.float32).reshape(2, 3)
        tensor = self._utils.Tensor("check", sent)
        if not np.array_equal(self._utils.Tensor.from_dlpack("check", tensor).as_numpy(), sent):
            raise EnvironmentLacksError(
                f"This server's Python backend cannot read arrays of numpy {np.__version__}; install an older one in "
                'its Python: pip install "numpy<2" "opencv-python-headless==4.9.*".'
            )

    def _response(self, request: Any) -> Any:
        utils = self._utils
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        wanted = request.requested_output_names()
        try:
            answered = self._box.answer(tensors, wanted)
        except FsvitEdgeError as error:
            # The kind goes with the sentence, so that the device ends with the exit code that it would have here.
            return utils.InferenceResponse(error=utils.TritonError(f"{type(error).__name__}: {error}"))
        found = [utils.Tensor(name, array) for name, array in answered.items() if name in wanted]
        return utils.InferenceResponse(output_tensors=found)
