"""The speed of cst-nano and ViT-S/8 alone: encoders, heads, and a frame against the published procedure.

ViT-S/8 has random weights, biases too, which do not change its speed.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from engines_here import FP32, INT8, ReferenceHead, open_everywhere
from results import AT_MOST, Figure, figure_of, ratio_of
from torch import nn
from turns import Setting, square_masks, take_turns

from fsvit_edge import FewShotModel
from fsvit_edge.export.pipeline import ExportOptions, export_bundle
from fsvit_edge.fewshot.cached_support import ClassSupports
from fsvit_edge.inspect.benchmark import FRAME_SIZE_HW, MASK_COVER
from fsvit_edge.live.sources.demo import demo_frame, demo_supports
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.network import FewShotNetwork, predict_published
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.base import Array, ResidentTensor
from fsvit_edge.runtime.preprocess import resize_image

WAYS = 5
SMALL_WAYS, SMALL_KEPT = 4, 80
OVERHEAD_WAYS = 3
_ABSENT = "FP32, all classes absent"

Frame = npt.NDArray[np.uint8]


def measure_small(setting: Setting) -> Iterator[Figure]:
    """Measure the bundled network."""
    bundle = Bundle.load(DEFAULT_BUNDLE)
    models = open_everywhere(bundle, setting.threads, setting.left_out)
    frame = demo_frame(0)
    name = f"{bundle.manifest.name} at {bundle.manifest.image_size} px"
    yield from _encoders("small", name, models, frame, setting, goal=1.8)
    model = models[FP32]
    classes = _cut_supports(model)
    yield from _heads("small_head", f"{name}, {SMALL_WAYS} supports", bundle, models, classes, frame, setting, goal=2.0)
    for support in demo_supports():
        model.enroll(support.name, [support.image], [support.mask])
    what = f"{name}, the demo's {len(demo_supports())} supports"
    yield from _heads("demo_head", what, bundle, models, model.bank.class_supports, frame, setting, goal=2.5)
    yield _overhead("small_rest", name, model, setting)


def measure_large(setting: Setting) -> Iterator[Figure]:
    """Measure a network of the paper's size."""
    network = random_network(setting.backbone, setting.image_size)
    bundle = Bundle.load(export_bundle(network, setting.folder / "large", ExportOptions(verify=False)).path)
    models = open_everywhere(bundle, setting.threads, setting.left_out)
    frame, *pictures = _blocks(1 + WAYS, (setting.image_size, setting.image_size))
    name = f"{network.config.backbone.partition('.')[0]} at {setting.image_size} px"
    yield from _encoders("large", name, models, frame, setting, goal=1.8)
    for model in models.values():
        _enroll_squares(model, WAYS)
    what = f"{name}, {WAYS} supports, masks covering {MASK_COVER:.0%}"
    classes = models[FP32].bank.class_supports
    yield from _heads("large_head", what, bundle, models, classes, frame, setting, goal=1.5)
    yield from _frames(name, network, models, frame, np.stack(pictures), setting)
    what = f"{name} (random masks: every pixel is undecided, the slowest case)"
    yield _overhead("large_rest", what, models[FP32], setting)
    yield _support_size(name, models[FP32], pictures[0])


def random_network(backbone: str, size: int) -> FewShotNetwork:
    """Return a network with random weights, biases too, because the exporter leaves out a bias of zeros."""
    network = FewShotNetwork(ModelConfig(f"{backbone}-random", backbone, size))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(_scaled(name, parameter, torch.randn(parameter.shape, generator=generator)))
    return network


def _encoders(
    name: str, title: str, models: Mapping[str, FewShotModel], frame: Frame, setting: Setting, goal: float
) -> Iterator[Figure]:
    picture = {"image": resize_image(frame, next(iter(models.values())).manifest.image_size)[None]}
    runs: dict[str, Callable[[], object]] = {
        engine: partial(model.network.encoder.run, picture) for engine, model in models.items()
    }
    times = take_turns(runs, setting.turns)
    for engine, seconds in times.items():
        key = f"{name}_encoder_{engine.lower().replace(' ', '_')}"
        yield figure_of(key, f"{title}: encoder, {engine}", "ms", _ms(seconds))
    yield ratio_of(f"{name}_int8", f"{title}: encoder, FP32 / INT8", times[FP32], times[INT8], goal=goal)


