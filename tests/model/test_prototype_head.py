"""The head without weights on synthetic tokens (directions with noise), for which the right answer is known."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fsvit_edge.learn.training import new_head
from fsvit_edge.model.checkpoint import build_network, load_network, save_network
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.fast_head import Supports
from fsvit_edge.model.graphs import make_manifest
from fsvit_edge.model.head import CorrelationHead
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.prototype_head import PrototypeHead
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE
from fsvit_edge.runtime.errors import ArtifactError, InputError

HEADS, LAYERS, GRID, SUPPORT_GRID, DIM, SIZE = 2, 3, 6, 12, 32, 48
CHANNELS = HEADS * LAYERS
WEIGHTS = DEFAULT_BUNDLE / "cst-nano.safetensors"


def unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)


def direction(seed: int) -> Tensor:
    """The direction of an object: (C, d)."""
    return unit(torch.randn(CHANNELS, DIM, generator=torch.Generator().manual_seed(seed)))


THING, OTHER_THING, GROUND = direction(1), direction(2), direction(3)


def scene(mask: Tensor, thing: Tensor, noise: float = 0.1, seed: int = 9) -> Tensor:
    """Tokens (C, N, d) of a picture that shows `thing` where the flat mask is 1."""
    tokens = torch.where(mask[None, :, None] > 0, thing[:, None], GROUND[:, None])
    return unit(tokens + noise * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)))


def square(side: int, start: int, stop: int) -> Tensor:
    mask = torch.zeros(side, side)
    mask[start:stop, start:stop] = 1
    return mask


HEAD = PrototypeHead(LAYERS, GRID).eval()


def supports_of(*things: Tensor, noise: float = 0.1) -> Supports:
    """A support of each object, in the middle of its picture."""
    mask = square(SIZE, 16, 40)
    seen = square(SUPPORT_GRID, 4, 10).flatten()
    tokens = torch.stack([scene(seen, thing, noise, seed) for seed, thing in enumerate(things)])
    support = torch.cat([unit(tokens.mean(dim=2, keepdim=True)), tokens], dim=2)
    return HEAD.cache_supports(support, mask.expand(len(things), -1, -1), SUPPORT_GRID)


PLACE = square(GRID, 1, 4).flatten()
FRAME = scene(PLACE, THING)


def answer(supports: Supports, averaging: Tensor | None = None, frame: Tensor = FRAME) -> tuple[Tensor, Tensor]:
    """P(present) (W,) and P(foreground) (W, 2 * grid, 2 * grid); without `averaging`, all supports are of one class."""
    shots = len(supports.kept)
    presence, foreground = HEAD(frame, supports, torch.full((1, shots), 1 / shots) if averaging is None else averaging)
    return presence, foreground


def assert_near(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def part_of(supports: Supports, which: Tensor | slice) -> Supports:
    return Supports(*(part[which] for part in supports))


def test_the_head_has_no_parameters_and_no_buffers() -> None:
    assert list(HEAD.parameters()) == []
    assert HEAD.state_dict() == {}


def test_a_planted_object_is_found_in_its_place() -> None:
    presence, foreground = answer(supports_of(THING))
    assert presence.shape == (1,)
    assert foreground.shape == (1, 2 * GRID, 2 * GRID)
    assert presence[0] > 0.9
    assert foreground[0, 3:7, 3:7].min() > 0.9
    assert foreground[0, :, 9:].max() < 0.1


def test_an_absent_object_is_not_found() -> None:
    for frame in (scene(PLACE, OTHER_THING), scene(torch.zeros(GRID**2), THING)):
        presence, foreground = answer(supports_of(THING), frame=frame)
        assert presence[0] < 0.2
        assert foreground.max() < 0.5


def test_background_prototypes_lower_the_score_of_background() -> None:
    """An object that is half like its background: without background prototypes, the background would match it."""
    thing = unit(THING + GROUND)
    supports, frame = supports_of(thing), scene(PLACE, thing)
    _, foreground = answer(supports, frame=frame)
    assert foreground[0, 3:7, 3:7].min() > 0.5
    assert foreground[0, :, 9:].max() < 0.5
    _, without = answer(supports._replace(pooled_mask=torch.zeros_like(supports.pooled_mask)), frame=frame)
    assert without[0, :, 9:].min() > 0.5


def test_only_the_last_blocks_are_compared() -> None:
    supports = supports_of(THING)
    wanted = answer(supports)
    for layer, same in ((0, True), (LAYERS - 1, False)):
        channels = torch.arange(CHANNELS) % LAYERS == layer
        changed = FRAME.clone()
        changed[channels] = changed[channels].roll(1, dims=-1)
        for got, one in zip(answer(supports, frame=changed), wanted, strict=True):
            assert torch.equal(got, one) is same


# ---- several supports


SUPPORTS = supports_of(THING, OTHER_THING, THING, direction(4), OTHER_THING, THING)
AVERAGING = F.normalize(torch.tensor([[1, 0, 1, 0, 0, 1.0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]), p=1, dim=1)


def test_the_order_of_supports_and_of_classes_does_not_matter() -> None:
    presence, foreground = answer(SUPPORTS, AVERAGING)
    order, ways = torch.tensor([5, 3, 0, 1, 4, 2]), torch.tensor([2, 0, 1])
    shuffled = part_of(SUPPORTS, order)
    assert_near(answer(shuffled, AVERAGING[ways][:, order]), (presence[ways], foreground[ways]))
    wrong = answer(shuffled, AVERAGING[ways])
    assert not torch.allclose(wrong[0], presence[ways], atol=1e-2)


def test_the_score_of_a_class_does_not_depend_on_other_classes() -> None:
    presence, foreground = answer(SUPPORTS, AVERAGING)
    assert presence[0] > presence[1:].max() + 0.3
    for way in range(3):
        alone = answer(part_of(SUPPORTS, AVERAGING[way] > 0))
        assert_near(alone, (presence[way : way + 1], foreground[way : way + 1]))


def test_the_values_of_the_padding_do_not_matter() -> None:
    keep = SUPPORTS.kept_mask[:, None, :, None] > 0
    garbled = SUPPORTS._replace(kept=torch.where(keep, SUPPORTS.kept, 100.0))
    assert_near(answer(garbled, AVERAGING), answer(SUPPORTS, AVERAGING))


def test_whole_classes_in_several_runs_add_up_to_one_run() -> None:
    first = torch.tensor([True, False, True, False, False, True])
    parts = [answer(part_of(SUPPORTS, which), AVERAGING[:, which]) for which in (first, ~first)]
    assert_near((one + other for one, other in zip(*parts, strict=True)), answer(SUPPORTS, AVERAGING))


def test_a_class_spread_over_two_runs_gives_the_mean_of_its_parts() -> None:
    supports = supports_of(THING, THING, THING, THING)
    three, one = part_of(supports, slice(0, 3)), part_of(supports, slice(3, 4))
    summed = answer(three, torch.full((1, 3), 0.25))[0] + answer(one, torch.full((1, 1), 0.25))[0]
    assert_near([summed], [0.75 * answer(three)[0] + 0.25 * answer(one)[0]])


def test_supports_that_differ_lower_the_similarity_needed() -> None:
    """Leave one out: if the supports of a class are less similar to each other, a less similar frame is accepted."""
    turned = scene(PLACE, unit(THING + 0.9 * OTHER_THING))
    alike = answer(supports_of(THING, THING, THING), frame=turned)[0]
    assert alike < 0.5
    diverse = supports_of(*(unit(THING + 0.9 * direction(seed)) for seed in (20, 21, 22)))
    assert answer(diverse, frame=turned)[0] > alike
    assert answer(diverse, frame=scene(PLACE, GROUND))[0] < 0.2


# ---- enrollment


def test_kept_tokens_are_the_object_and_pooled_tokens_the_background() -> None:
    supports = supports_of(THING, noise=0.0)
    kept = supports.kept_mask[0, 1:].reshape(SUPPORT_GRID, SUPPORT_GRID)
    assert supports.kept_mask[0, 0] == 1
    assert kept.sum() == pytest.approx(36, abs=15)
    assert kept[6:8, 6:8].min() == 1
    assert kept[:2].max() == 0
    assert supports.pooled_mask[0].reshape(3, 3)[0].min() == 1
    pooled = supports.pooled[0][:, supports.pooled_mask[0] > 0]
    likeness = (pooled * GROUND[:, None]).sum(dim=-1)
    assert likeness[:, 0].min() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("at", "width"), [(0, 1), (17, 2), (45, 3), (9, 8)])
def test_an_object_smaller_than_a_token_is_kept(at: int, width: int) -> None:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, at : at + width, at : at + width] = 1
    support = unit(torch.randn(1, CHANNELS, 1 + SUPPORT_GRID**2, DIM))
    cache = HEAD.cache_supports(support, mask, SUPPORT_GRID)
    assert 1 <= cache.kept_mask[0, 1:].sum() <= 9


@pytest.mark.parametrize("cover", [0.0, 1.0])
def test_an_empty_and_a_full_mask_give_finite_answers(cover: float) -> None:
    support = unit(torch.randn(1, CHANNELS, 1 + SUPPORT_GRID**2, DIM))
    cache = HEAD.cache_supports(support, torch.full((1, SIZE, SIZE), cover), SUPPORT_GRID)
    assert cache.kept_mask[0, 1:].sum() == cover * SUPPORT_GRID**2
    assert (cache.pooled_mask > 0).all() == (cover == 0)
    for part in answer(cache):
        assert torch.isfinite(part).all()
        assert (part >= 0).all()
        assert (part <= 1).all()


# ---- configuration and checkpoints


def test_a_support_crop_is_kept_with_the_weights(tmp_path: Path) -> None:
    network = load_network(WEIGHTS, image_size=48)
    network.config = replace(network.config, support_crop=1.5)
    save_network(network, tmp_path / "cropping.safetensors")
    assert load_network(tmp_path / "cropping.safetensors").config.support_crop == 1.5


def test_the_presence_level_belongs_to_the_head(tmp_path: Path) -> None:
    network = load_network(WEIGHTS)
    network.config = replace(network.config, presence_level=0.62)
    path = tmp_path / "leveled.safetensors"
    save_network(network, path)
    assert load_network(path).config.presence_level == 0.62
    assert make_manifest(load_network(path), {}, opset=0, parity={}).presence_level == 0.62
    assert load_network(path, head="prototype").config.presence_level == 0.5
    new_head(network, 0)
    assert network.config.presence_level == 0.5


def test_a_network_with_prototypes_is_saved_without_a_head_and_loaded(tmp_path: Path) -> None:
    network = load_network(WEIGHTS, image_size=48, head="prototype")
    assert network.prototype_head is not None
    assert network.config.head == "prototype"
    path = tmp_path / "prototypes.safetensors"
    save_network(network, path)
    again = load_network(path)
    assert again.config == network.config
    assert again.prototype_head is not None
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor)
    with pytest.raises(ArtifactError, match="contains no head"):
        load_network(path, head="cst")
    with pytest.raises(InputError, match="prototype head, which has no weights to train"):
        _ = again.head


def test_a_checkpoint_with_only_a_backbone_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "backbone.pth"
    network = FewShotNetwork(ModelConfig("any", "vit_small_patch14_dinov2.lvd142m", 28))
    state = network.encoder.vit.state_dict()
    torch.save(state, path)
    built = build_network(None, path, False, None, "mine", "prototype")
    assert built.config == ModelConfig("mine", "vit_small_patch14_dinov2.lvd142m", 392, head="prototype")
    assert torch.equal(built.encoder.vit.norm.weight, state["norm.weight"])
    with pytest.raises(InputError, match="Give the name of the backbone to download with --backbone"):
        build_network(None, None, True, None, "mine", "prototype")


def test_a_prototype_network_can_be_given_a_head_to_train() -> None:
    network = load_network(WEIGHTS, image_size=48, head="prototype")
    network.head = CorrelationHead(network.encoder.num_channels, 12)
    assert isinstance(network.head, CorrelationHead)
