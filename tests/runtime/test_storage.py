import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fsvit_edge.runtime import disk_steps
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.storage import (
    BusyError,
    TemporaryFile,
    atomic_folder,
    atomic_write,
    cache_problem,
    editing,
    locked,
    read_file,
    remove_leftovers,
    temporary_folder,
    user_cache,
)

MARKER = "marker.json"
Make = Callable[[Path, bytes], None]


def make_file(path: Path, data: bytes) -> None:
    atomic_write(path, data)


def make_folder(path: Path, data: bytes) -> None:
    with atomic_folder(path, MARKER) as staging:
        (staging / "data").write_bytes(data)
        (staging / MARKER).write_bytes(b"{}")


def read(path: Path) -> bytes:
    return (path / "data").read_bytes() if path.is_dir() else path.read_bytes()


both = pytest.mark.parametrize("make", [make_file, make_folder])


def fail_with(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@both
def test_a_write_leaves_the_new_content_and_nothing_else(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "missing" / "parents" / "thing"
    make(path, b"first")
    assert read(path) == b"first"
    make(path, b"second")
    assert read(path) == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_and_not_mixed_also_behind_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "thing", tmp_path / "link"
    make_folder(path, b"old")
    (path / "only in the old one").touch()
    link.symlink_to(path)
    make_folder(link, b"new")
    assert link.is_symlink()
    assert sorted(os.listdir(path)) == ["data", MARKER]
    assert read(path) == b"new"
    assert sorted(os.listdir(tmp_path)) == ["link", "thing"]


@both
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, make: Make, mask: int) -> None:
    before = os.umask(mask)
    try:
        make(tmp_path / "thing", b"data")
        (tmp_path / "plain").touch()
        (tmp_path / "folder").mkdir()
    finally:
        assert os.umask(before) == mask
    like = tmp_path / ("plain" if make is make_file else "folder")
    assert stat.S_IMODE((tmp_path / "thing").stat().st_mode) == stat.S_IMODE(like.stat().st_mode)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk from now on, in order, by the names of the paths."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def kind(path: str | Path) -> str:
        return "temporary" if Path(path).name.startswith(".fsvit-edge-") else Path(path).name

    def listening_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        size = status.st_size if stat.S_ISREG(status.st_mode) else "folder"
        events.append(f"fsync {kind(os.readlink(f'/proc/self/fd/{descriptor}'))} {size}")
        fsync(descriptor)

    def listening_replace(source: Path, target: Path) -> None:
        events.append(f"rename {kind(source)} {kind(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", listening_fsync)
    monkeypatch.setattr(os, "replace", listening_replace)
    return events


def test_contents_are_flushed_before_the_rename_and_the_folder_around_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    events = recorded(monkeypatch)
    make_file(home / "file", b"12345")
    assert events == ["fsync temporary 5", "rename temporary file", "fsync home folder"]
    for first in ([], ["rename thing temporary"]):
        events.clear()
        make_folder(home / "thing", b"12345")
        assert sorted(events[:2]) == ["fsync data 5", f"fsync {MARKER} 2"]
        assert events[2:] == ["fsync temporary folder", *first, "rename temporary thing", "fsync home folder"]


@both
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "new"])
def test_a_failing_disk_leaves_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, step: str, code: int, old: bool
) -> None:
    path = tmp_path / "thing"
    if old:
        make(path, b"old")
    monkeypatch.setattr(os, step, fail_with(code))
    with pytest.raises(FsvitEdgeError, match=rf"thing cannot be written: {os.strerror(code)}; .*\.$") as caught:
        make(path, b"new")
    assert type(caught.value) is FsvitEdgeError
    assert list(tmp_path.iterdir()) == ([path] if old else [])
    if old:
        assert read(path) == b"old"


def test_when_the_second_rename_fails_the_old_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "thing"
    make_folder(path, b"old")
    replace = os.replace
    calls: list[Path] = []

    def fail_the_second_time(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_the_second_time)
    with pytest.raises(FsvitEdgeError, match="nothing was changed"):
        make_folder(path, b"new")
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == [path]
    assert read(path) == b"old"


