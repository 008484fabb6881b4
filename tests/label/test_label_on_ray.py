"""Labelings on a local Ray of two processes: the same bytes as without, whatever is killed, and each picture once."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from label_album import Killed, contents, lines, scene
from plain_labeler import FickleLabeler, MortalLabeler, MortalRegister

from fsvit_edge.label import cluster, job, on_ray
from fsvit_edge.label.fill import Progress
from fsvit_edge.label.job import LabelResult
from fsvit_edge.label.output import PARQUET_NAME
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import write_image

pytest.importorskip("ray", reason='ray, of 500 MB, is not installed: pip install "fsvit-edge[ray]"')

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # of its own defaults

Run = Callable[..., LabelResult]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """A Ray that the tests share, because it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "usable_cores", lambda: 2)
        patch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
        patch.setenv("RAY_worker_niceness", "0")  # or other tests, of which there is one per core, leave it no time
        # Its processes import the labelers of the tests.
        here = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]))
        with cluster.connected(cluster.LOCAL):
            yield


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where processes of Ray note what they label, and find which of them are to be killed: none."""
    monkeypatch.setattr(job, "Labeler", MortalLabeler)
    folder = tmp_path / "notes"
    folder.mkdir()
    (tmp_path / "bank").write_text(str(folder))
    return folder


@pytest.fixture
def on_two(run: Run, tmp_path: Path, notes: Path) -> Run:
    """Label on Ray."""

    def label(output: str, *sources: str, **options: Any) -> LabelResult:
        return run(output, *sources, bank=str(tmp_path / "bank"), ray=cluster.LOCAL, **options)

    assert notes.is_dir()
    return label


@pytest.fixture
def in_process(run: Run, tmp_path: Path) -> Run:
    """Label in this process, by the same bank."""

    def label(output: str, *sources: str, **options: Any) -> LabelResult:
        return run(output, *sources, bank=str(tmp_path / "bank"), **options)

    return label


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Forty pictures in two folders, of which two cannot be read."""
    for index in range(38):
        write_image(tmp_path / "crowd" / ("sub" if index % 3 else ".") / f"{index}.png", scene(index))
    (tmp_path / "crowd" / "empty.jpg").touch()
    (tmp_path / "crowd" / "sub" / "gone.jpg").symlink_to("nowhere.jpg")
    return tmp_path / "crowd"


def seen(notes: Path) -> dict[str, int]:
    """How many pictures each process labeled."""
    return {file.name: len(file.read_text().split()) for file in notes.glob("seen-*")}


