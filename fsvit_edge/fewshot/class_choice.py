"""Some of the classes of a bank, at higher levels: what a labeling is asked for."""

from collections.abc import Iterator, Sequence

from fsvit_edge.fewshot.names import resolved
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.errors import InputError


def choose_classes(model: FewShotModel, bank: str, classes: Sequence[str], min_score: float | None) -> None:
    """Remove the classes that are not asked for from a model, and raise levels that are too low.

    Args:
        model: The model, with all classes of the bank.
        bank: What the bank is called, for the errors.
        classes: The classes to keep, each a name or several with commas between; empty: all.
        min_score: A level below which no class's own may be, in (0, 1); None leaves them as they are.

    Raises:
        InputError: A class is not in the bank, the bank has none, or the score is out of range.
    """
    known = model.classes
    if not known:
        raise InputError(f"The bank {bank} has no classes; enroll one with: fsvit-edge enroll NAME IMAGE.")
    wanted = list(_names(classes, known))
    for name in wanted:
        if name not in known:
            raise InputError(f"The bank {bank} has no class {name!r:.90}; it has: {', '.join(known)}.")
    for name in known:
        if wanted and name not in wanted:
            model.remove(name)
    if min_score is None:
        return
    if not 0 < min_score < 1:
        raise InputError(f"--min-score must be between 0 and 1, got {min_score:g}.")
    for name in model.classes:
        if model.bank.level(name) < min_score:
            model.set_level(name, min_score)


def _names(classes: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    for text in classes:
        is_name = resolved(text, known) in known  # which may have a comma
        yield from (resolved(name.strip(), known) for name in ([text] if is_name else text.split(",")))
