from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from served_page import Served, picture, serve, show

from fsvit_edge.fewshot.predictor import FewShotModel

expect.set_options(timeout=20_000)  # not the 5 s of the default: on a busy machine an answer can take longer


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
