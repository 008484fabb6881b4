"""Draw one rejection in four panels: python tools/false_alarm_picture.py docs/pictures/not-it.jpg.

A clock is enrolled, the moon is taken for it, one part of the moon's photograph is rejected, and another part and the
clock are answered. The photographs are those of scikit-image, which the extra `dev` brings.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from fsvit_edge import FewShotModel, Prediction
from fsvit_edge.fewshot.overlay import draw
from fsvit_edge.fewshot.picture_sheet import captioned, sheet
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.runtime.pictures import write_image

PANEL_PX = (320, 240)


def main(output: Path) -> None:
    """Write the picture as a JPEG."""
    clock, moon = (np.repeat(gray[..., None], 3, axis=2) for gray in (skimage.data.clock(), skimage.data.moon()))
    rejected, elsewhere, mirrored = _panel(moon[:300, :400]), _panel(moon[212:, 112:]), _panel(clock[:, ::-1])
    with FewShotModel.load() as model:
        model.enroll("clock", [_panel(clock)])
        before, elsewhere_before = model.predict(rejected), model.predict(elsewhere)
        model.reject("clock", rejected)
        after, clock_after = model.predict(elsewhere), model.predict(mirrored)
    change = f"{_answer(elsewhere_before)} before, {_answer(after)} now"
    panels = [
        captioned(_panel(clock), [("1. Enrolled without a mask: clock", None)]),
        captioned(draw(rejected, before), [(f"2. Part of the moon: {_answer(before)}. Not it!", None)]),
        captioned(draw(elsewhere, after), [(f"3. Another part: {change}", None)]),
        captioned(draw(mirrored, clock_after), [(f"4. The clock, mirrored: {_answer(clock_after)}", None)]),
    ]
    write_image(output, sheet([panels]))
    print(f"Wrote {output}")


def _panel(image: Image) -> Image:
    return np.asarray(cv2.resize(image, PANEL_PX, interpolation=cv2.INTER_AREA), np.uint8)


def _answer(prediction: Prediction) -> str:
    (result,) = prediction.results
    return f"{'present' if result.is_present else 'absent'}, {result.score:.2f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
