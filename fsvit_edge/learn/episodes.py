"""Episodes: a query picture, support classes that it may or may not show, and support pictures of each.

The test episodes of Pascal-5i and COCO-20i are the published ones: numpy's legacy generator, seeded by the episode's
number, is asked the same questions in the same order. Folders of one's own are drawn in Pascal's way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.datasets import CocoFewShot, FewShotData, FolderFewShot
from fsvit_edge.runtime.errors import InputError

_FOLDER_ORDER_SEED = 0


@dataclass(frozen=True)
class Episode:
    """One question to the network.

    Attributes:
        query: Index into the data's examples.
        ways: Labels of the support classes.
        supports: For each way, indices of its support examples.
    """

    query: int
    ways: tuple[int, ...]
    supports: tuple[tuple[int, ...], ...]


def benchmark_episode(data: FewShotData, number: int, way: int, shot: int) -> Episode:
    """Draw test episode `number`, the same on every machine.

    Pascal asks about its pictures in the list's order, a folder in a shuffled order that is always the same, COCO about
    a random picture of a random class.

    Args:
        data: A test selection.
        number: From 0; beyond the last picture the queries come again with other supports.
        way: Support classes.
        shot: Support pictures of each.

    Raises:
        InputError: The selection has too few classes or pictures.
    """
    _check_sizes(data, way, shot)
    random = np.random.RandomState(number)

    # Not `randint`, although one number is wanted: the published sampler shuffles the whole list and takes the first.
    def draw(count: int) -> int:
        return int(random.choice(count, 1, replace=False)[0])

    if isinstance(data, CocoFewShot):
        query = _query_by_class(data, draw)
    elif isinstance(data, FolderFewShot):
        # Folders are read class by class; shuffled, a short test meets every class too.
        query = int(
            np.random.RandomState(_FOLDER_ORDER_SEED).permutation(len(data.examples))[number % len(data.examples)]
        )
    else:
        query = number % len(data.examples)
    weights = _way_weights(data, query)
    ways = random.choice(len(weights), way, p=weights, replace=False)
    return _episode(data, query, ways, shot, draw)


def training_episode(
    data: FewShotData, rng: np.random.Generator, way: int, shot: int, own_class: bool = False
) -> Episode:
    """Draw an episode as `benchmark_episode` does, but from any generator and with any picture as query.

    Args:
        data: Pictures to draw from.
        rng: Whatever is drawn comes from it.
        way: Support classes.
        shot: Support pictures of each.
        own_class: The query's own class is always among the ways.

    Raises:
        InputError: The selection has too few classes or pictures.
    """
    _check_sizes(data, way, shot)

    def draw(count: int) -> int:
        return int(rng.integers(count))

    query = _query_by_class(data, draw) if isinstance(data, CocoFewShot) else draw(len(data.examples))
    weights = _way_weights(data, query)
    ways = rng.choice(len(weights), way, p=weights, replace=False)
    own = list(data.class_names).index(data.examples[query].label)
    if own_class and own not in ways:
        ways[0] = own
    return _episode(data, query, ways, shot, draw)


def present(data: FewShotData, episode: Episode, from_masks: bool = True) -> npt.NDArray[np.bool_]:
    """Say of each way whether the query shows its class.

    Args:
        data: What the episode was drawn from.
        episode: The episode.
        from_masks: Look into the query's mask, as published, where the lists of pictures do not name every class;
            False opens no file.

    Returns:
        (way,) bool.

    Raises:
        InputError: The mask cannot be read.
    """
    if from_masks and not data.lists_every_class:
        truth = data.read_truth(episode.query, episode.ways)
        return np.array([(truth == number).any() for number in range(1, len(episode.ways) + 1)], np.bool_)
    shown = data.labels_of(episode.query)
    return np.array([label in shown for label in episode.ways], np.bool_)


def _query_by_class(data: FewShotData, draw: Callable[[int], int]) -> int:
    labels = list(data.class_names)
    of_class = data.of_class(labels[draw(len(labels))])
    return of_class[draw(len(of_class))]


def _way_weights(data: FewShotData, query: int) -> npt.NDArray[np.float64]:
    """The query's class has weight 1/2, the others share the rest."""
    labels = list(data.class_names)
    if len(labels) == 1:
        return np.ones(1)
    weights = np.full(len(labels), 0.5 / (len(labels) - 1))
    weights[labels.index(data.examples[query].label)] = 0.5
    return weights


def _episode(
    data: FewShotData, query: int, ways: npt.NDArray[np.int_], shot: int, draw: Callable[[int], int]
) -> Episode:
    labels = list(data.class_names)
    chosen = tuple(labels[way] for way in ways)
    return Episode(query, chosen, tuple(_supports(data, query, label, shot, draw) for label in chosen))


def _supports(data: FewShotData, query: int, label: int, shot: int, draw: Callable[[int], int]) -> tuple[int, ...]:
    candidates = data.of_class(label)
    examples = data.examples
    taken = {examples[query].photograph}
    _check_enough(data, query, label, shot)
    supports: list[int] = []
    while len(supports) < shot:
        index = candidates[draw(len(candidates))]
        if examples[index].photograph not in taken:
            supports.append(index)
            taken.add(examples[index].photograph)
    return tuple(supports)


def _check_sizes(data: FewShotData, way: int, shot: int) -> None:
    if not 1 <= way <= len(data.class_names):
        raise InputError(f"{way} ways cannot be drawn from {len(data.class_names)} classes; choose 1 to as many.")
    if shot < 1:
        raise InputError(f"An episode needs at least 1 shot; got {shot}.")


def _check_enough(data: FewShotData, query: int, label: int, shot: int) -> None:
    """Refuse a class that would keep the drawing of supports going for ever."""
    others: set[str] = set()
    for index in data.of_class(label):
        if len(others) >= shot:
            return
        if data.examples[index].photograph != data.examples[query].photograph:
            others.add(data.examples[index].photograph)
    if len(others) < shot:
        raise InputError(
            f"The class {data.class_names[label]!r} has {len(others)} pictures beside the query, too few for {shot} "
            "shots; add pictures or ask for fewer shots."
        )
