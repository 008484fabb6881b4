"""Compare the exported network with torch, for each output, on random and real pictures."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.heads import SplitHead
from fsvit_edge.model.graphs import EncoderGraph, EnrollGraph, HeadGraph, build_graphs
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.bundle import INT8_OUTLINE, OBJECTNESS
from fsvit_edge.runtime.engines.base import Array, ResidentTensor, on_host
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError, package_error
from fsvit_edge.runtime.machine import has_vnni_here
from fsvit_edge.runtime.preprocess import resize_image

PROBABILITY_TOLERANCE = 1e-4
"""Absolute tolerance of probabilities and masks."""
INT8_TOLERANCE = 0.02
"""Absolute tolerance of probabilities that are computed in INT8; the bundled model's differ by 0.001."""
SCALE_TOLERANCE = 1e-4
"""Tolerance of other outputs, relative to the output's largest absolute value."""

Picture = npt.NDArray[np.uint8]
"""(S, S, 3) uint8 RGB."""
Errors = dict[str, list[tuple[float, float]]]
"""graph.output -> difference and largest value in torch, of each picture."""


@dataclass(frozen=True)
class ParityRow:
    """The difference between torch and ONNX Runtime in one output of one graph."""

    output: str  # graph.output
    max_error: float
    """Largest absolute difference over all pictures, divided by the scale; for used_mask the largest share of pixels
    that differ."""
    tolerance: float  # largest error allowed
    scale: float  # largest absolute value in torch; 1 for probabilities and masks, which are compared as they are

    @property
    def passed(self) -> bool:
        """Whether the error is finite and within the tolerance."""
        return bool(self.max_error <= self.tolerance)

    @classmethod
    def over_pictures(cls, output: str, errors: list[tuple[float, float]]) -> "ParityRow":
        """Summarize an output's (difference, largest value in torch) of each picture."""
        is_absolute = output.startswith(("head.", "compare.", "outline.", INT8_OUTLINE)) or output.endswith("mask")
        # numpy's maximum, because Python's loses a NaN that is not the first.
        largest, largest_value = (float(value) for value in np.max(errors, axis=0))
        scale = 1.0 if is_absolute else max(largest_value, 1e-12)
        error = largest / scale if np.isfinite(largest) else float("inf")
        tolerance = PROBABILITY_TOLERANCE if is_absolute else SCALE_TOLERANCE
        return cls(output, error, INT8_TOLERANCE if output.startswith(INT8_OUTLINE) else tolerance, scale)


def verify(
    network: FewShotNetwork, models: dict[str, bytes], objectness_from: FewShotNetwork | None = None
) -> tuple[ParityRow, ...]:
    """Compare the graphs with torch: encoder and enroll with the traced modules, the head with the PUBLISHED network.

    encoder and enroll get what torch computed before them. The head's rows follow a frame through all three graphs, as
    on the device, and are compared with the network in the published order of operations; the prototype head has only
    one order, and is compared with its module. A separate objectness graph is compared with its module too.
    """
    size = network.config.image_size
    pictures = _pictures(size)
    masks = _masks(len(pictures), size)
    encoder, enroll = EncoderGraph(network).eval(), EnrollGraph(network).eval()
    errors: Errors = {}
    supports = []
    with ExitStack() as stack, torch.inference_mode():
        engines = {name: stack.enter_context(OnnxRuntimeEngine(data, "cpu")) for name, data in models.items()}
        for index, (picture, mask) in enumerate(zip(pictures, masks[:, None], strict=True)):
            answer = engines["encoder"].run({"image": picture[None]})
            names = [spec.name for spec in engines["encoder"].outputs]
            encoded = dict(zip(names, encoder(torch.from_numpy(picture[None])), strict=True))
            for name, wanted in encoded.items():
                _add(errors, f"encoder.{name}", answer[name], wanted)
            encoded.pop(OBJECTNESS, None)

            has_mask = np.array([index % 2 == 0])
            in_torch = enroll(*encoded.values(), torch.from_numpy(mask), torch.from_numpy(has_mask))
            feed = {name: tensor.numpy() for name, tensor in encoded.items()}
            cached = engines["enroll"].run({**feed, "mask": mask, "has_mask": has_mask})
            for spec, wanted in zip(engines["enroll"].outputs, in_torch, strict=True):
                _add(errors, f"enroll.{spec.name}", cached[spec.name], wanted)

            # As on the device, from the ONNX graphs only.
            feed = {name: answer[name].numpy() for name in encoded}
            cached = engines["enroll"].run({**feed, "mask": mask, "has_mask": np.array([True])})
            supports.append({"tokens": feed["tokens"], **{name: tensor.numpy() for name, tensor in cached.items()}})
        _compare_head(network, engines, pictures, masks, supports, errors)
        if objectness_from is not None:
            module = build_graphs(network, objectness_from)[OBJECTNESS].module.eval()
            for picture in pictures:
                (wanted,) = module(torch.from_numpy(picture[None]))
                answer = engines[OBJECTNESS].run({"image": picture[None]})
                _add(errors, f"{OBJECTNESS}.{OBJECTNESS}", answer[OBJECTNESS], wanted)
    return tuple(ParityRow.over_pictures(output, pairs) for output, pairs in errors.items())