def _heads(
    name: str,
    title: str,
    bundle: Bundle,
    models: Mapping[str, FewShotModel],
    classes: Sequence[ClassSupports],
    frame: Frame,
    setting: Setting,
    goal: float,
) -> Iterator[Figure]:
    """Compare today's head with the exported one on the same supports: all outlines, and none, as if all are absent."""
    lengths = [support.kept.shape[1] for supports in classes for support in supports]
    reference = ReferenceHead(bundle, classes, setting.threads)
    tokens = models[FP32].network.encode(frame)["tokens"]
    runs: dict[str, Callable[[], object]] = {"reference": partial(reference.compare, tokens)}
    for engine, model in models.items():
        runs[engine] = partial(_with_outlines, model, tokens, classes)
    runs[_ABSENT] = partial(models[FP32].network.compare, tokens, classes)
    times = take_turns(runs, setting.turns)
    kept = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
    title = f"{title} of {kept} kept tokens"
    for engine in runs:
        if engine != "reference":
            key = f"{name}_{engine.lower().replace(',', '').replace(' ', '_')}"
            shown = "INT8 outlines" if engine == INT8 else engine
            yield figure_of(key, f"{title}: head, {shown}", "ms", _ms(times[engine]))
    compared = f"{title}: exported head, padded / ours"
    yield ratio_of(f"{name}_ratio", compared, times["reference"], times[FP32], goal=goal)
    yield ratio_of(f"{name}_int8_ratio", f"{compared}, INT8 outlines", times["reference"], times[INT8], goal=goal)
    yield ratio_of(f"{name}_absent_ratio", f"{compared}, all absent", times["reference"], times[_ABSENT])
    found = models[FP32].network.compare(tokens, classes)
    theirs, ours = reference.compare(tokens), (found.scores, found.foreground())
    largest = max(
        float(np.abs(np.asarray(one, np.float32) - other).max()) for one, other in zip(theirs, ours, strict=True)
    )
    most = bundle.manifest.most_tokens
    merged = f" (ours compares with at most {most} tokens of a support)" if most else ""
    yield figure_of(f"{name}_difference", f"{title}: largest difference of a probability{merged}", "", [largest])
    in_int8 = _with_outlines(models[INT8], tokens, classes)
    what = f"{title}: largest difference of outlines in INT8 from those in FP32"
    difference = np.abs(np.asarray(in_int8, np.float32) - found.foreground()).max()
    yield figure_of(f"{name}_int8_difference", what, "", [float(difference)])


def _with_outlines(model: FewShotModel, tokens: Array | ResidentTensor, classes: Sequence[ClassSupports]) -> Array:
    return model.network.compare(tokens, classes).foreground()


def _frames(
    title: str,
    network: FewShotNetwork,
    models: Mapping[str, FewShotModel],
    frame: Frame,
    pictures: Frame,
    setting: Setting,
) -> Iterator[Figure]:
    masks = square_masks(setting.image_size, WAYS)
    arguments = (torch.from_numpy(frame), torch.from_numpy(pictures), torch.from_numpy(masks), WAYS)
    runs: dict[str, Callable[[], object]] = {"published": partial(predict_published, network, *arguments)}
    runs |= {engine: partial(model.predict, frame) for engine, model in models.items()}
    times = take_turns(runs, setting.turns)
    what = f"{title}, one frame, {WAYS} ways 1 shot"
    for engine in models:
        key = f"large_frame_{engine.lower().replace(' ', '_')}"
        yield figure_of(key, f"{what}, {engine}", "ms", _ms(times[engine]))
    compared = f"{what}: published procedure in PyTorch / ours"
    yield ratio_of("large_frame_ratio", f"{compared}, FP32", times["published"], times[FP32], goal=18)
    fastest = min(models, key=lambda engine: float(np.median(times[engine])))
    compared = f"{compared}, {fastest} (the fastest here)"
    yield ratio_of("large_frame_fastest", compared, times["published"], times[fastest], goal=30)


def _overhead(name: str, title: str, model: FewShotModel, setting: Setting) -> Figure:
    for kept in model.classes:
        model.remove(kept)
    _enroll_squares(model, OVERHEAD_WAYS)
    frame = _blocks(1, FRAME_SIZE_HW)[0]
    outside_ms = []
    for _ in range(1 + setting.turns):
        started = time.perf_counter()
        stages = model.predict(frame).latency_ms
        outside_ms.append((time.perf_counter() - started) * 1e3 - stages["encoder"] - stages["head"])
    what = f"{title}, {OVERHEAD_WAYS} ways, 1280 x 720 frames: everything but encoder and head"
    return figure_of(name, what, "ms", outside_ms[1:], goal=5, bound=AT_MOST)


def _support_size(title: str, model: FewShotModel, picture: Frame) -> Figure:
    whole = np.ones(picture.shape[:2], np.bool_)
    model.enroll("whole", [picture], [whole])
    size_mb = model.bank.supports("whole")[0].nbytes / 1e6
    what = f"{title}: cached support in FP16, mask covering everything"
    return figure_of("large_support", what, "MB", [size_mb], goal=1.4, bound=AT_MOST)


def _cut_supports(model: FewShotModel) -> list[ClassSupports]:
    """Return classes of one support each that keeps exactly `SMALL_KEPT` tokens; the model keeps no class."""
    classes: list[ClassSupports] = []
    for support in demo_supports()[:SMALL_WAYS]:
        model.enroll("whole", [support.image], [np.ones(support.image.shape[:2], np.bool_)])
        kept = model.bank.supports("whole")[0]
        classes.append((replace(kept, kept=kept.kept[:, :SMALL_KEPT]),))
        model.remove("whole")
    return classes


def _enroll_squares(model: FewShotModel, ways: int) -> None:
    size = model.manifest.image_size
    for way, mask in enumerate(square_masks(size, ways)):
        picture = demo_supports()[way % len(demo_supports())].image
        model.enroll(f"class {way}", [resize_image(picture, size)], [mask])


def _blocks(count: int, size_hw: tuple[int, int]) -> Frame:
    """Return pictures of random blocks of color, (count, H, W, 3) uint8, with structure at the size of patches."""
    height, width = size_hw
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, 1).repeat(16, 2)[:, :height, :width])


def _scaled(name: str, parameter: nn.Parameter, values: torch.Tensor) -> torch.Tensor:
    leaf = name.rpartition(".")[2]
    if leaf in ("pos_embed", "cls_token"):
        return 0.2 * values
    if parameter.ndim > 1:
        return values / parameter[0].numel() ** 0.5
    return 1 + 0.1 * values if leaf == "weight" else 0.05 * values


def _ms(seconds: list[float]) -> list[float]:
    return [1e3 * one for one in seconds]
