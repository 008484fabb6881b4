"""A result as one JSON object."""

import json
from typing import Any

import cv2
import numpy as np

from fsvit_edge.runtime.frame import Frame
from fsvit_edge.runtime.prediction import Prediction


def record(frame: Frame, prediction: Prediction) -> dict[str, Any]:
    """Say in JSON's terms what a frame shows.

    Returns:
        "sequence": index of the frame; "source"; "wall_time_s" and "monotonic_s": when it came, in seconds;
        "size_hw": its height and width in pixels; "classes": for each enrolled class its "name", "score" in [0, 1],
        "present", "area_px" and "box_xyxy" (left, top, right, bottom; right and bottom are exclusive; null without a
        pixel), area and box being those of the label map, whether the class is present or not; "latency_ms":
        milliseconds of each stage, "decode" first.
    """
    classes = []
    for index, name in enumerate(prediction.classes):
        pixels = (prediction.label_map == index + 1).view(np.uint8)
        x, y, width, height = cv2.boundingRect(pixels)
        classes.append(
            {
                "name": name,
                "score": round(float(prediction.scores[index]), 4),
                "present": bool(prediction.present[index]),
                "area_px": cv2.countNonZero(pixels),
                "box_xyxy": [x, y, x + width, y + height] if width else None,
            }
        )
    return {
        "sequence": frame.index,
        "source": frame.source,
        "wall_time_s": round(frame.wall_time_s, 3),
        "monotonic_s": round(frame.monotonic_s, 3),
        "size_hw": list(frame.image.shape[:2]),
        "classes": classes,
        "latency_ms": {
            stage: round(float(ms), 2) for stage, ms in {"decode": frame.decode_ms, **prediction.latency_ms}.items()
        },
    }


def json_line(frame: Frame, prediction: Prediction) -> bytes:
    """The same as one line of UTF-8 text."""
    return json.dumps(record(frame, prediction), ensure_ascii=False).encode() + b"\n"