def raise_on_failure(rows: tuple[ParityRow, ...]) -> None:
    """Refuse, with an AccuracyGateError, an export that computes something else than torch."""
    worst = [row for row in rows if not row.passed]
    if worst:
        names = ", ".join(f"{row.output} by {row.max_error:.2g} (tolerance {row.tolerance:.0e})" for row in worst)
        raise AccuracyGateError(f"ONNX Runtime differs from torch in {names}; no bundle was written.")


def _add(errors: Errors, output: str, ours: Array | ResidentTensor, reference: torch.Tensor) -> None:
    wanted = reference.numpy().astype(np.float64)
    differences = np.abs(on_host(ours).astype(np.float64) - wanted)
    # A cosine can be at the pseudo-mask's threshold: in 3 of 100 pictures of 400 px, one pixel differed.
    difference = differences.mean() if output == "enroll.used_mask" else differences.max()
    errors.setdefault(output, []).append((float(difference), float(np.abs(wanted).max())))


def _compare_head(
    network: FewShotNetwork,
    engines: Mapping[str, OnnxRuntimeEngine],
    pictures: list[Picture],
    masks: npt.NDArray[np.uint8],
    supports: list[dict[str, Array]],
    errors: Errors,
) -> None:
    """Compare the head, and that for CPUs, on one picture, with all pictures but the first as supports."""
    # Two supports of one class and one of another, so that averaging within a class is compared too.
    averaging = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], np.float32)
    # For noise the prototype head answers 0 whatever its constants, so it gets a picture that is also a support.
    query = 0 if network.prototype_head is None else len(pictures) - 1
    presence, foreground = _answer(network, pictures, query, masks, torch.from_numpy(averaging))
    names = {"kept": "support", "kept_mask": "kept_mask", "pooled": "pooled", "pooled_mask": "pooled_mask"}
    feed = {name: np.concatenate([support[cached] for support in supports[1:]]) for name, cached in names.items()}
    answer = engines["head"].run({"tokens": supports[query]["tokens"], **feed, "averaging": averaging})
    _add(errors, "head.presence", answer["presence"], presence)
    _add(errors, "head.foreground", answer["foreground"], foreground)
    if "compare" in engines:
        cached = [_as_cached(support) for support in supports[1:]]
        # Elsewhere, INT8 outlines are neither used nor exact.
        for name in ("outline", INT8_OUTLINE) if has_vnni_here() else ("outline",):
            head = SplitHead(engines["compare"], engines["compare"], engines[name], threads=1)
            found = head.compare(supports[query]["tokens"], ((cached[0], cached[1]), (cached[2],)))
            if name == "outline":
                _add(errors, "compare.presence", found.scores, presence)
            _add(errors, f"{name}.foreground", found.foreground(), foreground)


def _as_cached(support: Mapping[str, Array]) -> CachedSupport:
    """What the runtime keeps of a support, here without rounding to FP16."""
    keep = support["kept_mask"][0] > 0
    nothing = np.zeros((1, 1), np.bool_)
    return CachedSupport(
        kept=support["support"][0][:, keep],
        pooled=support["pooled"][0],
        pooled_mask=support["pooled_mask"][0] > 0,
        thumbnail=np.zeros((1, 1, 3), np.uint8),
        thumbnail_mask=nothing,
        has_mask=True,
    )


def _answer(
    network: FewShotNetwork,
    pictures: list[Picture],
    query: int,
    masks: npt.NDArray[np.uint8],
    averaging: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Torch's presence (W,) and foreground (W, 2 * grid, 2 * grid) for one picture."""
    if network.prototype_head is not None:
        encoder_graph, enroll_graph = EncoderGraph(network).eval(), EnrollGraph(network).eval()
        tokens = encoder_graph(torch.from_numpy(pictures[query][None]))[0]
        has_mask = torch.tensor([True])
        caches = [
            enroll_graph(*encoder_graph(torch.from_numpy(picture[None]))[:5], torch.from_numpy(mask[None]), has_mask)[
                :4
            ]
            for picture, mask in zip(pictures[1:], masks[1:], strict=True)
        ]
        supports = (torch.cat(parts) for parts in zip(*caches, strict=True))
        presence, foreground = HeadGraph(network)(tokens, *supports, averaging)
        return presence, foreground
    outputs = network.encoder(normalize(torch.from_numpy(np.stack(pictures[1:]))))
    encoded_query = network.encoder(normalize(torch.from_numpy(pictures[query][None])))
    logits = network.head(
        network.query_vectors(encoded_query), network.support_vectors(outputs), torch.from_numpy(masks[1:]).float()
    )
    present, thing = logits.presence.softmax(dim=1)[:, 1], logits.mask.softmax(dim=1)[:, 1]
    return averaging @ present, torch.einsum("ws,sij->wij", averaging, thing)


def _pictures(size: int) -> list[Picture]:
    """One random picture, then photographs that scikit-image ships."""
    try:
        from skimage import data
    except (ImportError, OSError) as error:
        install = 'pip install "fsvit-edge[export]", or export with --no-verify'
        raise package_error("Verifying on real pictures needs scikit-image", "skimage", install, error) from error
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return [noise, *(resize_image(getattr(data, name)(), size) for name in ("chelsea", "coffee", "astronaut"))]


def _masks(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Rectangles of different sizes (count, size, size), so that the supports keep different numbers of tokens."""
    masks = np.zeros((count, size, size), np.uint8)
    for index in range(count):
        masks[index, size // 8 : size // 3 + index * size // 6, size // 4 : size // 2 + index * size // 8] = 1
    return masks
