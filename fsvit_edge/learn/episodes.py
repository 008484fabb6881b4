"""Episodes: a query picture, classes that it may or may not show (ways), and support pictures of each (shots).

The test episodes of Pascal-5i and COCO-20i are the published ones: numpy's legacy generator, seeded with the episode's
number, makes the same draws in the same order. Folders of your own pictures are sampled as Pascal is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.runtime.errors import InputError

_FOLDER_ORDER_SEED = 0


@dataclass(frozen=True)
class Episode:
    """One question to the network: which of these classes does the query picture show, and where?"""

    query: int  # index in the examples of the data set
    ways: tuple[int, ...]  # labels of the classes asked about
    supports: tuple[tuple[int, ...], ...]  # for each way, the indices of its support examples


def benchmark_episode(data: FewShotData, number: int, ways: int, shots: int) -> Episode:
    """Draw test episode `number` (from 0), the same on every machine.

    The queries of Pascal follow the order of its list, those of a folder a fixed shuffled order, and those of COCO are
    random pictures of random classes. Past the last picture, the queries repeat with other supports.
    """
    _check_sizes(data, ways, shots)
    random = np.random.RandomState(number)

    # `randint` would give other numbers: the published sampler shuffles the whole list and takes the first.
    def draw(count: int) -> int:
        return int(random.choice(count, 1, replace=False)[0])

    query = number % len(data.examples)
    if data.query_order == "by class":
        query = _query_by_class(data, draw)
    elif data.query_order == "shuffled":
        query = int(np.random.RandomState(_FOLDER_ORDER_SEED).permutation(len(data.examples))[query])
    weights = _way_weights(data, query)
    classes = random.choice(len(weights), ways, p=weights, replace=False)
    return _episode(data, query, classes, shots, draw)


def training_episode(
    data: FewShotData, rng: np.random.Generator, ways: int, shots: int, own_class: bool = False
) -> Episode:
    """Draw an episode as `benchmark_episode` does, but from any generator and with any picture as the query.

    With `own_class`, the query's own class is always among the ways.
    """
    _check_sizes(data, ways, shots)

    def draw(count: int) -> int:
        return int(rng.integers(count))

    query = _query_by_class(data, draw) if data.query_order == "by class" else draw(len(data.examples))
    weights = _way_weights(data, query)
    classes = rng.choice(len(weights), ways, p=weights, replace=False)
    own = list(data.class_names).index(data.examples[query].label)
    if own_class and own not in classes:
        classes[0] = own
    return _episode(data, query, classes, shots, draw)


def present(data: FewShotData, episode: Episode, from_masks: bool = True) -> npt.NDArray[np.bool_]:
    """Return, for each way, whether the query shows its class: (ways,) bool.

    If the picture lists do not name every class in a picture, the query's mask decides, as in the published code;
    without `from_masks` no file is opened.
    """
    if from_masks and not data.lists_every_class:
        truth = data.read_truth(episode.query, episode.ways)
        return np.array([(truth == number).any() for number in range(1, len(episode.ways) + 1)], np.bool_)
    shown = data.labels_of(episode.query)
    return np.array([label in shown for label in episode.ways], np.bool_)


def _check_sizes(data: FewShotData, ways: int, shots: int) -> None:
    if not 1 <= ways <= len(data.class_names):
        raise InputError(f"The number of ways must be 1 to {len(data.class_names)} (the classes here); got {ways}.")
    if shots < 1:
        raise InputError(f"An episode needs at least 1 shot; got {shots}.")


def _query_by_class(data: FewShotData, draw: Callable[[int], int]) -> int:
    labels = list(data.class_names)
    of_class = data.of_class(labels[draw(len(labels))])
    return of_class[draw(len(of_class))]


def _way_weights(data: FewShotData, query: int) -> npt.NDArray[np.float64]:
    """Return the probability of each class: 1/2 for the query's class, the rest shared equally by the others."""
    labels = list(data.class_names)
    if len(labels) == 1:
        return np.ones(1)
    weights = np.full(len(labels), 0.5 / (len(labels) - 1))
    weights[labels.index(data.examples[query].label)] = 0.5
    return weights


def _episode(
    data: FewShotData, query: int, classes: npt.NDArray[np.int_], shots: int, draw: Callable[[int], int]
) -> Episode:
    labels = list(data.class_names)
    ways = tuple(labels[index] for index in classes)
    return Episode(query, ways, tuple(_supports(data, query, label, shots, draw) for label in ways))


def _supports(data: FewShotData, query: int, label: int, shots: int, draw: Callable[[int], int]) -> tuple[int, ...]:
    candidates, examples = data.of_class(label), data.examples
    taken = {examples[query].photograph}
    others: set[str] = set()
    for index in candidates:
        others |= {examples[index].photograph} - taken
        if len(others) == shots:
            break
    else:  # the loop below would never end
        raise InputError(
            f"The class {data.class_names[label]!r} has {len(others)} pictures besides the query, too few for {shots} "
            "shots; add pictures or use fewer shots."
        )
    supports: list[int] = []
    while len(supports) < shots:
        index = candidates[draw(len(candidates))]
        if examples[index].photograph not in taken:
            supports.append(index)
            taken.add(examples[index].photograph)
    return tuple(supports)
