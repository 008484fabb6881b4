"""Check what a release would ship: `make release-check`.

Builds the source distribution and the wheel, checks their metadata and contents, installs the wheel in a fresh
environment, and runs the demo from it in an empty folder. Fails with one sentence.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LARGEST_WHEEL_MB = 60.0  # PyPI refuses 100
NEEDED = (
    "fsvit_edge/py.typed",
    *(f"fsvit_edge/assets/cst-nano/{name}.onnx" for name in ("encoder", "int8_encoder", "enroll", "head")),
    *(f"fsvit_edge/assets/cst-nano/{name}.json" for name in ("bundle", "calibration", "cst-nano")),
    "fsvit_edge/assets/cst-nano/cst-nano.safetensors",
    "fsvit_edge/assets/cst-nano/README.md",
)
FRAMES = 5
# With a checkout on its path, pip would find the package installed already, and Python would run the checkout's.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def main() -> None:
    """Run every check; print what was found."""
    version = _version()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "dist"
        _run(sys.executable, "-m", "build", "--outdir", str(built), str(ROOT))
        wheel, source = _only(built, "*.whl"), _only(built, "*.tar.gz")
        _run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source))
        check_wheel(wheel, version)
        check_source(source)
        run_demo(wheel, Path(folder), version)
    print(f"fsvit-edge {version} can be released.")


def check_wheel(wheel: Path, version: str) -> None:
    """Compare the wheel's files with those of the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    static = {f"fsvit_edge/page/static/{path.name}" for path in (ROOT / "fsvit_edge/page/static").iterdir()}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fsvit_edge").rglob("*.py")}
    if missing := {*NEEDED, *static, *modules} - names:
        _fail(f"{wheel.name} lacks {', '.join(sorted(missing))}")
    metadata = f"fsvit_edge-{version}.dist-info/"
    others = {name for name in names if not name.startswith(("fsvit_edge/", metadata))}
    fakes = {name for name in names if re.search(r"(^|/)(tests?|fake_\w+|conftest)(/|\.py)", name)}
    deleted = {name for name in names if name.endswith(".py")} - modules
    if surplus := others | fakes | deleted:
        _fail(f"{wheel.name} has files that do not belong there: {', '.join(sorted(surplus))}")
    size_mb = wheel.stat().st_size / 1e6
    if size_mb > LARGEST_WHEEL_MB:
        _fail(f"{wheel.name} has {size_mb:.1f} MB; the limit is {LARGEST_WHEEL_MB:g} MB")
    print(f"{wheel.name}: {len(names)} files, {size_mb:.1f} MB")


def check_source(source: Path) -> None:
    """The source distribution must build the same wheel, so it needs the package, its metadata and its license."""
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if missing := {*NEEDED, "pyproject.toml", "README.md", "LICENSE"} - names:
        _fail(f"{source.name} lacks {', '.join(sorted(missing))}")
    print(f"{source.name}: {len(names)} files, {source.stat().st_size / 1e6:.1f} MB")


def run_demo(wheel: Path, folder: Path, version: str) -> None:
    """Install the wheel in a fresh environment and run the demo from an empty folder."""
    environment, empty = folder / "venv", folder / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=True)
    _run(str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", f"{wheel}[demo]")
    command = str(environment / "bin/fsvit-edge")
    stated = subprocess.run(
        [command, "--version"], cwd=empty, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if stated.stdout.strip() != f"fsvit-edge {version}":
        _fail(f"the installed command is {stated.stdout.strip()!r}, expected version {version}")
    _run(command, "run", "demo", "--max-frames", str(FRAMES), "--sink", "demo.jsonl", "--sink", "demo.mp4", cwd=empty)
    lines = (empty / "demo.jsonl").read_text().splitlines()
    if len(lines) != FRAMES or not (empty / "demo.mp4").stat().st_size:
        _fail(f"the demo wrote {len(lines)} results, expected {FRAMES}")
    print(f"The installed wheel ran {FRAMES} frames of the demo.")


def _version() -> str:
    stated = re.search('^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    if f"## [{stated[1]}]" not in (ROOT / "CHANGELOG.md").read_text():
        _fail(f"CHANGELOG.md has no section for {stated[1]}")
    return stated[1]


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def _run(*command: str, cwd: Path = ROOT) -> None:
    print("$", *command, flush=True)
    if subprocess.run(command, cwd=cwd, env=ENVIRONMENT, check=False).returncode:
        _fail(f"{command[0]} failed, see above")


def _fail(sentence: str) -> None:
    sys.exit(f"Error: {sentence}.")


if __name__ == "__main__":
    main()
