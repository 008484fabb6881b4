"""The model's process when the server that started it is killed."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from backend_stub import Backend, open_model
from box_answers import NAME

from fsvit_edge.remote.box import FORMAT_VERSION, Settings
from fsvit_edge.remote.repository import write_model

MODEL = """
import ctypes, os, sys
from fsvit_edge.remote.model import end_with_server
if sys.argv[1] == "ends":
    end_with_server()
print(os.getpid(), flush=True)
ctypes.PyDLL(None).sleep(60)  # with Python's lock, as a process that waits for its server
"""
SERVER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.parametrize("how", ["ends", "stays"])
def test_the_process_of_a_model_ends_with_its_server(how: str) -> None:
    command = [sys.executable, "-c", SERVER, MODEL, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        model = int(server.stdout.readline())
        server.send_signal(signal.SIGKILL)
        server.wait()
        has_ended = bool(select.select([server.stdout], [], [], 20 if how == "ends" else 3)[0])  # nobody can write
        if not has_ended:
            os.kill(model, signal.SIGKILL)
    assert has_ended == (how == "ends")


def test_a_model_that_a_server_opens_will_end_with_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert backend.logged == []
    called: list[str] = []
    monkeypatch.setattr("fsvit_edge.remote.model.end_with_server", lambda: called.append("once"))
    monkeypatch.setattr("fsvit_edge.remote.model.Box", lambda *_: None)
    open_model(write_model(tmp_path, NAME, Settings(FORMAT_VERSION, None, str(tmp_path))))
    assert called == ["once"]
