from collections.abc import Iterator
from pathlib import Path

import pytest
from served_page import Served, picture, serve, show

from fsvit_edge.fewshot.predictor import FewShotModel


@pytest.fixture(scope="module")
def loaded() -> Iterator[FewShotModel]:
    with FewShotModel.load(threads=1) as model:
        yield model


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    """A page without classes, and one frame."""
    with serve(loaded, tmp_path / "bank.safetensors") as one:
        show(one, picture())
        yield one
