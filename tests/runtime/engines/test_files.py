import errno
import fcntl
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_records import GPU, MACHINE, MANIFEST, edit, write_engine, write_set
from engine_records import record as record_of

from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.engines.files import (
    EngineRecord,
    engine_folder,
    engine_name,
    find_engines,
    load_engine,
    read_record,
    sidecar_of,
    write_engines,
)
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError

DATA = b"a plan, or so it says" * 100


def record(graph: str = "encoder", backend: str = "tensorrt", precision: str = "int8", **changes: Any) -> EngineRecord:
    return record_of(graph, backend, precision, **changes)


def pair(start: bytes, **changes: Any) -> list[tuple[EngineRecord, bytes]]:
    return [(record(graph, **changes), start + DATA) for graph in ("encoder", "head")]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize(
    ("backend", "gpu_name", "targets", "name"),
    [
        ("tensorrt", "NVIDIA L4", (), "encoder.NVIDIA-L4.sm89.trt10.3.0.fp16.engine"),
        ("tensorrt", "Orin (nvgpu) / 8 GB", (), "encoder.Orin-nvgpu-8-GB.sm89.trt10.3.0.fp16.engine"),
        ("tensorrt-rtx", "NVIDIA L4", ("sm86", "sm89"), "encoder.rtx10.3.0.sm86-sm89.fp16.engine"),
        ("tensorrt-rtx", "NVIDIA L4", (), "encoder.rtx10.3.0.fp16.engine"),
        ("onnxruntime", "NVIDIA L4", (), "encoder.x86_64.ort10.3.0.fp16.onnx"),
    ],
)
def test_the_file_name_states_the_content(backend: str, gpu_name: str, targets: tuple[str, ...], name: str) -> None:
    machine = replace(MACHINE, gpu=replace(GPU, name=gpu_name))
    assert engine_name("encoder", backend, "10.3.0", "fp16", machine, targets) == name


def test_engines_are_beside_the_graphs_or_in_the_cache_for_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_folder(tmp_path, MANIFEST) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shipped = tmp_path / "cache" / "fsvit-edge" / "engines" / f"cst-nano-{MANIFEST.graphs['encoder'].sha256[:12]}"
    assert engine_folder(DEFAULT_BUNDLE, MANIFEST) == shipped
    link = tmp_path / "link"
    link.symlink_to(DEFAULT_BUNDLE)
    assert engine_folder(link, MANIFEST) == shipped


def test_only_the_user_may_enter_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_engine(engine_folder(DEFAULT_BUNDLE, MANIFEST), record(), DATA)
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    beside = write_engine(tmp_path / "bundle", record(), DATA)
    assert stat.S_IMODE(beside.parent.stat().st_mode) & 0o055  # like any folder


def test_a_written_engine_is_read_back(tmp_path: Path) -> None:
    before = record("head", "tensorrt", "fp16")
    path = write_engine(tmp_path, before, DATA)
    digest = hashlib.sha256(DATA).hexdigest()
    assert path.name == f"head.NVIDIA-L4.sm89.trt10.13.0.fp16.{digest[:8]}.engine"
    after = read_record(path)
    assert after == replace(before, file=path.name, sha256=digest, size_bytes=len(DATA))
    assert read_record(sidecar_of(path)) == after
    stored = json.loads(sidecar_of(path).read_text())
    assert stored["machine"]["gpu"]["compute_capability"] == [8, 9]
    assert list(stored["machine"]) == ["os", "arch", "cpu", "gpu", "l4t"]
    assert load_engine(path, after) == DATA
    assert path.read_bytes() == DATA  # trtexec loads it as it is


def test_a_rebuilt_engine_replaces_only_the_old_one(tmp_path: Path) -> None:
    other = write_engine(tmp_path, record(precision="fp32"), DATA)
    head = write_engine(tmp_path, record("head"), DATA)
    write_engine(tmp_path, record(), DATA)
    new = write_engine(tmp_path, record(), DATA + b"2")
    assert names(tmp_path) == sorted(name for path in (other, head, new) for name in (path.name, sidecar_of(path).name))
    again = write_engine(tmp_path, record(built_at="2026-11-26T00:00:00Z"), DATA + b"2")
    assert again == new
    assert read_record(again).built_at == "2026-11-26T00:00:00Z"


