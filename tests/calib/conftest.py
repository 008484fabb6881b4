from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from fsvit_edge.calib.calibration import Calibration


@pytest.fixture(scope="session")
def tiny_graphs(tiny_bundle: Path) -> dict[str, bytes]:
    from fsvit_edge.runtime.bundle import Bundle

    return Bundle.load(tiny_bundle).graphs


@pytest.fixture(scope="session")
def encoder(tiny_graphs: dict[str, bytes]) -> bytes:
    return tiny_graphs["encoder"]


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """(1, 48, 48, 3) with structure, as the encoder takes them."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, 6, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2) for _ in range(4)]


@pytest.fixture(scope="session")
def calibration(tiny_bundle: Path, pictures: Sequence[np.ndarray]) -> Calibration:
    from fsvit_edge.calib.ranges import collect_ranges
    from fsvit_edge.runtime.bundle import Bundle

    return collect_ranges(Bundle.load(tiny_bundle), [picture[0] for picture in pictures], "minmax")
