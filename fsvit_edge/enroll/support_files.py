"""Read support pictures from what a user has: files, folders with or without masks, frames of a video."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.support_masks import Box, counted
from fsvit_edge.live.sources.base import SourceOptions
from fsvit_edge.live.sources.files import VIDEO_SUFFIXES, its_videos, open_file
from fsvit_edge.live.uri import SourceAddress, printable
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.masks import read_mask
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, by_stem, full_size, pictures_in, read_image

MAX_PICTURES = 100
"""Limit per enrollment: all are in memory at once, and a few-shot class gains nothing from more."""

_ROUNDING = 1e-6  # frames: a time computed as frame number / rate must find that frame


@dataclass(frozen=True)
class SupportPicture:
    """A picture to enroll."""

    source: str  # where it was read from, safe to print
    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    mask: npt.NDArray[np.bool_] | None = None  # (H, W), True somewhere; None where none was given
    box_xyxy: Box | None = None  # in pixels, inside the picture, right and bottom exclusive; None where none was given

    @property
    def is_by_name(self) -> bool:
        """Whether neither a mask nor a box was given, so that the mask is guessed from the name alone."""
        return self.mask is None and self.box_xyxy is None


def parse_box(text: str) -> Box:
    """Convert "left,top,width,height" in pixels to left, top, right and bottom, right and bottom exclusive."""
    if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5}){3}", text):
        raise InputError(f"--box {text!r:.60} is not a box; give left,top,width,height in pixels, as in 40,30,120,90.")
    left, top, width, height = map(int, text.split(","))
    if not width or not height:
        raise InputError(f"--box {text} has no area; give left,top,width,height in pixels.")
    return left, top, left + width, top + height


def read_supports(
    inputs: Sequence[Path],
    masks: Sequence[Path] = (),
    boxes: Sequence[Box] = (),
    frames: Sequence[int] = (),
    seconds: Sequence[float] = (),
) -> list[SupportPicture]:
    """Read the given pictures and frames, in the order given.

    Args:
        inputs: Pictures, folders of pictures (in natural order), folders with images/ and masks/ of the same stems,
            and at most one video.
        masks: The mask of each picture, or none.
        boxes: The box around the object in each picture, or none; not together with masks.
        frames: Numbers of the video's frames that show the object, from 0.
        seconds: Or their times in seconds from the start of the video; not together with frames.

    Raises:
        InputError: A file or option cannot be used, or two of them contradict each other.
        SourceError: The video does not exist or cannot be decoded.
    """
    if masks and boxes:
        raise InputError("Give --mask or --box, not both.")
    if frames and seconds:
        raise InputError("Choose the frames of a video by --frame or by --at, not both.")
    if any(not 0 <= moment < math.inf for moment in seconds):
        raise InputError("--at must be a time in seconds from the start of the video, 0 or more.")
    moments = len(frames) + len(seconds)
    videos = [path for path in inputs if _is_video(path, moments)]
    if len(videos) > 1:
        raise InputError(f"{videos[0]} and {videos[1]} are both videos; enroll from one at a time.")
    if moments and not videos:
        raise InputError("--frame and --at are for a video, but no video is given; leave them out.")
    files: list[tuple[Path, Path | None]] = []  # each with its mask
    for path in inputs:
        if path in videos:
            files += [(path, None)] * moments
        else:
            files += _of_folder(path) if path.is_dir() else [(path, None)]
    if any(mask for _, mask in files) and (masks or boxes):
        raise InputError("A folder with masks/ has its own masks; enroll it without --mask and --box.")
    for option, several, given in (("--mask", "masks", masks), ("--box", "boxes", boxes)):
        if given and len(given) != len(files):
            numbers = f"{counted(len(files), 'picture', 'pictures')} but {counted(len(given), option[2:], several)}"
            raise InputError(f"{numbers}: give one {option} for each picture, or none.")
    if len(files) > MAX_PICTURES:
        raise InputError(f"{len(files)} pictures are too many; give at most {MAX_PICTURES} at a time, the best ones.")
    shown = iter(_read_frames(videos[0], frames, seconds) if videos else ())
    pictures = []
    for index, (path, own_mask) in enumerate(files):
        picture = next(shown) if path in videos else SupportPicture(printable(str(path)), read_image(path))
        mask = masks[index] if masks else own_mask
        if mask is not None:
            picture = replace(picture, mask=read_mask(mask, (picture.image.shape[0], picture.image.shape[1])))
        if boxes:
            size_hw = picture.image.shape[:2] if path in videos else full_size(path)
            picture = replace(picture, box_xyxy=_inside(boxes[index], picture, size_hw))
        pictures.append(picture)
    return pictures


def _is_video(path: Path, moments: int) -> bool:
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES or path.is_dir():
        return False
    if not moments and suffix != ".gif":  # a GIF may also be a picture
        raise InputError(f"{path} is a video; choose a frame with --frame NUMBER, from 0, or --at SECONDS.")
    return moments > 0


def _of_folder(folder: Path) -> list[tuple[Path, Path | None]]:
    """The pictures of a folder with their masks; without images/ and masks/, those in the folder itself, bare."""
    try:
        images, masks = folder / "images", folder / "masks"
        if not images.is_dir() and not masks.is_dir():
            found: list[tuple[Path, Path | None]] = [(path, None) for path in pictures_in(folder)]
        elif images.is_dir() and masks.is_dir():
            mask_of = by_stem(pictures_in(masks))
            found = [(path, mask_of.get(stem)) for stem, path in by_stem(pictures_in(images)).items()]
        else:
            has, lacks = ("images", "masks") if images.is_dir() else ("masks", "images")
            raise InputError(
                f"The folder {folder} has {has}/ but no {lacks}/; add it, or give the folder of the pictures itself."
            )
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    if not found:
        where = images if images.is_dir() else folder
        videos = its_videos(where)
        raise InputError(
            f"The folder {where} contains no picture ({', '.join(PICTURE_SUFFIXES)}){videos}"
            f"{' and one of its frames with --frame NUMBER' if videos else ''}."
        )
    bare = [path for path, mask in found if mask is None]
    if masks.is_dir() and bare:
        raise InputError(
            f"{len(bare)} of the {len(found)} pictures in {images} have no mask, first {bare[0].name}; add "
            f"{masks / bare[0].stem}.png, or remove the picture."
        )
    return found


def _read_frames(video: Path, frames: Sequence[int], seconds: Sequence[float]) -> list[SupportPicture]:
    """Read frames of a video in one pass; seeking is faster, but in many encodings it lands on another frame."""
    name = printable(str(video))
    with open_file(SourceAddress("path", str(video), name), SourceOptions()) as source:
        if seconds and source.fps is None:
            raise InputError(f"The video {name} does not state its frame rate; choose frames with --frame.")
        fps = source.fps or 1.0
        numbers = [*frames, *(int(time * fps + _ROUNDING) for time in seconds)]
        found: dict[int, SupportPicture] = {}
        count = 0
        for frame in source:
            count += 1
            if frame.index in numbers:
                found[frame.index] = SupportPicture(f"{name}, frame {frame.index}", frame.image)
            if found.keys() == set(numbers):
                return [found[number] for number in numbers]
        missing = min(set(numbers) - found.keys())
        if source.problem:
            what = f"at {seconds[numbers.index(missing)]:g} s" if seconds else str(missing)
            raise InputError(f"There is no frame {what}: {source.problem}")
        if seconds:
            time = seconds[numbers.index(missing)]
            raise InputError(f"The video {name} ends at {count / fps:.2f} s; it has no frame at {time:g} s.")
        raise InputError(f"The video {name} has {count} frames and no frame {missing}; the first is frame 0.")


def _inside(box: Box, picture: SupportPicture, size_hw: Sequence[int]) -> Box:
    """The box in pixels of a picture that may have been read smaller than the size in which the box was measured."""
    left, top, right, bottom = box
    height, width = size_hw
    if right > width or bottom > height:
        raise InputError(
            f"The box {left},{top},{right - left},{bottom - top} reaches outside {picture.source}, which is "
            f"{width}x{height} pixels; give left,top,width,height."
        )
    read_height, read_width = picture.image.shape[:2]
    return (
        left * read_width // width,
        top * read_height // height,
        -(-right * read_width // width),
        -(-bottom * read_height // height),
    )
