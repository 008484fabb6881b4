"""What may import what, and what an import may do: checked by reading the source and in processes of their own."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fsvit_edge
import fsvit_edge.runtime

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fsvit_edge"

PUBLIC = (
    *("AccuracyGateError", "ArtifactError", "Enrollment", "EnvironmentLacksError", "FewShotModel", "FsvitEdgeError"),
    *("InputError", "Prediction", "SourceError"),
)

# Each may import itself and the groups before its own; "" is the package's own page.
ORDER = (
    *(("runtime",), ("fewshot",), ("",), ("remote",), ("live", "inspect"), ("model", "enroll", "label")),
    *(("learn", "calib", "page"), ("export",), ("cli",)),
)
LAYERS = {room: height for height, rooms in enumerate(ORDER) for room in rooms}
DEVICE_ROOMS = ("runtime", "fewshot", "remote", "live", "inspect", "enroll", "label", "page")

WORKSTATION = ("torch", "torchvision", "timm", "onnx", "onnxsim", "onnxscript")
PAGE = ("fastapi", "pydantic", "starlette", "uvicorn", "prometheus_client")
# Heavy packages and the only places that may import them.
HOMES = {
    **dict.fromkeys(WORKSTATION, ("model", "learn", "export", "calib")),
    **dict.fromkeys(("typer", "click", "rich", "segno"), ("cli",)),
    "skimage": ("export", "model"),
    **dict.fromkeys(PAGE, ("page",)),
    **dict.fromkeys(("av", "paho"), ("live",)),
    **dict.fromkeys(("lightning", "torchmetrics"), ("learn",)),
    "cryptography": ("fewshot",),
    "tritonclient": ("remote",),
}
DEVICE = ("av", "numpy", "cv2", "onnxruntime", "PIL", "safetensors", "threadpoolctl")
COMMANDS = (
    *("", "train", "eval", "export", "calib", "build-engine", "enroll", "run", "label", "triton", "bench", "inspect"),
    *("doctor", "bank", "bank list", "bank remove", "bank rename"),
)


def run(code: str, *arguments: str, blocked: tuple[str, ...] = ()) -> str:
    """Run code in a process of its own, in which the blocked packages cannot be imported; return what it printed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    command = [sys.executable, "-W", "error", "-c", block + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def layer(module: str) -> str:
    """The subpackage of ours that a dotted name belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""


def device_modules() -> list[str]:
    modules = (module.name for module in pkgutil.walk_packages(fsvit_edge.__path__, "fsvit_edge."))
    return sorted(name for name in modules if layer(name) in DEVICE_ROOMS)


USE_THE_RUNTIME = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import numpy as np
from fsvit_edge import FewShotModel
picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
mask = np.zeros((60, 80), bool)
mask[20:40, 20:60] = True
with FewShotModel.load(threads=1) as model:
    model.enroll("masked", [picture], [mask])
    model.enroll("named", [picture])
    print(model.predict(picture).label_map.shape)
try:
    import fsvit_edge.model.network
except ImportError as error:
    print("no", error.name)
"""


def test_the_device_needs_nothing_of_the_workstation_and_nothing_of_the_command_line() -> None:
    # The page has packages of its own; it is loaded where a sink asks for it.
    modules = [name for name in device_modules() if not name.startswith("fsvit_edge.page")]
    assert len(modules) > 40
    blocked = (*WORKSTATION, *PAGE, "paho", "tritonclient", "typer", "click", "rich", "skimage", "scipy")
    assert run(USE_THE_RUNTIME, *modules, blocked=blocked).splitlines() == ["(60, 80)", "no torch"]


BUILD_ENGINES = """
import sys
from pathlib import Path
from fsvit_edge.export import build, measure
from fsvit_edge.export.build import build_engines
from fsvit_edge.export.job import BuildOptions
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
measure.TIMED_S = 0.05
build.demo_pictures = lambda: measure.demo_pictures(4)
on_cpu, on_gpu = BuildOptions("onnxruntime", "fp32"), BuildOptions("tensorrt-rtx", targets=("sm86",))
for options in (on_cpu, on_gpu):
    result = build_engines(DEFAULT_BUNDLE, options)
    print(result.precision, all(one.path.is_file() for one in result.engines.values()))
"""


@pytest.mark.slow(reason="builds engines of the bundled model, 12 s")
def test_engines_are_built_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocked = tuple(name for name in (*WORKSTATION, "lightning", "typer", "rich") if name != "onnx")
    assert run(BUILD_ENGINES, blocked=blocked).splitlines() == ["fp32 True", "fp16 True"]


SHOW_HELP = """
import sys
from fsvit_edge.cli.main import main
commands = [[], *(command.split() for command in sys.argv[1:])]
for command in commands:
    sys.argv = ["fsvit-edge", *command, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
from fsvit_edge.inspect import packages
packages._imports = dict  # it imports every package, in processes that are not blocked, 15 s
try:
    sys.argv = ["fsvit-edge", "doctor"]
    main()
except SystemExit as end:
    print("but doctor needs more:", end.code)
"""


def test_help_needs_nothing_but_typer() -> None:
    blocked = (*WORKSTATION, *DEVICE, "rich", "skimage", "scipy")
    printed = run(SHOW_HELP, *COMMANDS[1:], blocked=blocked)
    assert printed.count("Usage: ") == len(COMMANDS)
    assert "Usage: fsvit-edge bank rename" in printed
    assert printed.endswith("but doctor needs more: 3\n")


SNAPSHOT = """
import locale, logging, os, signal, sys, threading, warnings

def snapshot():
    return {
        "environment": dict(os.environ),
        "handlers": list(logging.root.handlers),
        "level": logging.root.level,
        "disabled": logging.root.manager.disable,
        "threads": [thread.name for thread in threading.enumerate()],
        "tasks": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
        "warnings": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hook": sys.excepthook,
        "path": list(sys.path),
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "umask": [os.umask(0o22), os.umask(0o22)][1],
    }

"""
IMPORT = """
import importlib
for name in sys.argv[1].split(): importlib.import_module(name)
before = snapshot()
for name in sys.argv[2].split(): importlib.import_module(name)
after = snapshot()
changed = [key for key in before if before[key] != after[key]]
print(changed, sorted({"numpy", "cv2", "onnxruntime", "torch", "rich", "typer"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("first", "then", "loaded"),
    [
        pytest.param("", "fsvit_edge", [], id="the package"),
        pytest.param("", "fsvit_edge.runtime fsvit_edge.runtime.errors", [], id="the errors"),
        pytest.param("typer", "fsvit_edge.cli.main", ["typer"], id="the command line"),
        pytest.param(
            # What these do themselves (OpenBLAS starts threads) is theirs.
            "numpy cv2 PIL.Image safetensors.numpy threadpoolctl uvicorn fastapi prometheus_client",
            " ".join(device_modules()),
            ["cv2", "numpy"],
            id="the runtime",
        ),
    ],
)
def test_an_import_changes_nothing_and_loads_little(first: str, then: str, loaded: list[str]) -> None:
    assert run(SNAPSHOT + IMPORT, first, then).strip() == f"[] {loaded}"


def test_the_snapshot_would_notice_a_change() -> None:
    change = """
before = snapshot()
os.environ["X"] = "1"; logging.basicConfig(); warnings.simplefilter("ignore"); threading.Timer(9, print).start()
print([key for key in before if before[key] != snapshot()[key]], flush=True)
os._exit(0)
"""
    assert run(SNAPSHOT + change).strip() == "['environment', 'handlers', 'threads', 'tasks', 'warnings']"


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports, at its top or deep inside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(module: str, source: str) -> list[str]:
    """Imports by which a module of ours reaches upwards or sideways, or a heavy package where it does not belong."""
    own = layer(module)
    wrong = []
    for name in imported(source):
        top = name.partition(".")[0]
        if top == "fsvit_edge":
            target = layer(name)
            if target != own and (LAYERS[target] >= LAYERS[own] or (target == "" and not name.endswith("__version__"))):
                wrong.append(name)
        elif own not in HOMES.get(top, LAYERS):
            wrong.append(name)
    return wrong


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert offences(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("fsvit_edge.fewshot.bank", "from fsvit_edge.model.config import ModelConfig", True),
        ("fsvit_edge.fewshot.bank", "def f():\n    import fsvit_edge.export.pipeline", True),
        ("fsvit_edge.fewshot.bank", "import torch.nn", True),
        ("fsvit_edge.fewshot.bank", "from fsvit_edge.runtime.errors import InputError", False),
        ("fsvit_edge.runtime.bundle", "from fsvit_edge.fewshot.bank import SupportBank", True),
        ("fsvit_edge.model.network", "from fsvit_edge.learn.episodes import Episode", True),
        ("fsvit_edge.export.pipeline", "import torch, onnx", False),
        ("fsvit_edge.export.build", "from fsvit_edge.calib.ranges import Ranges", False),
        ("fsvit_edge.export.measure", "from fsvit_edge.learn.evaluation import evaluate", False),
        ("fsvit_edge.calib.ranges", "from fsvit_edge.export.pipeline import export_bundle", True),
        ("fsvit_edge.calib.ranges", "from fsvit_edge.learn.examples import Example", True),
        ("fsvit_edge.export.pipeline", "from fsvit_edge import __version__", False),
        ("fsvit_edge.export.pipeline", "from fsvit_edge import FewShotModel", True),
        ("fsvit_edge.export.pipeline", "from fsvit_edge.cli import terminal", True),
        ("fsvit_edge.__init__", "from fsvit_edge.cli import main", True),
        ("fsvit_edge.cli.run", "from fsvit_edge.export.pipeline import export_bundle", False),
        ("fsvit_edge.cli.run", "import torch", True),
    ],
)
def test_the_direction_check_tells_right_from_wrong(module: str, source: str, wrong: bool) -> None:
    assert bool(offences(module, source)) == wrong


def test_every_subpackage_has_its_place() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == LAYERS.keys() - {""}
    assert len(SOURCES) > 40


def circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, in functions and for type checkers too; [] if there is none.

    Sources are by dotted name; a package goes by its own, without `__init__`.
    """
    graph: dict[str, list[str]] = {}
    for module, source in sources.items():
        # Of `pack.one.value`, the module is pack.one; of `pack.one`, pack.one itself and not pack as well.
        found = ((name if name in sources else name.rpartition(".")[0]) for name in imported(source))
        graph[module] = [name for name in found if name in sources]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        modules: list[str] = error.args[1]
        return modules
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    assert circle({name.removesuffix(".__init__"): path.read_text() for name, path in dotted.items()}) == []


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param("import pack.one", id="at the top"),
        pytest.param("from pack import one", id="a module by its name"),
        pytest.param("def f():\n    from pack.one import value", id="in a function"),
        pytest.param("if TYPE_CHECKING:\n    from pack.one import value", id="for type checkers"),
    ],
)
def test_a_circle_is_found(imports: str) -> None:
    sources = {"pack": "", "pack.one": "from pack.two import value", "pack.two": "import pack.three", "pack.three": ""}
    assert circle(sources) == []
    assert set(circle(sources | {"pack.three": imports})) == {"pack.one", "pack.two", "pack.three"}