# ----------------------------------------------------------------------------------------- what is not whole is refused


def put(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit(sidecar_of(path), **changes)


def text(content: bytes) -> Callable[[Path], None]:
    return lambda path: sidecar_of(path).write_bytes(content) and None


FIELDS = [name for name in EngineRecord.__dataclass_fields__ if name not in ("format_version", "built_from_sha256")]


@pytest.mark.parametrize("name", FIELDS)
def test_a_sidecar_without_a_field_is_refused(tmp_path: Path, name: str) -> None:
    path = write_engine(tmp_path, record(), DATA)
    edit(sidecar_of(path), **{name: None})
    with pytest.raises(ArtifactError, match=f"'{name}' is missing"):
        read_record(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: sidecar_of(path).unlink(), "does not exist, so the engine is unknown"),
        (text(b""), "is not readable JSON"),
        (text(b'{"format_version": 1'), "is not readable JSON"),
        (put(format_version=2), "has format version 2, this fsvit-edge reads 1; rebuild the engine"),
        (put(color="red"), "unknown field 'color'"),
        (put(size_bytes="5"), "size_bytes is '5'"),
        (put(latency_ms="fast"), "latency_ms is 'fast'"),
        (put(limits={"ways": 1.5}), r"limits\.ways is 1\.5"),
        (put(profile={"x": {"min": 1}}), r"profile\.x\.min is 1"),
        (put(inputs=[{"name": "x", "shape": [None], "dtype": "f"}]), r"inputs\[0\]\.shape\[0\] is"),
        (put(graph="enroll"), "has graph 'enroll'; expected one of: encoder, head"),
        (put(backend="tvm"), "has backend 'tvm'; expected one of: tensorrt"),
        (put(precision="int4"), "has precision 'int4'; expected one of: fp32"),
        (put(machine={}), r"'machine\.os' is missing"),
        (put(file="../../etc/passwd"), "is the sidecar of '../../etc/passwd', not of"),
    ],
)
def test_a_sidecar_that_is_not_whole_is_refused_in_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    path = write_engine(tmp_path, record(), DATA)
    read_record(path)
    spoil(path)
    with pytest.raises(ArtifactError, match=reason) as refused:
        read_record(path)
    assert str(sidecar_of(path)) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 4


def test_a_renamed_engine_is_refused(tmp_path: Path) -> None:
    path = write_engine(tmp_path, record(), DATA)
    other = path.with_name("encoder.onnx")
    path.rename(other)
    sidecar_of(path).rename(sidecar_of(other))
    with pytest.raises(ArtifactError, match="not of the engine beside it"):
        read_record(other)


def test_a_record_that_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_engine(tmp_path, record(latency_ms=float("nan")), DATA)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (Path.unlink, "cannot be read: No such file"),
        (lambda path: path.write_bytes(b""), "is truncated or altered: 0 bytes, expected 2100"),
        (lambda path: path.write_bytes(DATA[:-1]), "2099 bytes, expected 2100"),
        (lambda path: path.write_bytes(DATA + b"x"), "2101 bytes, expected 2100"),
        (lambda path: path.write_bytes(b"b" + DATA[1:]), "was altered or damaged: sha256"),
        (lambda path: path.write_bytes(DATA[:-1] + b"X"), "was altered or damaged: sha256"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
    ],
)
def test_an_engine_that_is_not_what_its_sidecar_says_is_not_loaded(
    tmp_path: Path, spoil: Callable[[Path], Any], reason: str
) -> None:
    path = write_engine(tmp_path, record(), DATA)
    stated = read_record(path)
    assert load_engine(path, stated) == DATA
    spoil(path)
    with pytest.raises(ArtifactError, match=reason) as refused:
        load_engine(path, stated)
    assert "fsvit-edge build-engine" in str(refused.value)


# ----------------------------------------------------------------------------------- the disk is full, or the power off