@both
def test_a_folder_that_cannot_be_flushed_after_the_rename_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    path = tmp_path / "thing"
    make(path, b"old")
    fsync = os.fsync

    def fail_for_the_parent(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_the_parent)
    with pytest.raises(FsvitEdgeError, match="thing was written, but its folder cannot be flushed to disk: Input"):
        make(path, b"new")
    assert read(path) == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3), InputError("The picture is too small.")],
    ids=repr,
)
def test_an_error_while_a_folder_is_filled_passes_through_and_leaves_the_old_one(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "thing"
    make_folder(path, b"old")
    with pytest.raises(type(error)) as caught, atomic_folder(path, MARKER) as staging:  # noqa: PT012
        (staging / "data").write_bytes(b"half")
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == [path]
    assert read(path) == b"old"


def test_a_system_error_without_a_number_keeps_its_message(tmp_path: Path) -> None:
    text = "thing cannot be written: the server hung up; nothing was changed"
    with pytest.raises(FsvitEdgeError, match=text), atomic_folder(tmp_path / "thing", MARKER):
        raise OSError("the server hung up")
    assert not list(tmp_path.iterdir())


@both
def test_a_file_that_the_system_will_not_let_grow_leaves_the_old_one(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "thing"
    make(path, bytes(900))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(FsvitEdgeError) as caught:
            make(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"{path} cannot be written: {os.strerror(errno.EFBIG)}; nothing was changed."
    assert read(path) == bytes(900)
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_storage

make, path = getattr(test_storage, sys.argv[2]), Path(sys.argv[3])
make(path, b"old")
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
make(path, b"new")
"""


@both
def test_a_kill_before_the_rename_leaves_the_old_one_and_the_next_write_works(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "thing"
    script = [sys.executable, "-c", KILLED, str(Path(__file__).parent), make.__name__, str(path)]
    done = subprocess.run(script, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(path) == b"old"
    remains = [other for other in tmp_path.iterdir() if other != path]
    assert len(remains) == 1
    assert remains[0].name.startswith(".fsvit-edge-")  # hidden, so nobody takes it for a result
    make(path, b"newer")
    assert read(path) == b"newer"


@both
@pytest.mark.parametrize("below", ["thing", "folder/thing"])
def test_a_parent_that_is_a_file_is_named(tmp_path: Path, make: Make, below: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"thing cannot be written: {file} is a file, not a folder"):
        make(file / below, b"data")
    assert file.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_and_a_folder_are_not_written_over_each_other(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"mine")
    folder.mkdir()
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        make_file(folder, b"data")
    with pytest.raises(InputError, match="is a file; give the name of a folder"):
        make_folder(file, b"data")
    assert not list(folder.iterdir())
    assert file.read_bytes() == b"mine"


def test_a_folder_without_the_marker_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    path.mkdir()
    make_folder(path, b"into an empty one")
    (path / MARKER).unlink()
    with pytest.raises(InputError, match=rf"thing contains other files and no {MARKER}"):
        make_folder(path, b"new")
    assert read(path) == b"into an empty one"
    assert list(tmp_path.iterdir()) == [path]


@both
def test_a_folder_without_write_permission_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    # Permissions are simulated: root, who runs some CI, may write anywhere.
    monkeypatch.setattr(os, "mkdir", fail_with(errno.EACCES))
    monkeypatch.setattr(os, "open", fail_with(errno.EACCES))
    with pytest.raises(FsvitEdgeError, match="thing cannot be written: Permission denied"):
        make(tmp_path / "thing", b"data")


def test_leftovers_that_nobody_has_locked_are_removed_and_nothing_else(tmp_path: Path) -> None:
    alive = os.getpid()  # of another container it may be the number of a process that was killed
    (tmp_path / f".fsvit-edge-{alive}_abc").write_bytes(b"half")
    (tmp_path / ".fsvit-edge-1_abc-bundle").mkdir()
    (tmp_path / ".fsvit-edge-1_abc-bundle" / "encoder.onnx").write_bytes(b"half")
    others = [".fsvit-edge-notes", f".fsvit-edge-{alive}x-bank", ".other", "bank"]
    for name in others:
        (tmp_path / name).write_bytes(b"keep")
    assert len(remove_leftovers(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_a_fifo_that_is_named_like_a_leftover_is_removed_and_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".fsvit-edge-1_x")
    assert len(remove_leftovers(tmp_path)) == 1


def test_a_file_is_read_if_it_is_one_and_not_too_large(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "fifo")
    assert read_file(tmp_path / "file", 5) == b"12345"
    assert read_file(tmp_path / "file", 2**60) == b"12345"  # and takes no memory for what is not there
    for name, most, reason in (("file", 4, "more than the 0 MB that are read"), ("fifo", 9, "is not a regular file")):
        with pytest.raises(OSError, match=reason):
            read_file(tmp_path / name, most)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "gone", 9)


def test_what_is_being_written_stays_whatever_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 4_000_000_000)  # dead here: the writer is in another container
    with TemporaryFile(tmp_path / "out.mp4") as file, atomic_folder(tmp_path / "bundle", MARKER) as staging:
        (staging / MARKER).touch()
        assert remove_leftovers(tmp_path) == []
        assert file.path.exists()
    assert (tmp_path / "bundle" / MARKER).exists()
    left = tmp_path / ".fsvit-edge-4000000000_abc"
    left.touch()
    assert remove_leftovers(tmp_path) == [left]  # the control


def test_no_place_for_temporary_files_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container of which nothing can be written."""
    monkeypatch.setattr(tempfile, "gettempdir", fail_with(errno.EROFS))
    sentence = r"no place for temporary files: .*; make room, or set TMPDIR\."
    with pytest.raises(FsvitEdgeError, match=sentence), temporary_folder():
        pytest.fail("there is one")


def test_a_temporary_folder_is_locked_and_goes_and_so_does_that_of_a_killed_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = tmp_path / ".fsvit-edge-1_abc"
    killed.mkdir()
    (killed / "bank.safetensors").write_bytes(b"half")
    with temporary_folder() as folder:
        (folder / "bank.safetensors").write_bytes(b"data")
        assert remove_leftovers(tmp_path) == []
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_process_cleans_away_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        assert len(remove_leftovers(tmp_path)) == 1
        flock(descriptor, how)

    for make in (make_file, make_folder):
        monkeypatch.setattr(fcntl, "flock", late)
        make(tmp_path / make.__name__, b"data")
        assert read(tmp_path / make.__name__) == b"data"


def test_a_temporary_file_replaces_its_target_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    with TemporaryFile(target) as file:
        file.path.write_bytes(b"first")
        assert remove_leftovers(tmp_path) == []
    assert os.listdir(tmp_path) == []
    with TemporaryFile(target) as file:
        file.path.write_bytes(b"second")
        file.replace_target()
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert target.read_bytes() == b"second"
    with pytest.raises(FsvitEdgeError, match="cannot be written: No such file"):
        TemporaryFile(tmp_path / "nowhere" / "out.mp4")


# ---------------------------------------------------------------------------------------------------- what is replaced


def test_a_link_is_followed_and_mode_and_owner_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "chown", lambda _, user, group: owners.append((user, group)))
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_bytes(b"old")
    (shared / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("shared/file")
    (tmp_path / "link to a link").symlink_to(tmp_path / "link")
    (tmp_path / "dangling").symlink_to("shared/missing/new")
    atomic_write(tmp_path / "link to a link", b"new")
    atomic_write(tmp_path / "dangling", b"first")
    assert (tmp_path / "link").is_symlink()
    assert (shared / "file").read_bytes() == b"new"
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o600
    assert owners == [(-1, os.getgid()), (os.getuid(), -1)]
    assert (shared / "missing" / "new").read_bytes() == b"first"
    make_folder(shared / "folder", b"old")
    (shared / "folder").chmod(0o700)
    make_folder(shared / "folder", b"new")
    assert stat.S_IMODE((shared / "folder").stat().st_mode) == 0o700
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FsvitEdgeError, match="loop cannot be written: Too many levels of symbolic links"):
        atomic_write(tmp_path / "loop", b"data")


def test_a_pipe_gets_the_data_and_one_that_nobody_reads_does_not_hold_up(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FsvitEdgeError, match="pipe cannot be written: No such device or address"):
        atomic_write(pipe, b"data")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(pipe, b"data")
    assert os.read(reader, 10) == b"data"
    with pytest.raises(FsvitEdgeError, match="cannot be written: Resource temporarily unavailable"):
        atomic_write(pipe, bytes(1_000_000))
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    atomic_write(Path("/dev/null"), b"data")
    with pytest.raises(InputError, match="is no regular file; give the name of a file"):
        TemporaryFile(pipe)


def test_a_file_that_cannot_be_written_at_all_was_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk that is read-only."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(tempfile, "mkstemp", fail_with(errno.EROFS))
    monkeypatch.setattr(Path, "open", fail_with(errno.EROFS))
    with pytest.raises(FsvitEdgeError, match="Read-only file system; nothing was changed"):
        atomic_write(path, b"new")
    assert "overwritten" not in caplog.text


def test_an_open_file_gets_the_data_at_its_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"one ")
        log.flush()
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{log.fileno()}")
        atomic_write(tmp_path / "link", b"two ")
        log.write(b"three")
    assert (tmp_path / "log").read_bytes() == b"one two three"


@pytest.mark.parametrize(
    ("step", "code", "told"),
    [("replace", errno.EBUSY, True), ("replace", errno.EIO, False), ("open", errno.EROFS, True)],
    ids=["mounted alone", "broken", "in a folder that may not be changed"],
)
def test_a_file_that_cannot_be_renamed_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a long old content")
    with monkeypatch.context() as patched:
        patched.setattr(tempfile if step == "open" else os, "mkstemp" if step == "open" else step, fail_with(code))
        for data in (b"new", b"a longer content than the one before"):
            if not told:
                with pytest.raises(FsvitEdgeError, match="nothing was changed"):
                    atomic_write(path, data)
                continue
            atomic_write(path, data)
            assert path.read_bytes() == data
        patched.setattr(os, "posix_fallocate", fail_with(errno.ENOSPC))
        with pytest.raises(FsvitEdgeError, match="nothing was changed"):
            atomic_write(path, bytes(100))
    assert len(path.read_bytes()) == (36 if told else 18)
    assert os.listdir(tmp_path) == ["file"]
    assert caplog.text.count("so it was overwritten in place") == told  # once


@pytest.mark.parametrize("old", [True, False])
def test_a_mounted_folder_gets_the_files_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    path, replace = tmp_path / "thing", os.replace
    path.mkdir()
    if old:
        make_folder(path, b"old")
        (path / "only in the old one").touch()

    def busy(source: Path, target: Path) -> None:
        if Path(source) == path:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    make_folder(path, b"new")
    assert sorted(os.listdir(path)) == ["data", MARKER]
    assert read(path) == b"new"
    assert os.listdir(tmp_path) == ["thing"]


@both
@pytest.mark.parametrize(
    ("module", "step", "code"),
    [(os, "chmod", errno.EPERM), (fcntl, "flock", errno.ENOLCK), (os, "fsync", errno.ENOSYS)],
    ids=["permissions", "locks", "flushes"],
)
def test_a_step_that_a_file_system_lacks_is_left_out_and_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: Make,
    module: object,
    step: str,
    code: int,
) -> None:
    monkeypatch.setattr(disk_steps, "_told", set())

    monkeypatch.setattr(module, step, fail_with(code))
    for data in (b"first", b"second"):
        make(tmp_path / "thing", data)
        assert read(tmp_path / "thing") == data
    assert os.listdir(tmp_path) == ["thing"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("is_visible", [True, False])
def test_a_name_as_long_as_a_disk_allows_can_be_written(tmp_path: Path, is_visible: bool) -> None:
    target = tmp_path / f"{'杯' * 83}.mp4"  # 253 bytes
    with TemporaryFile(target, is_visible) as file:
        assert file.path.name.endswith(".mp4") == is_visible
        file.path.write_bytes(b"data")
        file.replace_target()
    assert os.listdir(tmp_path) == [target.name]
    with pytest.raises(FsvitEdgeError, match="cannot be written: File name too long"):
        atomic_write(tmp_path / ("x" * 256), b"data")


# --------------------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("kind", ["folder", "existing file", "new file"])
def test_a_second_process_waits_for_a_lock_and_says_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    if kind == "existing file":
        path.write_bytes(b"kept")
    before = path.read_bytes() if path.is_file() else b""
    waits: list[str] = []
    with locked(path, on_wait=lambda: waits.append("first")):
        other = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX)  # the block has ended, so it is free

    def wait() -> None:
        waits.append("second")
        os.close(other)

    with locked(path, on_wait=wait):
        assert waits == ["second"]
    assert path.is_dir() or path.read_bytes() == before


