"""A real Triton Inference Server: that of the package nvidia-pytriton, in an environment of its own.

Its Python backend needs numpy < 2 in the model's process, so the environment of the tests cannot be that of the model:

    python3.11 -m venv /tmp/box
    /tmp/box/bin/pip install nvidia-pytriton "numpy<2" "opencv-python-headless==4.9.*" .
    TRITON_PYTHON=/tmp/box/bin/python pytest tests/remote/test_real_server.py
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

VARIABLE = "TRITON_PYTHON"
_START_WITHIN_S = 120.0
_FIND = """
import json, sys, numpy
from importlib.util import find_spec
found = find_spec("pytriton")
folder = found and found.submodule_search_locations[0]
print(json.dumps([folder, "%d.%d" % sys.version_info[:2], numpy.__version__]))
"""


def why_not() -> str:
    """Why there is no server; empty if there is one."""
    python = os.environ.get(VARIABLE)
    if not python:
        return f"needs nvidia-pytriton in an environment with numpy < 2, and its Python in {VARIABLE}"
    folder, _, numpy_version = _environment(python)
    if folder is None:
        return f"nvidia-pytriton is not installed for {python}"
    return "" if numpy_version.startswith("1.") else f"{python} has numpy {numpy_version}, and must have one below 2"


def _environment(python: str) -> tuple[str | None, str, str]:
    found = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, check=True)
    folder, version, numpy_version = json.loads(found.stdout)
    return folder, version, numpy_version


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class RealServer:
    """A server of a model repository; start, kill and start it again at the same port."""

    def __init__(self, folder: Path, repository: Path) -> None:
        python = os.environ[VARIABLE]
        package, version, _ = _environment(python)
        assert package is not None
        self._triton = Path(package) / "tritonserver"
        self._backends, self._log = folder / "backends", folder / "server.log"
        # The backend looks for the stub of one Python beside itself, and the package has one for each.
        shutil.copytree(self._triton / "backends", self._backends)
        shutil.copy(
            self._triton / "python_backend_stubs" / version / "triton_python_backend_stub", self._backends / "python"
        )
        self._repository, self.port = repository, free_port()
        self._regions = f"fsvit_edge_test_{os.getpid()}_{self.port}"
        self._environment = {
            **os.environ,
            # The stub takes its environment from the first Python of the path; it does not read PYTHONPATH.
            "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(Path(package).parent / "nvidia_pytriton.libs"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        command = [
            str(self._triton / "bin" / "tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._backends}",
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
            f"--grpc-port={self.port}",
            "--grpc-address=127.0.0.1",
            "--allow-http=false",
            "--allow-metrics=false",
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        due_s = time.monotonic() + _START_WITHIN_S
        while wait and not self._is_ready():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < due_s, self.log
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client: Any = InferenceServerClient(f"127.0.0.1:{self.port}")
        try:
            return bool(client.is_server_ready())
        except InferenceServerException:
            return False
        finally:
            client.close()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End the server and its model at once, as a power cut does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        for left in Path("/dev/shm").glob(f"{self._regions}*"):
            left.unlink()
