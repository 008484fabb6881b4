"""From pictures to what frames are compared with: supports of a class, its negatives, and the empty scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport, ClassSupports, Negative
from fsvit_edge.fewshot.decide import negative_margin, subtract_negatives
from fsvit_edge.fewshot.names import check_name, quoted, resolved
from fsvit_edge.fewshot.network import ExportedNetwork
from fsvit_edge.fewshot.outlines import objectness_weight
from fsvit_edge.fewshot.scene import SceneReport, decode_frame, encode_frame
from fsvit_edge.fewshot.support_masks import (
    Box,
    Image,
    Mask,
    check_support,
    mask_from_box,
    support_masks,
    support_window,
    thing_in_box,
    thing_of_name,
)
from fsvit_edge.runtime.engines.base import Array, ResidentTensor, on_host
from fsvit_edge.runtime.errors import InputError, ObjectTooSmallError
from fsvit_edge.runtime.pictures import thumbnail
from fsvit_edge.runtime.postprocess import Maps
from fsvit_edge.runtime.preprocess import check_rgb, resize_nearest
from fsvit_edge.runtime.presence_level import check_level

_THUMBNAIL_PX = 96
_MAX_LOO_SUPPORTS = 5
"""Supports that score a new picture: enough for a mean, and the hundredth picture costs no more than the sixth."""

Encoded = Mapping[str, Array | ResidentTensor]
"""What `ExportedNetwork.encode` returned, or a copy of it on the host."""


@dataclass(frozen=True)
class Enrollment:
    """What one call of `FewShotModel.enroll` learned.

    Attributes:
        name: The class, as the bank has it.
        shots: Supports (enrolled pictures) that the class has now.
        mask_cover: Share of each new picture that its mask, given or guessed, covers, in [0, 1].
        kept_tokens: Image tokens of each new picture that the mask keeps, at least 1.
        masks: (H, W) bool for each new picture, at its size: the mask used, whether given, made from a box or guessed.
    """

    name: str
    shots: int
    mask_cover: tuple[float, ...]
    kept_tokens: tuple[int, ...]
    masks: tuple[Mask, ...] = field(compare=False, repr=False)


def enroll_class(
    network: ExportedNetwork,
    bank: SupportBank,
    name: str,
    images: Sequence[Image],
    masks: Sequence[Mask | None] | None,
    boxes: Sequence[Box | None] | None,
    level: float | None,
    is_sharp: bool,
) -> Enrollment:
    """Add pictures to a class of a bank, see `FewShotModel.enroll`; `is_sharp` uses objectness."""
    name = resolved(name, bank.classes)
    check_name(name)
    if level is not None:
        check_level(level)
    if name not in bank.classes:
        network.check_ways(len(bank.classes) + 1)
    given = support_masks(name, images, masks, boxes, lambda image, box: mask_of_box(network, image, box, is_sharp))
    others = list(bank.supports(name)) if name in bank.classes else []
    supports: list[CachedSupport] = []
    used: list[Mask] = []
    for index, (image, mask) in enumerate(zip(images, given, strict=True)):
        support, seen = make_support(network, image, mask, [*others, *supports], is_sharp)
        if support.kept.shape[1] == 1:
            raise ObjectTooSmallError(f"Picture {index + 1} of {quoted(name)}", index)
        supports.append(support)
        used.append(seen)
    bank.add(name, supports)
    if level is not None:
        bank.set_level(name, level)
    kept = tuple(support.kept.shape[1] - 1 for support in supports)
    covers = tuple(float(mask.mean()) for mask in used)
    return Enrollment(name, len(bank.supports(name)), covers, kept, tuple(used))


def mask_of_box(network: ExportedNetwork, image: Image, box_xyxy: Box, is_sharp: bool) -> Mask:
    """Make a mask of the object in a box, see `FewShotModel.mask_of_box`."""
    check_rgb(image, "The picture")
    ellipse = mask_from_box((image.shape[0], image.shape[1]), box_xyxy)
    if not is_sharp:
        return ellipse
    objectness = network.objectness_of(network.encode(image), image)
    assert objectness is not None
    return thing_in_box(objectness, ellipse, box_xyxy)


def make_support(
    network: ExportedNetwork,
    image: Image,
    mask: Mask | None,
    others: Sequence[CachedSupport],
    is_sharp: bool,
    encoded: Encoded | None = None,
) -> tuple[CachedSupport, Mask]:
    """Encode and enroll one (H, W, 3) uint8 RGB picture with its (H, W) mask, or None if only the name is known.

    The class's other supports score the picture; `is_sharp` uses objectness, also to find an object by its name. A
    picture that is encoded already is not encoded again, only a window around a small object in it.

    Returns:
        The support, and the mask that was used, (H, W) bool at the picture's size.
    """
    if encoded is None:
        encoded = network.encode(image)
    objectness = network.objectness_of(encoded, image) if is_sharp else None
    loo_score = _score_by(network, others, encoded["tokens"]) if others else None
    enrolled = None
    if mask is None:
        guess, enrolled = _guess_mask(network, encoded, objectness)
        used = resize_nearest(guess, (image.shape[0], image.shape[1])) != 0
    else:
        used = np.asarray(mask) != 0
    weight = 0.0 if objectness is None else objectness_weight(objectness, used)
    window = support_window(used, network.manifest.support_crop)
    if window is not None:
        image = np.ascontiguousarray(image[window])
        enrolled = network.run_enroll(network.encode(image), used[window])
    elif enrolled is None:
        enrolled = network.run_enroll(encoded, used)
    keep = enrolled["kept_mask"][0] > 0
    small = thumbnail(image, _THUMBNAIL_PX)
    support = CachedSupport(
        kept=enrolled["support"][0][:, keep].astype(np.float16),
        pooled=enrolled["pooled"][0].astype(np.float16),
        pooled_mask=enrolled["pooled_mask"][0] > 0,
        thumbnail=small,
        thumbnail_mask=resize_nearest(enrolled["used_mask"][0], (small.shape[0], small.shape[1])) != 0,
        has_mask=mask is not None,
        loo_score=loo_score,
        objectness_weight=weight,
    )
    return support, used


def make_negative(
    network: ExportedNetwork, supports: ClassSupports, image: Image, mask: Mask, encoded: Encoded | None = None
) -> tuple[Negative, bool]:
    """Return what is kept of a picture that is not a class, and whether its mask was too small to be used.

    Args:
        network: The graphs.
        supports: Of the class.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W), not 0 on what is not the class; the whole picture is used if it is empty, or so small that it
            keeps no token.
        encoded: The picture, encoded already, on the host.
    """
    if encoded is None:
        encoded = copy_on_host(network.encode(image))
    whole = np.ones(image.shape[:2], np.bool_)
    for tried in (mask, whole) if np.any(mask) else (whole,):
        check_support("the negative", image, tried)
        support, _ = make_support(network, image, tried, (), is_sharp=False, encoded=encoded)
        if support.kept.shape[1] > 1:
            break
    found = network.compare(encoded["tokens"], (supports,), ((support,),))
    margin = negative_margin(found.scores, found.foreground())
    return Negative(support, margin), bool(np.any(mask)) and tried is whole


def copy_on_host(encoded: Encoded) -> dict[str, Array]:
    """Copy what the encoder returned to the host: its next run may use the same memory."""
    return {name: on_host(tensor) for name, tensor in encoded.items()}


def learn_scene(network: ExportedNetwork, bank: SupportBank, images: Sequence[Image]) -> SceneReport:
    """Add pictures of the empty scene to a bank and score its classes on them, see `FewShotModel.learn_scene`."""
    given = list(images)
    if not given:
        raise InputError("Give at least one picture of the empty scene.")
    for image in given:
        check_rgb(image, "A picture of the empty scene")
    frames = [encode_frame(image, network.manifest.image_size) for image in given]
    bank.set_scene((*bank.scene, *frames))
    _score_frames(network, bank, [frame for frame in bank.scene if frame in frames])
    highest = {name: bank.highest_in_scene(name) for name in bank.classes}
    answering = tuple(name for name in bank.classes if highest[name] > bank.own_level(name))
    return SceneReport(len(bank.scene), highest, answering, bank.found_in_scene)


def score_scene(network: ExportedNetwork, bank: SupportBank, is_later: bool) -> None:
    """Score the classes on all pictures of the empty scene on which they have no score.

    If that is for later, only refuse pictures that cannot be read, with an ArtifactError: they must fail the change,
    not the run.
    """
    if not is_later:
        _score_frames(network, bank, bank.scene)
        return
    for frame in bank.unscored_frames:
        decode_frame(frame)


def score_next(network: ExportedNetwork, bank: SupportBank) -> bool:
    """Score the classes on the oldest picture of the empty scene that was left for later; False if there is none."""
    left = bank.unscored_frames[:1]
    _score_frames(network, bank, left)
    return bool(left)


def _score_frames(network: ExportedNetwork, bank: SupportBank, frames: Sequence[bytes]) -> None:
    for frame in frames:
        names = bank.unscored(frame)
        if not names:
            continue
        known = bank.subset(names)
        levels = np.array([bank.own_level(name) for name in names], np.float32)
        tokens = network.encode(decode_frame(frame))["tokens"]
        found = network.compare(tokens, known.class_supports, known.negative_supports)
        # What a negative already excludes must not raise the level as well.
        judged = {way for way, _ in known.negative_margins}
        wanted = np.array([way in judged or way >= len(names) for way in range(len(found.scores))], np.bool_)
        scores = subtract_negatives(found.scores, found.foreground(wanted), levels, known.negative_margins)[0]
        for name, score in zip(names, np.clip(scores, 0, 1).tolist(), strict=True):
            bank.add_scene_score(name, frame, score)


def _guess_mask(network: ExportedNetwork, encoded: Encoded, objectness: Maps | None) -> tuple[Mask, dict[str, Array]]:
    """Find the object by its name alone: the encoder's own pseudo-mask, or what objectness marks where they agree.

    Returns the mask, (S, S) bool at the encoder's input size, and what the enroll graph makes of the picture with it.
    """
    # Copied to the host once, because the enroll graph may run twice.
    inputs = {spec.name: on_host(encoded[spec.name]) for spec in network.enroll.inputs if spec.name in encoded}
    enrolled = network.run_enroll(inputs, None)
    guess = np.asarray(enrolled["used_mask"][0] != 0, np.bool_)
    if objectness is None:
        return guess, enrolled
    guess = thing_of_name(objectness, guess)
    return guess, network.run_enroll(inputs, guess)


def _score_by(network: ExportedNetwork, supports: Sequence[CachedSupport], tokens: Array | ResidentTensor) -> float:
    """Return P(present), in [0, 1], of a class of some of these supports, evenly chosen, in an encoded picture."""
    chosen = tuple(supports[:: -(-len(supports) // _MAX_LOO_SUPPORTS)])
    score = float(network.compare(tokens, (chosen,)).scores[0])
    return min(max(0.0, score), 1.0)  # rounding may lift a mean of ones above 1
