"""`label --ray`: with or without an address, what does not go with it, and the labels of one process."""

import os
import re
import sys
from pathlib import Path

import pytest
from command_line import Cli, Result, contents, is_one_error, spawn

from fsvit_edge.label import job
from fsvit_edge.label.job import LabelOptions, LabelResult

WITHOUT_RAY = "import sys; sys.modules.update(ray=None, pyarrow=None); from fsvit_edge.cli.main import main; main()"


@pytest.mark.parametrize(
    ("line", "address", "sources"),
    [
        ("label album -o out --format jsonl --ray", "local", ["album"]),
        ("label --ray album -o out --format jsonl", "local", ["album"]),
        ("label --ray -o out --format jsonl album", "local", ["album"]),
        ("label album --ray auto -o out --format jsonl", "auto", ["album"]),
        ("label --ray head-1.x:6379 album -o out --format jsonl", "head-1.x:6379", ["album"]),
        ("label --ray ray://head:10001 album -o out --format jsonl", "ray://head:10001", ["album"]),
        ("label --ray=auto album -o out --format jsonl", "auto", ["album"]),
        ("label --ray s3://bucket/auto -o out --format jsonl", "local", ["s3://bucket/auto"]),
        ("label album -o out --format jsonl", None, ["album"]),
    ],
)
def test_an_address_may_follow(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, address: str | None, sources: list[str]
) -> None:
    seen: list[LabelOptions] = []

    def note(options: LabelOptions, *_: object) -> LabelResult:
        seen.append(options)
        return LabelResult(1, 0, {}, {}, {}, 0, 1.0)

    monkeypatch.setattr(job, "label", note)
    assert cli(line).code == 0
    assert [(one.ray, list(one.sources)) for one in seen] == [(address, sources)]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("label video.mp4 --every 1 -o out --format jsonl --ray", "--every and --ray do not go together"),
        ("label album -o out --format parquet", "--format parquet is written with --ray"),
        ("label album -o s3://bucket/out --format jsonl --ray", "--output must be a folder on this machine"),
        ("label s3://key:secret@bucket/x -o out --format jsonl", "s3://bucket/x is no path; add --ray"),
        ("label album -o out --format voc --ray", "--format must be one of coco, yolo, masks, cvat, jsonl, parquet"),
    ],
)
def test_an_error_is_one_sentence(cli: Cli, folder: Path, line: str, text: str) -> None:
    result = cli(line)
    is_one_error(result, 2, text)
    assert "secret" not in result.err
    assert not (folder / "out").exists()


def test_a_machine_without_ray_is_told_how_to_install_it(folder: Path) -> None:
    done = without_ray(folder, "label", "album", "-o", "out", "--format", "jsonl", "--ray")
    is_one_error(done, 3, '--ray needs Ray, which is not installed; try: pip install "fsvit-edge[ray]".')
    store = without_ray(folder, "label", "file:///x", "-o", "out", "--format", "jsonl", "--ray")
    is_one_error(store, 3, 'file:///x needs pyarrow, which is not installed; try: pip install "fsvit-edge[ray]".')
    assert not (folder / "out").exists()


def without_ray(folder: Path, *words: str) -> Result:
    return spawn(*words, cwd=folder, command=(sys.executable, "-c", WITHOUT_RAY))


def test_ray_writes_the_labels_of_one_process(cli: Cli, folder: Path) -> None:
    pytest.importorskip("ray", reason='ray, of 500 MB, is not installed: pip install "fsvit-edge[ray]"')
    line = "label album cat1.jpg cat2.png broken.jpg --format coco --threads 1"
    done = spawn(*line.split(), "-o", "ray", "--ray", cwd=folder, env={**os.environ, "RAY_worker_niceness": "0"})
    assert done.code == 1, done.err
    assert done.out.startswith("Labeled 5 pictures in ")
    assert done.err.splitlines()[-1].startswith("1 file could not be labeled; see ray/errors.jsonl")
    assert all(re.match("Note: |[0-9.]+%: |1 file", one) for one in done.err.splitlines()), done.err  # nothing of Ray's
    assert cli(f"{line} -o one").code == 1
    of_one, of_ray = contents(folder / "one"), contents(folder / "ray")
    assert {name: data for name, data in of_one.items() if name[0] != "."}.items() <= of_ray.items()
    assert "parquet/000001.parquet" in of_ray
