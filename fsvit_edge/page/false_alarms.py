"""What the page does against false alarms: the empty scene, and "this is not it"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fsvit_edge.fewshot.prediction import Rejection
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.scene import SceneReport, false_alarm_bound
from fsvit_edge.fewshot.support_masks import Image, Mask
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

SCENE_FRAMES = 16
SCENE_S = 4.0


@dataclass(frozen=True)
class SceneAnswer(SceneReport):
    """What learning the empty scene found; scores are rounded.

    Attributes:
        false_alarm_bound: Share of frames like these, at most, in which a class is falsely found, in 95 of 100 cases.
        warnings: Sentences about the classes in `answering`, and what to do.
    """

    false_alarm_bound: float
    warnings: tuple[str, ...]


def learn_scene(
    update: Callable[[Callable[[FewShotModel], SceneAnswer]], SceneAnswer], images: Sequence[Image]
) -> SceneAnswer:
    """Learn the empty scene, one frame in each request, so that the run shows frames in between.

    Args:
        update: `LiveModel.update`.
        images: (H, W, 3) uint8 RGB frames, at least one.

    Raises:
        FsvitEdgeError: A request failed. The frames before it stay learned, and the sentence says how many.
    """
    answers: list[SceneAnswer] = []
    try:
        for image in images:
            answers.append(update(partial(_learn_frame, image=image)))  # noqa: PERF401 - their number tells how far it came
    except FsvitEdgeError as error:
        if not answers:
            raise
        kept = f"Only {len(answers)} of {len(images)} pictures of the empty scene were learned"
        raise FsvitEdgeError(f"{kept}: {str(error)[0].lower()}{str(error)[1:]}") from error
    return answers[-1]


def _learn_frame(model: FewShotModel, image: Image) -> SceneAnswer:
    report = model.learn_scene([image])
    highest = {name: round(score, 4) for name, score in report.highest.items()}
    return SceneAnswer(
        **vars(replace(report, highest=highest)),
        false_alarm_bound=round(false_alarm_bound(report.frames), 4),
        warnings=tuple(_warning(model, name, report) for name in report.answering),
    )


def reject(model: FewShotModel, name: str, image: Image, mask: Mask | None) -> Rejection:
    """Learn that a frame, (H, W, 3) uint8 RGB, is not a class; the mask is (H, W) bool, None for where it is found.

    Raises:
        InputError: Without a mask, the class is not found in the frame, whose background would become the negative; or
            as `FewShotModel.reject`.
    """
    done: list[Rejection] = []
    changed = model.bank_after(lambda model: done.append(model.reject(name, image, mask)))
    if mask is None and not done[0].was_present:
        raise InputError(
            f"{name!r} is not found in this frame, its score is not above its level; press Not it when it is, or "
            "mark what is not it."
        )
    model.bank = changed
    return done[0]


def _warning(model: FewShotModel, name: str, report: SceneReport) -> str:
    what = report.warning(name, model.bank.level_source(name) == "by hand")
    return f"{what}; press Not it where it lights up, or remove from view what it mistakes for it."