@pytest.mark.parametrize("door", ["export", "calib"])
def test_the_doors_at_the_root_lead_into_the_package(door: str) -> None:
    link = ROOT / door
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (PACKAGE / door).resolve()


def test_the_public_names_are_these() -> None:
    assert fsvit_edge.__all__ == list(PUBLIC)
    done = subprocess.run(
        [sys.executable, "-c", "import fsvit_edge; print(*dir(fsvit_edge))"], capture_output=True, text=True, check=True
    )
    assert set(PUBLIC) < set(done.stdout.split())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(fsvit_edge, name)
    assert inspect.isclass(thing)
    assert thing.__name__ == name
    assert layer(thing.__module__) in {"runtime", "fewshot"}
    assert vars(thing)["__doc__"]
    for member, value in vars(thing).items():
        if member.startswith("_"):
            continue
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(function):
            assert function.__doc__, member


def test_public_names_can_be_imported_by_star_and_others_not_at_all() -> None:
    names: dict[str, object] = {}
    exec("from fsvit_edge import *", names)
    assert set(PUBLIC) <= names.keys()
    with pytest.raises(AttributeError, match="has no attribute 'SupportBank'"):
        _ = fsvit_edge.SupportBank


def test_the_version_is_the_same_everywhere() -> None:
    stated = re.search('^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert stated[1] == fsvit_edge.__version__
    newest = re.search(r"^## \[?([0-9][^\s\]]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == fsvit_edge.__version__