def usable(folder: Path) -> dict[str, str]:
    """The newest engine of each graph and the start of its content; every engine with a sidecar must be intact."""
    built, problems = find_engines(folder)
    assert problems == []
    found: dict[str, str] = {}
    for path, one in built:
        found.setdefault(one.graph, load_engine(path, one)[:3].decode())
    return found


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("which", range(1, 5), ids=["encoder", "its sidecar", "head", "its sidecar "])
def test_a_failing_disk_leaves_the_old_engines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, code: int
) -> None:
    write_engines(tmp_path, pair(b"old"))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    replace_file, calls = os.replace, 0

    def fail(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == which:
            raise OSError(code, os.strerror(code))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FsvitEdgeError, match=f"cannot be written: {os.strerror(code)}"):
        write_engines(tmp_path, pair(b"new"))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    monkeypatch.undo()
    write_engines(tmp_path, pair(b"new"))
    assert usable(tmp_path) == {"encoder": "new", "head": "new"}  # the control: only the disk was in the way


KILL_AT_EACH_STEP = """
import json, os, pathlib, signal, sys
from dataclasses import replace
from engine_records import record
from fsvit_edge.runtime.engines.files import write_engines

root, data = pathlib.Path(sys.argv[1]), b" " * 2000
old = [(record(graph, "tensorrt", built_at="2026-11-25T00:00:00Z"), b"old" + data) for graph in ("encoder", "head")]
new = [(record(graph, "tensorrt", built_at="2026-11-26T00:00:00Z"), b"new" + data) for graph in ("encoder", "head")]
step = 0
while True:
    step += 1
    folder = root / str(step)
    write_engines(folder, old)
    child = os.fork()
    if child == 0:
        left = step
        def killed_before(function):
            def call(*arguments, **options):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return call
        for name in ("replace", "fsync", "unlink", "open"):
            setattr(os, name, killed_before(getattr(os, name)))
        write_engines(folder, new)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    assert step < 100
print(step)
"""


def test_a_build_killed_at_any_step_leaves_intact_engines_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILL_AT_EACH_STEP, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 16  # open, fsync, rename and fsync of the folder for four files; then four removals
    states = []
    for step in range(1, steps + 1):
        states.append(usable(tmp_path / str(step)))
        write_engines(tmp_path / str(step), pair(b"3rd"))
        assert usable(tmp_path / str(step)) == {"encoder": "3rd", "head": "3rd"}
        assert len(names(tmp_path / str(step))) == 4
    old, half, new = ({"encoder": e, "head": h} for e, h in (("old", "old"), ("new", "old"), ("new", "new")))
    assert states[0] == old
    assert half in states  # the control: some kills were in between
    assert states[-1] == new
    assert all(state in (old, half, new) for state in states)


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache is a file, not a folder"):
        write_engine(tmp_path / "cache", record(), DATA)


def test_two_builds_write_one_after_the_other(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # another process writes
    writing = threading.Thread(target=write_engine, args=(tmp_path, record(), DATA))
    writing.start()
    writing.join(0.3)
    assert writing.is_alive()
    assert names(tmp_path) == []
    os.close(descriptor)  # as if that process were killed
    writing.join(60)
    assert len(names(tmp_path)) == 2


# --------------------------------------------------------------------------------------------------------- finding them


def test_engines_are_found_newest_first_and_a_damaged_sidecar_hides_only_its_own(tmp_path: Path) -> None:
    write_set(tmp_path, precision="int8", built_at="2026-11-20T00:00:00Z")
    write_set(tmp_path, precision="fp32", built_at="2026-11-25T00:00:00Z")
    (tmp_path / "encoder.broken.engine.json").write_text("{")
    (tmp_path / "bundle.json").write_text("{}")
    (tmp_path / "encoder.onnx").write_bytes(b"")
    built, problems = find_engines(tmp_path)
    assert [one.precision for _, one in built] == ["fp32", "fp32", "int8", "int8"]
    assert all(path.is_file() and path.suffix == ".onnx" for path, _ in built)
    (problem,) = problems
    assert "encoder.broken.engine.json is not readable JSON" in problem
    assert find_engines(tmp_path / "none") == ([], [])
