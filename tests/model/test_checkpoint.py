import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fsvit_edge.model.checkpoint import infer_backbone, load_network, read_state, save_network
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.encoder import HYBRID_BACKBONE, NANO_BACKBONE, OUR_BACKBONES, SUPPORTED_BACKBONES, Encoder
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError

Randomize = Callable[[nn.Module, int], None]
State = dict[str, Tensor]


def state_of(network: FewShotNetwork) -> State:
    """Copies with the published names."""
    parts = {"backbone.": network.encoder.vit, "learner.": network.head}
    return {p + name: t.detach().clone() for p, module in parts.items() for name, t in module.state_dict().items()}


def assert_same_weights(network: FewShotNetwork, state: State) -> None:
    ours = state_of(network)
    assert ours.keys() == state.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float()), name


def lightning(state: State, **more: object) -> dict[str, object]:
    """What Lightning writes around the weights."""
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "1.5.9",
        "state_dict": state,
        "callbacks": {"ModelCheckpoint{'monitor': 'val/miou'}": {"best_model_score": torch.tensor(55.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}],
        "hparams_name": "args",
        "hyper_parameters": argparse.Namespace(backbone="dino", lr=1e-3, imgsize=400, datapath=None),
        **more,
    }


def only(state: State, prefix: str) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


@pytest.fixture
def state(tiny_network: FewShotNetwork) -> State:
    return state_of(tiny_network)


@pytest.fixture
def saved(tiny_network: FewShotNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "made" / "tiny.safetensors"
    save_network(tiny_network, path)
    return path


def test_a_saved_network_loads_unchanged(tiny_network: FewShotNetwork, saved: Path, state: State) -> None:
    assert sorted(file.name for file in saved.parent.iterdir()) == ["tiny.json", "tiny.safetensors"]
    assert {tensor.dtype for tensor in load_file(saved).values()} == {torch.float32}
    loaded = load_network(saved)
    assert loaded.config == tiny_network.config
    assert_same_weights(loaded, state)
    assert not loaded.head.training
    assert not loaded.encoder.training
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())


def test_saving_needs_the_suffix_safetensors(tiny_network: FewShotNetwork, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        save_network(tiny_network, tmp_path / "tiny.ckpt")
    assert not list(tmp_path.iterdir())


def test_the_image_size_can_be_overridden(saved: Path, state: State) -> None:
    loaded = load_network(saved, image_size=80)
    assert (loaded.config.image_size, loaded.encoder.grid) == (80, 10)
    assert_same_weights(loaded, state)
    with pytest.raises(InputError, match="got 81"):
        load_network(saved, image_size=81)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt"])
def test_a_published_lightning_checkpoint_loads(tmp_path: Path, state: State, suffix: str) -> None:
    path = tmp_path / f"published{suffix}"
    torch.save(lightning(state), path)
    loaded = load_network(path, backbone=NANO_BACKBONE)
    assert loaded.config == ModelConfig("published", NANO_BACKBONE, image_size=400)
    assert_same_weights(loaded, state)
    assert load_network(path, backbone=NANO_BACKBONE, image_size=64).encoder.grid == 8


# ---- where the backbone's weights come from


def shallow_vit(name: str, **kwargs: Any) -> VisionTransformer:
    """As wide as DINO's small model, one block deep, quick to make."""
    assert name == "vit_small_patch16_224.dino"
    model = VisionTransformer(img_size=224, patch_size=16, embed_dim=384, depth=1, num_heads=6, num_classes=0)
    nn.init.constant_(model.norm.bias, 7.0 if kwargs["pretrained"] else 0.0)
    return model


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch, randomize: Randomize) -> State:
    """The weights of a network with the shallow backbone, which timm creates during this test."""
    monkeypatch.setattr(timm, "create_model", shallow_vit)
    network = FewShotNetwork(ModelConfig("shallow", "vit_small_patch16_224.dino", 96))
    randomize(network, 1)
    return state_of(network)


def test_the_backbone_is_inferred_from_shapes_and_its_pretrained_weights_win(tmp_path: Path, shallow: State) -> None:
    path = tmp_path / "published.ckpt"
    torch.save(lightning(shallow), path)
    loaded = load_network(path)
    assert loaded.config == ModelConfig("published", "vit_small_patch16_224.dino", 400)
    assert_same_weights(loaded, shallow)
    assert (load_network(path, pretrained=True).encoder.vit.norm.bias == 7.0).all()


