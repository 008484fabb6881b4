"""Labelings by a labeler without a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from label_album import write_album
from plain_labeler import PlainLabeler

from fsvit_edge.label import job
from fsvit_edge.label.labeler import LabelerOptions


@pytest.fixture(autouse=True)
def labeler(monkeypatch: pytest.MonkeyPatch) -> type[PlainLabeler]:
    monkeypatch.setattr(job, "Labeler", PlainLabeler)
    monkeypatch.setattr(PlainLabeler, "before", staticmethod(lambda: None))
    return PlainLabeler


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., job.LabelResult]:
    """Label sources into a folder."""

    def label(output: str, *sources: str, bank: str = "bank", **options: Any) -> job.LabelResult:
        of_labeler = {name: options.pop(name) for name in ("classes", "min_score") if name in options}
        said = options.pop("say", lambda _: None)
        shown = options.pop("on_progress", lambda _: None)
        paths = tuple(str(tmp_path / source) for source in sources)
        wanted = LabelerOptions(Path(bank), **of_labeler)
        format_name = options.pop("format", "jsonl")
        return job.label(job.LabelOptions(wanted, paths, tmp_path / output, format_name, **options), said, shown)

    return label


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Pictures and a video to label, some of them damaged."""
    write_album(tmp_path / "album")
    return tmp_path / "album"
