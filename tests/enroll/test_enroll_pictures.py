from pathlib import Path

import numpy as np
import pytest
import skimage.data

from fsvit_edge import FewShotModel, InputError
from fsvit_edge.enroll.enroll_pictures import draw_report, enroll_pictures, support_warnings
from fsvit_edge.enroll.fit import Fit
from fsvit_edge.enroll.support_files import SupportPicture
from fsvit_edge.runtime.errors import ObjectTooSmallError

GOOD = Fit(0.71, 1.3, True)


SMALL = "The object covers less than 1 % of the picture; move"
EVERYTHING = "The guessed mask covers almost the whole picture"
ABSENT = "The class is not found in its own picture; give"


@pytest.mark.parametrize(
    ("cover", "fit", "is_guess", "starts"),
    [
        pytest.param(0.2, GOOD, False, [], id="good"),
        pytest.param(0.2, Fit(0.41, 1.99, True), False, [], id="just good enough"),
        pytest.param(0.2, Fit(0.9, 1.0, False), False, [ABSENT], id="absent"),
        pytest.param(0.2, Fit(0.9, 1.0, False), True, [ABSENT], id="unfound"),
        pytest.param(
            0.2, Fit(0.3, 2.6, True), False, ["The outline has 2.6 x the mask's area, so it includes"], id="wide"
        ),
        pytest.param(0.2, Fit(0.31, 0.9, True), False, ["The outline fits the mask poorly (IoU 0.31); go"], id="bad"),
        pytest.param(0.2, Fit(0.0, 0.0, True), False, ["The outline fits the mask poorly (IoU 0.00); go"], id="empty"),
        pytest.param(0.2, Fit(0.2, 3.0, True), True, [], id="the outline need not fit a guess"),
        pytest.param(0.005, GOOD, False, [SMALL], id="small"),
        pytest.param(0.99, GOOD, True, [EVERYTHING], id="a guess of everything"),
        pytest.param(0.99, GOOD, False, [], id="everything, as given"),
        pytest.param(0.005, Fit(0.9, 1.0, False), True, [SMALL, ABSENT], id="two at once"),
    ],
)
def test_warnings_say_what_is_wrong_and_what_to_do(cover: float, fit: Fit, is_guess: bool, starts: list[str]) -> None:
    warnings = support_warnings(cover, fit, is_guess)
    assert [warning[: len(start)] for warning, start in zip(warnings, starts, strict=True)] == starts
    assert all(warning.endswith(".") for warning in warnings)


def test_a_python_user_enrolls_pictures_and_reads_what_became_of_each(tmp_path: Path) -> None:
    cat = skimage.data.chelsea()
    mask = np.zeros(cat.shape[:2], np.bool_)
    mask[20:290, 60:400] = True
    pictures = [
        SupportPicture("masked", cat, mask=mask),
        SupportPicture("boxed", cat, box_xyxy=(60, 20, 400, 290)),
        SupportPicture("named", cat),
    ]
    with FewShotModel.load(engine="onnxruntime", threads=1) as model:
        report = enroll_pictures(model, "cat", pictures, level=0.4)
        expected = model.predict(cat)
        model.save_bank(tmp_path / "bank.safetensors")
        assert model.bank.level("cat") == 0.4
    assert (report.name, report.shots) == ("cat", 3)
    assert [one.picture.is_by_name for one in report.pictures] == [False, False, True]
    assert [one.picture for one in report.pictures] == pictures
    masked = report.pictures[0]
    assert np.array_equal(masked.mask, mask)
    assert masked.mask_cover == pytest.approx(mask.mean())
    assert masked.kept_tokens > 1
    assert masked.fit.is_present
    assert np.array_equal(masked.prediction.label_map, expected.label_map)
    assert draw_report(report).shape[1] > 3 * 451  # three in one row


def test_a_thing_too_small_is_refused_by_the_name_of_its_picture() -> None:
    speck = np.zeros((600, 600), np.bool_)
    speck[301, 301] = True
    with FewShotModel.load(engine="onnxruntime", threads=1) as model:
        with pytest.raises(ObjectTooSmallError, match=r"^far\.png: the object is too small"):
            enroll_pictures(model, "cup", [SupportPicture("far.png", np.full((600, 600, 3), 90, np.uint8), mask=speck)])
        with pytest.raises(InputError, match="at least one picture"):
            enroll_pictures(model, "cup", [])
        assert model.classes == ()
