import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fsvit_edge.learn.enhancement import (
    LEAST_MASKS,
    EnhancerOptions,
    EnhancerResult,
    enhanced_mask,
    split_by_photograph,
    train_enhancer,
)
from fsvit_edge.learn.examples import Example
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.model.encoder import EncoderOutput
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.pseudo_mask import pseudo_mask
from fsvit_edge.runtime.errors import InputError

GRID, SIZE, DIM, HEADS = 6, 48, 192, 3
OPTIONS = EnhancerOptions(steps=60, learning_rate=4e-3)


class Pictures:
    """Objects of 2 x 2 or 3 x 3 tokens; coarse maps are shifted by a token and blurred; the tokens show the true place.

    It is data and cache in one. A picture's path is its number; two classes; pictures 0 and 1 are one photograph.
    """

    def __init__(self, count: int = 40) -> None:
        rng = np.random.default_rng(0)
        self.looks = rng.standard_normal((2, DIM))
        self.examples = tuple(Example(i % 2, Path(str(i)), None, "p1" if i == 0 else f"p{i}") for i in range(count))
        self.masks: list[np.ndarray] = []
        self.outputs: list[EncoderOutput] = []
        self.masks_read: set[int] = set()
        for _ in range(count):
            side = rng.integers(2, 4)
            top, left = rng.integers(0, GRID - side, 2)
            thing = np.zeros((GRID, GRID), np.float32)
            thing[top : top + side, left : left + side] = 1
            shifted = np.zeros_like(thing)
            shifted[top + 1 : top + side + 1, left + 1 : left + side + 1] = 1
            self.masks.append(np.kron(thing, np.ones((SIZE // GRID, SIZE // GRID))).astype(np.uint8))
            self.outputs.append(self._output(rng, thing, shifted))

    def _output(self, rng: np.random.Generator, thing: np.ndarray, seen: np.ndarray) -> EncoderOutput:
        look = self.looks + 0.5 * rng.standard_normal((2, DIM))
        tokens = np.concatenate([look[:1], look[thing.astype(int).ravel()]])
        tokens = torch.from_numpy(tokens + 0.5 * rng.standard_normal(tokens.shape)).float()
        cosine = torch.from_numpy(0.7 * seen - 0.4 + 0.05 * rng.standard_normal(seen.shape)).float().ravel()
        keys = torch.zeros(1, HEADS, GRID**2, 2)
        keys[..., 0], keys[..., 1] = cosine, (1 - cosine**2).sqrt()
        return EncoderOutput(tokens[None, None], torch.tensor([1.0, 0.0]).repeat(1, HEADS, 1), keys)

    def of_class(self, label: int) -> list[int]:
        return [index for index, example in enumerate(self.examples) if example.label == label]

    def read_mask(self, index: int) -> np.ndarray:
        self.masks_read.add(index)
        return self.masks[index]

    def read(self, image: Path, view: int = 0) -> EncoderOutput:
        assert view == 0
        return self.outputs[int(image.name)]


def trained(
    network: FewShotNetwork, pictures: Pictures, with_masks: range = range(30), options: EnhancerOptions = OPTIONS
) -> EnhancerResult:
    return train_enhancer(network, pictures, pictures, with_masks, options)


def weights(result: EnhancerResult) -> Tensor:
    return torch.nn.utils.parameters_to_vector(result.enhancer.parameters()).detach()


@pytest.fixture(scope="module")
def result(tiny_network: FewShotNetwork) -> EnhancerResult:
    return trained(tiny_network, Pictures())


def test_the_stand_in_is_read_like_the_cache() -> None:
    assert inspect.signature(Pictures.read) == inspect.signature(TokenCache.read)


def test_it_improves_held_out_masks_if_the_tokens_have_more_information(result: EnhancerResult) -> None:
    assert (result.trained_on, result.held_out) == (24, 6)
    assert result.iou_before < 0.5
    assert result.iou_after > 0.7
    assert result.helps
    assert "does not help" not in result.sentence
    assert f"{100 * result.iou_after:.1f} % after" in result.sentence


def test_it_improves_pictures_without_masks_seen_by_another_class_token(result: EnhancerResult) -> None:
    pictures = Pictures()
    query = pictures.outputs[0].class_query
    ious = []
    for index in range(30, 40):
        output, truth = pictures.outputs[index], torch.from_numpy(pictures.masks[index])[None] > 0
        coarse = pseudo_mask(query, output.image_keys, GRID, SIZE) > 0
        mask = enhanced_mask(result.enhancer, query, output, GRID, SIZE)
        assert mask.shape == (1, SIZE, SIZE)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        ious.append([float((guess & truth).sum() / (guess | truth).sum()) for guess in (coarse, mask > 0)])
    before, after = np.mean(ious, axis=0)
    assert after > before + 0.2


def test_shuffled_maps_and_tokens_do_not_help(tiny_network: FewShotNetwork) -> None:
    pictures = Pictures()
    order = np.random.default_rng(1).permutation(len(pictures.outputs))
    pictures.outputs = [pictures.outputs[i] for i in order]
    result = trained(tiny_network, pictures)
    assert not result.helps
    assert result.iou_after < 0.4
    assert "does not help" in result.sentence


def test_a_seed_gives_the_same_weights_and_does_not_change_torchs_own_generator(
    tiny_network: FewShotNetwork, result: EnhancerResult
) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    again = trained(tiny_network, Pictures())
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(weights(again), weights(result))
    assert replace(again, enhancer=result.enhancer) == result
    other = trained(tiny_network, Pictures(), options=EnhancerOptions(seed=1, steps=3))
    assert not torch.equal(weights(other), weights(result))


def test_only_masks_of_the_list_are_opened(tiny_network: FewShotNetwork) -> None:
    pictures = Pictures()
    trained(tiny_network, pictures, range(10), EnhancerOptions(steps=1))
    assert pictures.masks_read == set(range(10))


@pytest.mark.parametrize("side", [0, 1])
def test_nothing_is_learned_from_held_out_pictures(tiny_network: FewShotNetwork, side: int) -> None:
    options = EnhancerOptions(steps=3)
    pictures, changed = Pictures(), Pictures()
    strange = torch.Generator().manual_seed(0)
    for index in split_by_photograph(changed, range(30), options)[side]:
        changed.masks[index] = 1 - changed.masks[index]
        changed.outputs[index] = EncoderOutput(
            *(torch.randn(part.shape, generator=strange) for part in changed.outputs[index])
        )
    same = torch.equal(
        weights(trained(tiny_network, changed, options=options)),
        weights(trained(tiny_network, pictures, options=options)),
    )
    assert same == (side == 1)


def test_a_photograph_is_on_one_side_of_the_split_and_another_seed_holds_out_others() -> None:
    splits = [split_by_photograph(Pictures(), [*range(30), 3], EnhancerOptions(seed=seed)) for seed in (0, *range(10))]
    for train, test in splits:
        assert sorted(train + test) == list(range(30))
        assert 6 <= len(test) <= 7
        assert (0 in test) == (1 in test)
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize(("value", "learns"), [(255, True), (1, False)])
def test_ignored_pixels_have_no_effect(tiny_network: FewShotNetwork, value: int, learns: bool) -> None:
    pictures, rng = Pictures(), np.random.default_rng(0)
    for mask in pictures.masks:
        mask[np.kron(rng.random((GRID, GRID)) < 0.5, np.ones((SIZE // GRID, SIZE // GRID))) > 0] = value
    enhancer = trained(tiny_network, pictures).enhancer
    right = []
    for output, mask in zip(Pictures().outputs[30:], Pictures().masks[30:], strict=True):
        guess = enhanced_mask(enhancer, output.class_query, output, GRID, SIZE)[0].numpy()
        right.append((guess == mask).mean())
    assert (np.mean(right) > 0.9) == learns


@pytest.mark.parametrize(("count", "photographs"), [(0, 0), (1, 1), (LEAST_MASKS, LEAST_MASKS - 1)])
def test_too_few_photographs_are_refused(tiny_network: FewShotNetwork, count: int, photographs: int) -> None:
    # The first two examples are one photograph.
    with pytest.raises(InputError, match=f"at least {LEAST_MASKS} photographs, got {photographs};"):
        trained(tiny_network, Pictures(), range(count))


def test_the_fewest_photographs_are_enough(tiny_network: FewShotNetwork) -> None:
    few = trained(tiny_network, Pictures(), range(LEAST_MASKS + 1), EnhancerOptions(steps=1))
    assert few.held_out >= 2
    assert few.trained_on >= 3


def test_a_class_with_one_picture_has_only_its_own_map(tiny_network: FewShotNetwork) -> None:
    pictures = Pictures(8)
    pictures.examples = tuple(Example(i, Path(str(i)), None, str(i)) for i in range(8))
    assert trained(tiny_network, pictures, range(8), EnhancerOptions(steps=1)).trained_on == 6
