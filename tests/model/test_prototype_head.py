"""The head without weights on synthetic tokens (directions with noise), for which the right answer is known."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fsvit_edge.learn.training import new_head
from fsvit_edge.model import prototype_head
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
BACKBONE = "vit_nano_patch8_64"
WEIGHTS = DEFAULT_BUNDLE / "cst-nano.safetensors"


def direction(seed: int) -> Tensor:
    """The direction of an object: (C, d)."""
    vectors = torch.randn(CHANNELS, DIM, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=-1, keepdim=True)


THING, OTHER_THING, GROUND = direction(1), direction(2), direction(3)


def scene(mask: Tensor, thing: Tensor, ground: Tensor = GROUND, noise: float = 0.1, seed: int = 0) -> Tensor:
    """Tokens (C, N, d) of a picture that shows `thing` where the flat mask is 1."""
    tokens = torch.where(mask[None, :, None] > 0, thing[:, None], ground[:, None])
    tokens = tokens + noise * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed))
    return tokens / tokens.norm(dim=-1, keepdim=True)


def square(side: int, start: int, stop: int) -> Tensor:
    mask = torch.zeros(side, side)
    mask[start:stop, start:stop] = 1
    return mask


def head() -> PrototypeHead:
    return PrototypeHead(LAYERS, GRID).eval()


def supports_of(*things: Tensor, noise: float = 0.1, ground: Tensor = GROUND) -> Supports:
    """A support of each object, in the middle of its picture."""
    mask = square(SIZE, 16, 40)
    seen = square(SUPPORT_GRID, 4, 10).flatten()
    tokens = torch.stack([scene(seen, thing, ground, noise, seed) for seed, thing in enumerate(things)])
    class_token = tokens.mean(dim=2, keepdim=True)
    support = torch.cat([class_token / class_token.norm(dim=-1, keepdim=True), tokens], dim=2)
    return head().cache_supports(support, mask.expand(len(things), -1, -1), SUPPORT_GRID)


PLACE = square(GRID, 1, 4)
ONE = torch.ones(1, 1)


def test_the_head_has_no_parameters_and_no_buffers() -> None:
    assert list(head().parameters()) == []
    assert head().state_dict() == {}


def test_a_planted_object_is_found_in_its_place() -> None:
    presence, foreground = head()(scene(PLACE.flatten(), THING, seed=9), supports_of(THING), ONE)
    assert presence.shape == (1,)
    assert foreground.shape == (1, 2 * GRID, 2 * GRID)
    assert presence[0] > 0.9
    inside = foreground[0, 3:7, 3:7]
    assert inside.min() > 0.9
    assert foreground[0, :, 9:].max() < 0.1


def test_an_absent_object_is_not_found() -> None:
    for frame in (scene(PLACE.flatten(), OTHER_THING, seed=9), scene(torch.zeros(GRID**2), THING, seed=9)):
        presence, foreground = head()(frame, supports_of(THING), ONE)
        assert presence[0] < 0.2
        assert foreground.max() < 0.5


def test_background_prototypes_lower_the_score_of_background() -> None:
    """An object that is half like its background: without background prototypes, the background would match it."""
    mixed = THING + GROUND
    thing = mixed / mixed.norm(dim=-1, keepdim=True)
    supports = supports_of(thing)
    frame = scene(PLACE.flatten(), thing, seed=9)
    _, foreground = head()(frame, supports, ONE)
    assert foreground[0, 3:7, 3:7].min() > 0.5
    assert foreground[0, :, 9:].max() < 0.5
    _, without = head()(frame, supports._replace(pooled_mask=torch.zeros_like(supports.pooled_mask)), ONE)
    assert without[0, :, 9:].min() > 0.5


def test_only_the_last_blocks_are_compared() -> None:
    frame, supports = scene(PLACE.flatten(), THING, seed=9), supports_of(THING)
    wanted = head()(frame, supports, ONE)
    first, last = (torch.arange(CHANNELS) % LAYERS == layer for layer in (0, LAYERS - 1))
    for channels, same in ((first, True), (last, False)):
        changed = frame.clone()
        changed[channels] = changed[channels].roll(1, dims=-1)
        got = head()(changed, supports, ONE)
        assert torch.equal(got[0], wanted[0]) is same
        assert torch.equal(got[1], wanted[1]) is same


# ---- several supports


def three_classes() -> tuple[Supports, Tensor]:
    supports = supports_of(THING, OTHER_THING, THING, direction(4), OTHER_THING, THING)
    averaging = torch.tensor([[1, 0, 1, 0, 0, 1.0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
    return supports, averaging / averaging.sum(dim=1, keepdim=True)


def test_the_order_of_supports_and_of_classes_does_not_matter() -> None:
    supports, averaging = three_classes()
    frame = scene(PLACE.flatten(), THING, seed=9)
    presence, foreground = head()(frame, supports, averaging)
    order, ways = torch.tensor([5, 3, 0, 1, 4, 2]), torch.tensor([2, 0, 1])
    shuffled = Supports(*(part[order] for part in supports))
    got = head()(frame, shuffled, averaging[ways][:, order])
    assert torch.allclose(got[0], presence[ways], atol=1e-5)
    assert torch.allclose(got[1], foreground[ways], atol=1e-5)
    wrong = head()(frame, shuffled, averaging[ways])
    assert not torch.allclose(wrong[0], presence[ways], atol=1e-2)


def test_the_score_of_a_class_does_not_depend_on_other_classes() -> None:
    supports, averaging = three_classes()
    frame = scene(PLACE.flatten(), THING, seed=9)
    presence, foreground = head()(frame, supports, averaging)
    assert presence[0] > presence[1:].max() + 0.3
    for way in range(3):
        own = averaging[way] > 0
        alone = head()(frame, Supports(*(part[own] for part in supports)), averaging[way : way + 1, own])
        assert torch.allclose(alone[0], presence[way : way + 1], atol=1e-5)
        assert torch.allclose(alone[1], foreground[way : way + 1], atol=1e-5)


def test_the_values_of_the_padding_do_not_matter() -> None:
    supports, averaging = three_classes()
    frame = scene(PLACE.flatten(), THING, seed=9)
    wanted = head()(frame, supports, averaging)
    keep = supports.kept_mask[:, None, :, None] > 0
    got = head()(frame, supports._replace(kept=torch.where(keep, supports.kept, 100.0)), averaging)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, wanted, strict=True))


def test_whole_classes_in_several_runs_add_up_to_one_run() -> None:
    supports, averaging = three_classes()
    frame = scene(PLACE.flatten(), THING, seed=9)
    wanted = head()(frame, supports, averaging)
    first = torch.tensor([True, False, True, False, False, True])
    parts = [
        head()(frame, Supports(*(part[chosen] for part in supports)), averaging[:, chosen])
        for chosen in (first, ~first)
    ]
    for got, one in zip(zip(*parts, strict=True), wanted, strict=True):
        assert torch.allclose(got[0] + got[1], one, atol=1e-5)


def test_a_class_spread_over_two_runs_gives_the_mean_of_its_parts() -> None:
    supports = supports_of(THING, THING, THING, THING)
    frame = scene(PLACE.flatten(), THING, seed=9)
    averaging = torch.full((1, 4), 0.25)
    parts = [slice(0, 3), slice(3, 4)]
    summed = sum(head()(frame, Supports(*(x[p] for x in supports)), averaging[:, p])[0] for p in parts)
    alone = [
        head()(frame, Supports(*(x[p] for x in supports)), torch.ones(1, n) / n)[0]
        for p, n in zip(parts, (3, 1), strict=True)
    ]
    assert torch.allclose(torch.as_tensor(summed), 0.75 * alone[0] + 0.25 * alone[1], atol=1e-5)


def test_supports_that_differ_lower_the_similarity_needed() -> None:
    """Leave one out: if the supports of a class are less similar to each other, a less similar frame is accepted."""
    turned = THING + 0.9 * OTHER_THING
    turned = turned / turned.norm(dim=-1, keepdim=True)
    frame = scene(PLACE.flatten(), turned, seed=9)
    alike = head()(frame, supports_of(THING, THING, THING), torch.full((1, 3), 1 / 3))[0]
    assert alike < 0.5
    diverse = [THING + 0.9 * direction(seed) for seed in (20, 21, 22)]
    diverse = [thing / thing.norm(dim=-1, keepdim=True) for thing in diverse]
    relaxed = head()(frame, supports_of(*diverse), torch.full((1, 3), 1 / 3))[0]
    assert relaxed > alike
    assert head()(scene(PLACE.flatten(), GROUND, seed=9), supports_of(*diverse), torch.full((1, 3), 1 / 3))[0] < 0.2


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
    support = torch.nn.functional.normalize(torch.randn(1, CHANNELS, 1 + SUPPORT_GRID**2, DIM), dim=-1)
    cache = head().cache_supports(support, mask, SUPPORT_GRID)
    assert 1 <= cache.kept_mask[0, 1:].sum() <= 9


@pytest.mark.parametrize("cover", [0.0, 1.0])
def test_an_empty_and_a_full_mask_give_finite_answers(cover: float) -> None:
    support = torch.nn.functional.normalize(torch.randn(1, CHANNELS, 1 + SUPPORT_GRID**2, DIM), dim=-1)
    cache = head().cache_supports(support, torch.full((1, SIZE, SIZE), cover), SUPPORT_GRID)
    assert cache.kept_mask[0, 1:].sum() == cover * SUPPORT_GRID**2
    assert (cache.pooled_mask > 0).all() == (cover == 0)
    for part in head()(scene(PLACE.flatten(), THING), cache, ONE):
        assert torch.isfinite(part).all()
        assert (part >= 0).all()
        assert (part <= 1).all()


# ---- configuration and checkpoints


def test_files_without_a_head_in_the_configuration_still_load(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"name": "old", "backbone": BACKBONE, "image_size": 48, "support_grid": 12}))
    assert ModelConfig.from_json(path) == ModelConfig("old", BACKBONE, 48, 12, "cst", False, 0.5, 0.0)
    assert isinstance(load_network(WEIGHTS).head, CorrelationHead)


def test_a_support_crop_is_kept_with_the_weights(tmp_path: Path) -> None:
    network = load_network(WEIGHTS, image_size=48)
    network.config = replace(network.config, support_crop=1.5)
    save_network(network, tmp_path / "cropping.safetensors")
    assert load_network(tmp_path / "cropping.safetensors").config.support_crop == 1.5
    path = tmp_path / "by-hand.json"
    path.write_text(json.dumps({"name": "a", "backbone": BACKBONE, "image_size": 48, "support_crop": 2}))
    assert ModelConfig.from_json(path).support_crop == 2.0


@pytest.mark.parametrize(("kind", "message"), [("linear", "must be one of cst, prototype"), (3, "head must be str")])
def test_an_unknown_head_is_refused(tmp_path: Path, kind: object, message: str) -> None:
    path = tmp_path / "new.json"
    path.write_text(json.dumps({"name": "new", "backbone": BACKBONE, "image_size": 48, "head": kind}))
    with pytest.raises(ArtifactError, match=message):
        ModelConfig.from_json(path)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (0.0, "must be between 0 and 1, got 0"),
        (1.5, "must be between 0 and 1, got 1.5"),
        (float("nan"), "must be between 0 and 1, got nan"),
        ("high", "presence_level must be float"),
    ],
)
def test_an_invalid_presence_level_is_refused(tmp_path: Path, level: object, message: str) -> None:
    path = tmp_path / "new.json"
    values = {"name": "new", "backbone": BACKBONE, "image_size": 48}
    path.write_text(json.dumps({**values, "presence_level": 0.62}))
    assert ModelConfig.from_json(path).presence_level == 0.62
    path.write_text(json.dumps({**values, "presence_level": level}))
    with pytest.raises(ArtifactError, match=message):
        ModelConfig.from_json(path)


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
    with pytest.raises(InputError, match="prototype head, which has no weights to learn"):
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
    network = copy.deepcopy(load_network(WEIGHTS, image_size=48, head="prototype"))
    network.head = CorrelationHead(network.encoder.num_channels, 12)
    assert isinstance(network.head, CorrelationHead)


def test_the_constants_are_within_their_bounds() -> None:
    assert 0 < prototype_head.BACKGROUND_COVER < prototype_head.FOREGROUND_COVER < 1
    assert prototype_head.TEMPERATURE > 0
