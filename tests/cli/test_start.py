import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Cli, is_one_error

from fsvit_edge.inspect import inspection

START = "from fsvit_edge.cli.start import main; main()"


def run(code: str, arguments: str = "") -> subprocess.CompletedProcess[str]:
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {arguments}"
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        ("--version", 0, "fsvit-edge ", ""),  # the control
        ("--version >&-", 0, "", ""),
        ("--version 2>&- <&-", 0, "fsvit-edge ", ""),
        ("inspect /gone >&-", 2, "", "Error: /gone does not exist"),
        ("inspect /gone 2>&-", 2, "", ""),
    ],
)
def test_a_closed_stream_is_like_dev_null(arguments: str, code: int, out: str, err: str) -> None:
    done = run(START, arguments)
    assert done.returncode == code, done.stderr
    for said, expected in ((done.stdout, out), (done.stderr, err)):
        assert said.startswith(expected)
        assert bool(said) == bool(expected)


def test_ctrl_c_while_the_commands_are_imported_is_a_short_end() -> None:
    interrupt = """
import sys
class Interrupt:
    @staticmethod
    def find_spec(name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt)
"""
    done = run(interrupt + START)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("end", "code", "is_quiet"),
    [
        ("start.main()", -signal.SIGINT, True),  # of which a shell makes 130
        ("sys.exit(130)", 130, False),
    ],
)
def test_ctrl_c_while_python_ends_is_a_short_end(end: str, code: int, is_quiet: bool) -> None:
    script = f"""
import atexit, sys, time
from fsvit_edge.cli import main, start
def interrupted():
    raise KeyboardInterrupt
def last():
    print("ends", flush=True)
    time.sleep(30)
main.main = interrupted
atexit.register(last)
{end}
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ends\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=25)
    assert process.returncode == code
    assert (err == "") == is_quiet


def test_too_little_memory_is_one_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(inspection, "inspect_file", full)
    is_one_error(cli("inspect bank.safetensors"), 1, "This needs more memory than there is here; end other programs")


def test_ctrl_c_while_a_command_works_is_a_short_end(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "inspect_file", interrupted)
    result = cli("inspect x")
    assert (result.code, result.out, result.err.strip()) == (130, "", "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("raise ImportError('libX.so.1: no such file')", "Error: cv2 cannot be loaded: libX.so.1: no such file; see: "),
        ("raise OSError('libX.so.1: no such file')", "Error: cv2 cannot be loaded: libX.so.1: no such file; see: "),
        ("raise RuntimeError", "Error: cv2 cannot be loaded: RuntimeError; see: fsvit-edge doctor"),
        (
            "raise ImportError('\\nREAD\\nTHIS') from OSError('libX.so.1')",
            "Error: cv2 cannot be loaded: libX.so.1; see: ",
        ),
        ("import gone", "Error: gone cannot be loaded: No module named 'gone'; see: fsvit-edge doctor"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_named(error: str, said: str) -> None:
    done = run(broken("cv2", error, "run", "demo") + START)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_the_doctor_needs_no_numpy(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('libX.so.1: no such file')")
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['fsvit-edge', 'doctor']\n" + START)
    assert done.returncode == 3, done.stderr
    found = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert found["numpy"].startswith("missing")
    assert found["numpy"].endswith("but it cannot be loaded: ImportError: libX.so.1: no such file")
    assert found["pillow"].startswith("ok ")
    assert {"python", "onnxruntime", "torch", "paho-mqtt", "pillow-heif"} <= found.keys()


def broken(package: str, error: str, *arguments: str) -> str:
    return f"""
import importlib.abc, importlib.util, sys
class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, *_):
        return importlib.util.spec_from_loader(name, self) if name == {package!r} else None
    def exec_module(self, module):
        exec({error!r}, vars(module))
sys.meta_path.insert(0, Broken())
sys.argv = ["fsvit-edge", *{arguments!r}]
"""