def test_a_checkpoint_with_only_a_head_gets_the_pretrained_backbone(
    tmp_path: Path, shallow: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head.ckpt"
    torch.save(lightning(only(shallow, "learner.")), path)
    loaded = load_network(path, backbone="vit_small_patch16_224.dino", image_size=96)
    assert (loaded.encoder.vit.norm.bias == 7.0).all()
    assert torch.equal(loaded.head.linear[0].weight, shallow["learner.linear.0.weight"])
    with pytest.raises(InputError, match="contains only the head; give the name of its backbone with --backbone"):
        load_network(path)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(EnvironmentLacksError, match=r"no route to host.*--weights"):
        load_network(path, backbone="vit_small_patch16_224.dino")


def as_dinos_training_state(weights: State) -> object:
    teacher = {f"module.backbone.{name}": tensor for name, tensor in weights.items()}
    student = {name: torch.zeros_like(tensor) for name, tensor in teacher.items()}
    heads = {"module.head.mlp.0.weight": torch.zeros(2, 2), "module.head.last_layer.weight_g": torch.zeros(2)}
    parts = {"student": {**student, **heads}, "teacher": {**teacher, **heads}}
    return {**parts, "epoch": 100, "args": argparse.Namespace()}


def before(prefix: str) -> Callable[[State], State]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(lambda weights: weights, id="bare"),
        pytest.param(as_dinos_training_state, id="DINO's training state"),
        pytest.param(lambda weights: {f"backbone.{name}": tensor for name, tensor in weights.items()}, id="prefixed"),
        pytest.param(before("_orig_mod."), id="compiled"),
        pytest.param(before("module._orig_mod."), id="compiled on several GPUs"),
        pytest.param(before("_orig_mod.module.backbone._orig_mod."), id="compiled twice"),
        pytest.param(before("encoder."), id="a part of another network"),
        pytest.param(lambda weights: {"model": {"state_dict": weights}, "epoch": 3}, id="nested"),
        pytest.param(lambda weights: {"student": before("module.backbone.")(weights)}, id="a student"),
        pytest.param(lambda weights: {"teacher": None, "student": weights}, id="no teacher"),
        pytest.param(lambda weights: {"ema": weights, "optimizer": {"state": {0: weights}}}, id="an average"),
        pytest.param(None, id="safetensors"),
    ],
)
@pytest.mark.parametrize("head_alone", [True, False])
def test_weights_of_the_backbone_can_come_from_a_separate_file(
    tmp_path: Path, saved: Path, state: State, kind: Callable[[State], object] | None, head_alone: bool
) -> None:
    other = {name.removeprefix("backbone."): tensor + 1 for name, tensor in only(state, "backbone.").items()}
    weights = tmp_path / ("backbone.safetensors" if kind is None else "dino.pth")
    if kind is None:
        save_file(other, weights)
    else:
        torch.save(kind(other), weights)
    if head_alone:
        save_file(only(state, "learner."), saved)
    wanted = {**state, **{f"backbone.{name}": tensor for name, tensor in other.items()}}
    assert_same_weights(load_network(saved, weights=weights), wanted)


