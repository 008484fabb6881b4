"""The empty scene: pictures of what the camera sees when no enrolled thing is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image

from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.preprocess import resize_image
from fsvit_edge.runtime.presence_level import score_text

MAX_SCENE_FRAMES = 32
_JPEG_QUALITY = 92
_MAX_FRAME_PX = 4096  # a JPEG of 200 kB can have a side of 65,535, and take 12 GB
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class SceneReport:
    """What `FewShotModel.learn_scene` found.

    Attributes:
        frames: Pictures of the scene that the bank has now.
        highest: For each class its highest score on them, in [0, 1].
        answering: The classes that were present in one of them by their own level. It is raised, so they may be missed,
            unless it was set by hand; reject what they mistake, or remove it from view.
        still_found: Those that are present in one of them even now: their level was set by hand, or they score 1 there,
            and no level is above that.
    """

    frames: int
    highest: Mapping[str, float]
    answering: tuple[str, ...]
    still_found: tuple[str, ...]

    def warning(self, name: str, is_level_by_hand: bool) -> str:
        """What it means for a class that it is in `answering`; what to do is to be added, so it has no period."""
        if name not in self.still_found:
            effect = "so it may be missed"
        elif is_level_by_hand:
            effect = "and its level was set by hand, so it will be found there"
        else:
            effect = "as high as a score can be, so no level helps and it will be found there"
        return f"{name}: the empty scene scores {score_text(self.highest[name])}, {effect}"


def encode_frame(image: Image, size: int) -> bytes:
    """Return a picture as a JPEG of the encoder's input size."""
    small = resize_image(image, size)
    is_done, data = cv2.imencode(".jpg", small[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    assert is_done
    return data.tobytes()


def decode_frame(data: bytes) -> Image:
    """Return the (S, S, 3) uint8 RGB picture of `encode_frame`; an ArtifactError if the data is no picture."""
    decoded = decode_jpeg(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise ArtifactError(
            "A picture that the bank keeps, of the empty scene or to judge, cannot be read; use a copy of the bank, or "
            "learn the scene again."
        )
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)


def decode_jpeg(data: bytes, flags: int) -> npt.NDArray[np.uint8] | None:
    """Decode a picture that a bank keeps, as OpenCV does; None if it is no JPEG, or larger than any that we write."""
    try:
        width, height = PIL.Image.open(BytesIO(data), formats=("JPEG",)).size
    except Exception:  # Pillow answers damaged data with many kinds of errors
        return None
    if max(width, height) > _MAX_FRAME_PX:
        return None
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if decoded is None else np.asarray(decoded, np.uint8)


def read_jpeg(path: Path, tensors: Mapping[str, npt.NDArray[Any]], key: str) -> bytes:
    """Return the bytes of a picture in a bank's file; an ArtifactError if the tensor is missing or not bytes."""
    frame = tensors.get(key)
    if frame is None or frame.dtype != np.uint8 or frame.ndim != 1:
        raise ArtifactError(f"Bank {path} is damaged: tensor {key} is missing or not the bytes of a JPEG.")
    return frame.tobytes()


def false_alarm_bound(frames: int) -> float:
    """Return an upper bound on the share of frames on which a class scores above all of the scene, in (0, 1].

    If the frames are alike and independent, the share is below 1 - 0.05^(1/n), about 3/n, in 95 of 100 cases (the rule
    of three).

    Args:
        frames: Pictures of the scene, n.
    """
    return 1.0 if frames == 0 else 1 - (1 - _CONFIDENCE) ** (1 / frames)