def test_who_cannot_wait_for_long_is_told_that_the_lock_is_busy(tmp_path: Path) -> None:
    with (
        editing(tmp_path / "bank"),
        pytest.raises(BusyError, match=f"Another program is changing files in {tmp_path}; try again"),
        editing(tmp_path / "bank", limit_s=0.1),
    ):
        pass
    holding = editing(tmp_path / "bank")
    holding.__enter__()
    threading.Timer(0.2, holding.__exit__, (None, None, None)).start()
    with editing(tmp_path / "bank", limit_s=60.0):  # the control
        pass


def test_without_file_locks_only_a_required_lock_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOLCK))
    entered = False
    with locked(tmp_path, required=False):
        entered = True
    assert entered
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path):
        pass
    make_file(tmp_path / "thing", b"data")
    assert read(tmp_path / "thing") == b"data"


def test_a_link_and_the_file_it_leads_to_are_edited_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "link").symlink_to("shared/bank")
    with editing(tmp_path / "link"), pytest.raises(BusyError), editing(tmp_path / "shared" / "bank", limit_s=0.0):
        pass


@pytest.mark.parametrize("existed", [True, False])
def test_without_file_locks_a_file_that_another_program_changed_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOLCK))
    path = tmp_path / "bank"
    if existed:
        path.write_bytes(b"one")
    with editing(path) as check_unchanged:
        check_unchanged()  # the control
        with editing(path) as other:
            other()
            make_file(path, b"two")
        with pytest.raises(BusyError, match="bank was changed by another program meanwhile; nothing was saved"):
            check_unchanged()


def test_an_error_inside_a_lock_passes_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="inside"), locked(tmp_path, required=False):
        raise OSError("inside")


# -------------------------------------------------------------------------------------------------------- cache folder


@pytest.mark.parametrize("stated", [None, "", "relative/path", "/somewhere"])
def test_the_cache_is_in_xdg_cache_home_or_the_home_folder(
    stated: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if stated is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", stated)
    base = Path("/somewhere") if stated == "/somewhere" else tmp_path / ".cache"
    assert user_cache("kernels") == base / "fsvit-edge" / "kernels"


def test_without_a_home_folder_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(EnvironmentLacksError, match="export XDG_CACHE_HOME=/path"):
        user_cache("engines")


def test_a_cache_that_can_be_written_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_problem("speed") == ""
    monkeypatch.setattr(os, "access", lambda *_: False)
    remedy = "name a folder with: export XDG_CACHE_HOME=/path"
    assert cache_problem("speed") == f"there is no permission in {tmp_path}/fsvit-edge/speed; {remedy}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert cache_problem("speed").startswith("/proc/nowhere/fsvit-edge/speed cannot be made (")