def rows(output: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [row for file in sorted((output / PARQUET_NAME).iterdir()) for row in pq.read_table(file).to_pylist()]


def labels(output: Path) -> dict[str, bytes]:
    """What is in an output beside the Parquet files, which a labeling in one process has not."""
    return {name: data for name, data in contents(output).items() if not name.startswith(PARQUET_NAME)}


@pytest.mark.usefixtures("crowd")
def test_two_processes_write_the_bytes_of_one_and_a_row_for_each_picture(
    on_two: Run, in_process: Run, notes: Path, tmp_path: Path
) -> None:
    shown: list[Progress] = []
    result = on_two("ray", "crowd", split="0.5/0.5", on_progress=shown.append)
    assert (result.labeled, result.failed) == (38, 2)
    assert (shown[-1].share, shown[-1].labeled, shown[-1].failed, shown[-1].here) == (1.0, 38, 2, 40)
    by = seen(notes)
    assert (len(by), sum(by.values())) == (2, 38)
    in_process("one", "crowd", split="0.5/0.5")
    assert labels(tmp_path / "ray") == labels(tmp_path / "one")
    assert len(lines(tmp_path / "ray" / "errors.jsonl")) == 2
    found = {row["path"]: row for row in rows(tmp_path / "ray")}
    assert len(found) == len(rows(tmp_path / "ray")) == 40
    assert found["empty.jpg"]["error"].endswith("empty.jpg is empty.")
    for one in lines(tmp_path / "ray" / "labels.jsonl")[1:]:
        row = found[one["path"]]
        assert (row["classes"], [row["height"], row["width"]]) == (one["classes"], one["size_hw"])
        assert (row["error"], row["bundle_sha256"], len(row["bank_sha256"])) == (None, "a" * 64, 8)


@pytest.mark.usefixtures("crowd")
def test_a_process_that_is_killed_loses_nothing_and_gives_nothing_twice(
    on_two: Run, in_process: Run, notes: Path, tmp_path: Path
) -> None:
    (notes / "death-1").touch()
    result = on_two("ray", "crowd")
    assert not (notes / "death-1").exists()
    assert (result.labeled, result.failed) == (38, 2)
    by = seen(notes)
    assert len(by) == 3  # of which one was killed
    assert sum(by.values()) > 38  # it had labeled one that was labeled again
    in_process("one", "crowd")
    assert labels(tmp_path / "ray") == labels(tmp_path / "one")
    assert len({row["path"] for row in rows(tmp_path / "ray")}) == len(rows(tmp_path / "ray")) == 40


@pytest.mark.slow(reason="waits until Ray has started processes again, a minute")
@pytest.mark.usefixtures("crowd")
def test_pictures_that_kill_every_process_end_the_call_and_it_goes_on_when_they_do_not(
    on_two: Run, in_process: Run, notes: Path, tmp_path: Path
) -> None:
    (notes / "plague").touch()
    with pytest.raises(FsvitEdgeError, match=r"A process of Ray ended 3 times while it labeled \S+ to \S+: one of"):
        on_two("ray", "crowd")
    assert not (tmp_path / "ray" / "labels.jsonl").exists()
    (notes / "plague").unlink()
    assert on_two("ray", "crowd").labeled == 38
    in_process("one", "crowd")
    assert labels(tmp_path / "ray") == labels(tmp_path / "one")


@pytest.mark.usefixtures("crowd")
def test_a_call_that_ends_in_the_middle_goes_on_from_the_files_that_it_wrote(
    on_two: Run, in_process: Run, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "MAX_ROWS", 8)

    def end(progress: Progress) -> None:
        if progress.here >= 20:
            raise Killed

    with pytest.raises(Killed):
        on_two("ray", "crowd", on_progress=end)
    kept = [row for row in rows(tmp_path / "ray") if row["error"] is None]
    assert 10 <= len(kept) < 38
    for file in notes.glob("seen-*"):
        file.unlink()
    said: list[str] = []
    assert on_two("ray", "crowd", say=said.append).earlier == len(kept)
    assert any(f"{len(kept)} pictures were labeled by an earlier command" in one for one in said)
    assert sum(seen(notes).values()) == 38 - len(kept)
    in_process("one", "crowd")
    assert labels(tmp_path / "ray") == labels(tmp_path / "one")
    assert on_two("ray", "crowd").elapsed_s is None  # complete


def test_a_call_again_labels_what_is_new_and_leaves_no_row_of_what_was(
    on_two: Run, in_process: Run, notes: Path, crowd: Path, tmp_path: Path
) -> None:
    on_two("ray", "crowd")
    write_image(crowd / "3.png", scene(5))
    write_image(crowd / "new.png", scene(4))
    write_image(crowd / "empty.jpg", scene(4))
    (crowd / "6.png").unlink()
    for file in notes.glob("seen-*"):
        file.unlink()
    result = on_two("ray", "crowd")
    assert (result.labeled, result.failed, sum(seen(notes).values())) == (39, 1, 3)
    in_process("one", "crowd")
    assert labels(tmp_path / "ray") == labels(tmp_path / "one")
    assert sorted(row["path"] for row in rows(tmp_path / "ray")) == sorted(
        str(path.relative_to(crowd)) for path in crowd.rglob("*") if not path.is_dir()
    )
    before = contents(tmp_path / "ray")
    assert on_two("ray", "crowd").elapsed_s is None
    assert contents(tmp_path / "ray") == before


@pytest.mark.usefixtures("crowd")
def test_pictures_of_a_store_are_labeled_as_those_of_a_folder(
    on_two: Run, in_process: Run, notes: Path, tmp_path: Path
) -> None:
    options = job.LabelOptions(
        job.LabelerOptions(tmp_path / "bank"),
        (f"file://{tmp_path}/crowd",),
        tmp_path / "store",
        "jsonl",
        ray=cluster.LOCAL,
    )
    assert notes.is_dir()
    result = job.label(options)
    assert (result.labeled, result.failed) == (38, 1)  # a link to nothing is not listed
    on_two("folder", "crowd")
    names = [name for name in labels(tmp_path / "store") if name != "errors.jsonl"]
    for name in names:
        assert labels(tmp_path / "store")[name] == labels(tmp_path / "folder")[name]
    assert in_process("one", "crowd").labeled == 38


@pytest.mark.usefixtures("crowd")
def test_the_parquet_files_alone_are_a_format(on_two: Run, tmp_path: Path) -> None:
    assert on_two("ray", "crowd/sub", format="parquet").labeled == 25
    assert sorted(path.name for path in (tmp_path / "ray").iterdir() if path.name[0] != ".") == [
        *("errors.jsonl", "label.json", "parquet")
    ]


@pytest.mark.usefixtures("crowd")
def test_a_labeling_in_this_process_is_not_continued_on_ray(on_two: Run, in_process: Run) -> None:
    in_process("one", "crowd")
    said: list[str] = []
    with pytest.raises(InputError, match="made without --ray, not with --ray"):
        on_two("one", "crowd", say=said.append)
    assert said == []  # nothing of processes that would label; Ray has been started before
    on_two("two", "crowd", say=said.append)
    assert said[-1] == "Note: 2 processes of Ray label, one per core."


def test_the_start_of_ray_is_not_in_the_time_that_tells_what_is_left() -> None:
    import pyarrow as pa

    shown: list[Progress] = []
    entries = [SimpleNamespace(name=str(index), problem="") for index in range(4)]
    kept = SimpleNamespace(labeled=())
    shards = SimpleNamespace(is_news=lambda *_: False)
    filling: Any = on_ray._Filling(shards, SimpleNamespace(entries=entries), entries, kept, shown.append, lambda: 2.0)  # type: ignore[arg-type]
    filling._started_s -= 100
    for path in "0", "1":
        filling._take(pa.table({"path": [path], "error": pa.array([None], pa.string())}))
    assert [2 <= one.elapsed_s < 50 for one in shown] == [True, True]
    assert [one.left_s is not None and one.left_s < 150 for one in shown] == [True, True]


def test_what_a_labeler_refuses_on_ray_is_said_in_its_words(
    run: Run, crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.label.labeler import Labeler
    from fsvit_edge.runtime.errors import ArtifactError

    assert crowd.is_dir()
    monkeypatch.setattr(job, "Labeler", Labeler)
    (tmp_path / "bad.safetensors").write_text("no bank")
    sentences = []
    for bank in ("bad.safetensors", "none.safetensors"):
        for ray in (None, cluster.LOCAL):
            with pytest.raises(ArtifactError) as error:
                run("out", "crowd", bank=str(tmp_path / bank), ray=ray)
            sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
    assert sentences[2] == sentences[3]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("crowd")
def test_a_register_that_ends_is_a_sentence_and_the_call_goes_on(
    on_two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "Register", MortalRegister)
        with pytest.raises(FsvitEdgeError, match=r"Ray failed: .*; the same command goes on\."):
            on_two("ray", "crowd")
    assert on_two("ray", "crowd").labeled == 38
    assert len(rows(tmp_path / "ray")) == 40


@pytest.mark.usefixtures("notes", "crowd")
def test_processes_that_would_not_answer_alike_end_the_call(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "Labeler", FickleLabeler)
    with pytest.raises(EnvironmentLacksError, match=r"The machines of Ray do not label alike: one has .*int8.*fp32"):
        run("out", "crowd", bank=str(tmp_path / "bank"), ray=cluster.LOCAL)


def test_ray_tells_its_makers_nothing() -> None:
    usage_lib = pytest.importorskip("ray._common.usage.usage_lib", reason="this Ray keeps it elsewhere")
    assert not usage_lib.usage_stats_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "1")
        assert usage_lib.usage_stats_enabled()  # the control