def test_weights_and_pretrained_contradict_each_other(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(InputError, match="either --weights FILE or --pretrained"):
        load_network(saved, weights=tmp_path / "any.pth", pretrained=True)


# ---- files that run code


class RunsWhenRebuilt:
    """Its pickle calls os.mkdir(canary)."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


class RunsWhenFilled:
    """Its pickle calls its __setstate__."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __setstate__(self, values: dict[str, str]) -> None:
        Path(values["canary"]).touch()


@pytest.mark.parametrize("kind", [RunsWhenRebuilt, RunsWhenFilled])
@pytest.mark.parametrize("inside", ["checkpoint", "hyper_parameters", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_with_foreign_objects_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, state: State, kind: type, inside: str, zipped: bool
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.ckpt"
    bad = kind(canary)
    more = {
        "checkpoint": {"extra": bad},
        "hyper_parameters": {"hyper_parameters": argparse.Namespace(lr=bad)},
        "state_dict": {"state_dict": {**state, "learner.extra": bad}},
    }
    torch.save(lightning(state, **more[inside]), path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(ArtifactError, match=r"evil\.ckpt contains Python objects besides .*was refused") as caught:
        load_network(path, backbone=NANO_BACKBONE)
    assert "\n" not in str(caught.value)
    assert not canary.exists()

    torch.load(path, weights_only=False)
    assert canary.exists(), "the canary is dead, so this test shows nothing"


def test_only_the_namespace_is_allowed_and_only_while_a_file_is_read(tmp_path: Path, state: State) -> None:
    path = tmp_path / "published.ckpt"
    torch.save(lightning(state), path)
    before = set(torch.serialization.get_safe_globals())  # torch lists a set, in any order
    read_state(path)
    assert set(torch.serialization.get_safe_globals()) == before


# ---- files that do not fit


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, name: change(state[name]).contiguous()}


def added(name: str) -> Callable[[State], State]:
    return lambda state: {**state, name: torch.zeros(2)}


def ending_with(name: str, value: float) -> Callable[[State], State]:
    return changed(name, lambda tensor: torch.cat([tensor.flatten()[:-1], torch.tensor([value])]).view_as(tensor))


DAMAGES = [
    (without("learner.linear.0.weight"), r"head weights lack 1 tensors, for example 'linear\.0\.weight'"),
    (without("backbone.cls_token"), "backbone weights lack 1 tensors, for example 'cls_token'"),
    (added("learner.linear.9.weight"), r"head weights contain 1 unknown tensors, for example 'linear\.9\.weight'"),
    (
        added("backbone.blocks.6.ls1.gamma"),
        r"backbone weights contain 1 unknown .*, for example 'blocks\.6\.ls1\.gamma'",
    ),
    (
        changed("learner.decoder2_cls.2.bias", lambda tensor: tensor[:1]),
        r"head tensor 'decoder2_cls\.2\.bias' has shape \(1,\), expected \(2,\)",
    ),
    (
        changed("backbone.patch_embed.proj.weight", lambda tensor: tensor[..., :4, :4]),
        r"backbone tensor 'patch_embed\.proj\.weight' has shape \(192, 3, 4, 4\), expected \(192, 3, 8, 8\)",
    ),
    (
        changed("backbone.pos_embed", lambda tensor: tensor[:, :50]),  # never resampled, as timm does
        r"'pos_embed' has shape \(1, 50, 192\), expected \(1, 65, 192\)",
    ),
    (ending_with("learner.linear.0.weight", float("nan")), r"head tensor 'linear\.0\.weight' contains NaN or infinite"),
    (ending_with("backbone.norm.weight", float("inf")), r"backbone tensor 'norm\.weight' contains NaN or infinite"),
    (
        lambda state: only(state, "backbone."),
        r"contains no head: expected tensors named learner\.\*, got backbone\.blocks",
    ),
    (lambda state: only(state, "learner."), "contains no backbone weights; give them with --weights FILE"),
    (lambda _: {"weight": torch.zeros(2)}, r"contains no head: expected tensors named learner\.\*, got weight"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_weights_that_do_not_fit_are_named(
    saved: Path, state: State, suffix: str, damage: Callable[[State], State], message: str
) -> None:
    path = saved.with_suffix(suffix)
    if suffix == ".ckpt":
        torch.save(lightning(damage(state)), path)
    else:
        save_file(damage(state), path)
    with pytest.raises(ArtifactError, match=message):
        load_network(path, backbone=NANO_BACKBONE)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "almost whole": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"hello garbage" * 100),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html><body>Not found</body></html>"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", UNREADABLE)
@pytest.mark.parametrize("kind", [".safetensors", ".ckpt", "legacy.pth"])
def test_a_file_that_cannot_be_read_is_one_sentence(saved: Path, state: State, kind: str, damage: str) -> None:
    path = saved.with_name(f"tiny{kind}")
    if kind != ".safetensors":
        torch.save(lightning(state), path, _use_new_zipfile_serialization=kind == ".ckpt")
    UNREADABLE[damage](path)
    with pytest.raises(ArtifactError) as caught:
        load_network(path, backbone=NANO_BACKBONE)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert not message.endswith("..")
    assert "\n" not in message
    assert "could run code" not in message
    assert ("does not exist" in message) == (damage in ("a folder", "gone"))


@pytest.mark.parametrize("content", [torch.zeros(3), {}, [torch.zeros(3)], 7])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "odd.ckpt"
    torch.save(content, path)
    with pytest.raises(ArtifactError, match="contains no state_dict"):
        load_network(path, backbone=NANO_BACKBONE)


def test_a_file_whose_weights_are_not_where_they_are_looked_for_is_described_by_its_keys(tmp_path: Path) -> None:
    path, weights = tmp_path / "odd.ckpt", {"cls_token": torch.zeros(3)}
    torch.save({"epoch": 3, "ours": weights, "theirs": weights}, path)
    with pytest.raises(ArtifactError, match="its keys are epoch, ours, theirs; save only its weights"):
        read_state(path)


def test_a_name_of_nothing_but_wrappers_is_kept(tmp_path: Path) -> None:
    torch.save({"_orig_mod": torch.zeros(3), "module._orig_mod.": torch.zeros(2)}, tmp_path / "w.pth")
    assert list(read_state(tmp_path / "w.pth")) == ["_orig_mod", "module._orig_mod."]


def test_a_head_without_weights_takes_a_backbone_alone(tmp_path: Path, shallow: State) -> None:
    path = tmp_path / "compiled.pth"
    bare = {name.removeprefix("backbone."): tensor for name, tensor in only(shallow, "backbone.").items()}
    torch.save(before("_orig_mod.")(bare), path)
    network = load_network(path, head="prototype")
    assert torch.equal(network.encoder.vit.cls_token, bare["cls_token"])
    save_file(before("_orig_mod.")(bare), path.with_suffix(".safetensors"))  # has no configuration beside it
    again = load_network(path.with_suffix(".safetensors"), head="prototype")
    assert again.config == network.config
    assert torch.equal(again.encoder.vit.cls_token, bare["cls_token"])
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(ArtifactError, match=r"no backbone of a known kind: its first tensors are conv1\.weight"):
        load_network(path, head="prototype")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (NANO_BACKBONE, "resnet50", "'resnet50' is not supported"),
        ('"image_size": 48', '"image_size": -8', "multiple of the patch"),
        ('"head"', '"x"', "must have the fields"),
        ("", None, "is missing; a .safetensors checkpoint needs its configuration"),
    ],
)
def test_an_unusable_configuration_is_one_sentence(saved: Path, old: str, new: str | None, message: str) -> None:
    config = saved.with_suffix(".json")
    if new is None:
        config.unlink()
    else:
        config.write_text(config.read_text().replace(old, new))
    with pytest.raises(FsvitEdgeError, match=message):
        load_network(saved)


# ---- which backbone it is

INFERABLE = [name for name, resize in SUPPORTED_BACKBONES.items() if resize is not None and name not in OUR_BACKBONES]


def shapes_of(backbone: str) -> State:
    with torch.device("meta"):
        state: State = timm.create_model(backbone, num_classes=0).state_dict()
    return state


@pytest.mark.parametrize("backbone", INFERABLE)
def test_a_backbone_is_recognized_by_its_shapes(backbone: str) -> None:
    state = shapes_of(backbone)
    assert infer_backbone(state) == backbone
    published = {name.replace("reg_token", "register_tokens"): tensor for name, tensor in state.items()}
    assert infer_backbone(published) == backbone


def test_the_hybrid_is_recognized_by_its_stem() -> None:
    assert infer_backbone(Encoder(HYBRID_BACKBONE, 32).vit.state_dict()) == HYBRID_BACKBONE


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00001-of-00002.safetensors"])
def test_a_part_of_a_checkpoint_is_named_as_such(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ArtifactError, match=r"belongs to a checkpoint in several files; give one file with all shards"):
        read_state(tmp_path / name)


def test_a_file_without_a_backbone_is_described_by_its_names() -> None:
    with pytest.raises(ArtifactError, match=r"its first tensors are conv1\.weight, bn1\.bias, expected names such as"):
        infer_backbone({"conv1.weight": torch.zeros(2), "bn1.bias": torch.zeros(2)})


@pytest.mark.parametrize("backbone", ["vit_small_patch16_dinov3.lvd1689m", "vit_tiny_patch16_224", "resnet18"])
def test_an_unrecognized_backbone_must_be_named(backbone: str) -> None:
    with pytest.raises(ArtifactError, match=r"give its name with --backbone|expected names such as patch_embed"):
        infer_backbone(shapes_of(backbone))
