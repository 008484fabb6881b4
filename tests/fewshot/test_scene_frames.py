"""Pictures of the empty scene, and what their number promises."""

import numpy as np
import pytest

from fsvit_edge.fewshot.scene import decode_frame, encode_frame, false_alarm_bound
from fsvit_edge.runtime.errors import ArtifactError


def test_a_frame_is_kept_as_a_small_picture_of_the_encoders_size() -> None:
    y, x = np.mgrid[:120, :160]
    image = np.stack([x, y, x + y], axis=2).astype(np.uint8)

    data = encode_frame(image, 64)
    decoded = decode_frame(data)

    assert decoded.shape == (64, 64, 3)
    assert decoded.dtype == np.uint8
    assert len(data) < 64 * 64 * 3 / 2
    assert decoded[32, 8, 0] < decoded[32, 50, 0]  # red still grows to the right, so the channels kept their order
    assert decoded[8, 32, 1] < decoded[50, 32, 1]


@pytest.mark.parametrize("data", [b"no picture", b""])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(
        ArtifactError, match="of the empty scene or to judge, cannot be read; use a copy of the bank, or learn"
    ):
        decode_frame(data)


@pytest.mark.parametrize(("frames", "about"), [(0, 1.0), (10, 0.26), (30, 0.095), (300, 0.01)])
def test_the_bound_is_the_rule_of_three(frames: int, about: float) -> None:
    assert false_alarm_bound(frames) == pytest.approx(about, rel=0.02)


def test_the_bound_holds_for_as_many_cases_as_it_says() -> None:
    rng = np.random.default_rng(0)
    highest = rng.random((4000, 20)).max(axis=1)  # of uniform scores, so 1 - highest is the true share above
    assert np.mean(1 - highest <= false_alarm_bound(20)) == pytest.approx(0.95, abs=0.015)
