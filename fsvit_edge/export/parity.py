"""Compare the exported network with torch, for each output, on random and real pictures."""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fsvit_edge.model.graphs import EncoderGraph, EnrollGraph, HeadGraph, build_graphs
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.engines.base import Array, ResidentTensor
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError, EnvironmentLacksError
from fsvit_edge.runtime.preprocess import resize_image

PROBABILITY_TOLERANCE = 1e-4
"""Absolute tolerance of probabilities and masks."""
SCALE_TOLERANCE = 1e-4
"""Tolerance of other outputs, relative to the output's largest absolute value."""

Picture = npt.NDArray[np.uint8]
"""(S, S, 3) uint8 RGB."""


@dataclass(frozen=True)
class ParityRow:
    """The difference between torch and ONNX Runtime in one output of one graph.

    Attributes:
        output: graph.output.
        max_error: Largest absolute difference over all pictures, divided by the scale; for used_mask the largest share
            of pixels that differ.
        tolerance: Largest error allowed.
        scale: Largest absolute value in torch; 1 for probabilities and masks, which are compared as they are.
    """

    output: str
    max_error: float
    tolerance: float
    scale: float

    @property
    def passed(self) -> bool:
        """Whether the error is finite and within the tolerance."""
        return bool(self.max_error <= self.tolerance)

    @classmethod
    def over_pictures(cls, output: str, errors: list[tuple[float, float]]) -> "ParityRow":
        """Summarize an output's (difference, largest value in torch) of each picture."""
        is_absolute = output.startswith("head.") or output.endswith("mask")
        # numpy's maximum, because Python's loses a NaN that is not the first.
        largest, largest_value = (float(value) for value in np.max(errors, axis=0))
        scale = 1.0 if is_absolute else max(largest_value, 1e-12)
        error = largest / scale if np.isfinite(largest) else float("inf")
        return cls(output, error, PROBABILITY_TOLERANCE if is_absolute else SCALE_TOLERANCE, scale)


def verify(
    network: FewShotNetwork, models: dict[str, bytes], objectness_from: FewShotNetwork | None = None
) -> tuple[ParityRow, ...]:
    """Compare the graphs with torch: encoder and enroll with the traced modules, the head with the PUBLISHED network.

    encoder and enroll get what torch computed before them. The head's rows follow a frame through all three graphs, as
    on the device, and are compared with the network in the published order of operations; the prototype head has only
    one order, and is compared with its module.

    Args:
        network: The network in torch.
        models: Graph -> ONNX file: encoder, enroll, head, and objectness if it is a separate graph.
        objectness_from: The network that the separate objectness graph comes from.

    Raises:
        EnvironmentLacksError: scikit-image, which ships the pictures, is not installed.
    """
    size = network.config.image_size
    pictures = _pictures(size)
    masks = _masks(len(pictures), size)
    errors = _Errors()
    with ExitStack() as stack, torch.inference_mode():
        engines = {name: stack.enter_context(OnnxRuntimeEngine(data, "cpu")) for name, data in models.items()}
        supports = []
        for index, picture in enumerate(pictures):
            mask, has_mask = masks[index][None], np.array([index % 2 == 0])
            encoded = _compare_encoder(network, engines["encoder"], picture, errors)
            _compare_enroll(network, engines["enroll"], encoded, mask, has_mask, errors)
            supports.append(_enroll_as_device(engines, picture, mask))
        _compare_head(network, engines["head"], pictures, masks, supports, errors)
        if objectness_from is not None:
            module = build_graphs(network, objectness_from)["objectness"].module.eval()
            for picture in pictures:
                (wanted,) = module(torch.from_numpy(picture[None]))
                answer = engines["objectness"].run({"image": picture[None]})
                errors.add("objectness.objectness", answer["objectness"], wanted)
    return errors.rows()


def raise_on_failure(rows: tuple[ParityRow, ...]) -> None:
    """Refuse an export that computes something else than torch.

    Raises:
        AccuracyGateError: An output misses its tolerance.
    """
    worst = [row for row in rows if not row.passed]
    if worst:
        names = ", ".join(f"{row.output} by {row.max_error:.2g} (tolerance {row.tolerance:.0e})" for row in worst)
        raise AccuracyGateError(f"ONNX Runtime differs from torch in {names}; no bundle was written.")


class _Errors:
    """The errors of every output over all pictures."""

    def __init__(self) -> None:
        self._errors: dict[str, list[tuple[float, float]]] = {}

    def add(self, output: str, ours: ResidentTensor, reference: torch.Tensor) -> None:
        wanted = reference.numpy().astype(np.float64)
        differences = np.abs(ours.numpy().astype(np.float64) - wanted)
        # A cosine can be at the pseudo-mask's threshold: in 3 of 100 pictures of 400 px, one pixel differed.
        difference = differences.mean() if output == "enroll.used_mask" else differences.max()
        self._errors.setdefault(output, []).append((float(difference), float(np.abs(wanted).max())))

    def rows(self) -> tuple[ParityRow, ...]:
        return tuple(ParityRow.over_pictures(output, errors) for output, errors in self._errors.items())


def _compare_encoder(
    network: FewShotNetwork, encoder: OnnxRuntimeEngine, picture: Picture, errors: _Errors
) -> dict[str, torch.Tensor]:
    """Compare the encoder on one picture; returns torch's outputs by name, without objectness."""
    wanted = EncoderGraph(network).eval()(torch.from_numpy(picture[None]))
    encoded = dict(zip([spec.name for spec in encoder.outputs], wanted, strict=True))
    answer = encoder.run({"image": picture[None]})
    for name, reference in encoded.items():
        errors.add(f"encoder.{name}", answer[name], reference)
    encoded.pop("objectness", None)
    return encoded


def _compare_enroll(
    network: FewShotNetwork,
    enroll: OnnxRuntimeEngine,
    encoded: dict[str, torch.Tensor],
    mask: Array,
    has_mask: Array,
    errors: _Errors,
) -> None:
    """Compare enrollment on what torch's encoder computed."""
    wanted = EnrollGraph(network).eval()(*encoded.values(), torch.from_numpy(mask), torch.from_numpy(has_mask))
    inputs = {name: tensor.numpy() for name, tensor in encoded.items()}
    answer = enroll.run({**inputs, "mask": mask, "has_mask": has_mask})
    for spec, reference in zip(enroll.outputs, wanted, strict=True):
        errors.add(f"enroll.{spec.name}", answer[spec.name], reference)


def _enroll_as_device(engines: dict[str, OnnxRuntimeEngine], picture: Picture, mask: Array) -> dict[str, Array]:
    """Tokens and cached support of one picture with its mask, from the ONNX graphs only."""
    encoded = {name: tensor.numpy() for name, tensor in engines["encoder"].run({"image": picture[None]}).items()}
    encoded.pop("objectness", None)
    cached = engines["enroll"].run({**encoded, "mask": mask, "has_mask": np.ones((1,), np.bool_)})
    return {"tokens": encoded["tokens"], **{name: tensor.numpy() for name, tensor in cached.items()}}


def _compare_head(
    network: FewShotNetwork,
    head: OnnxRuntimeEngine,
    pictures: list[Picture],
    masks: npt.NDArray[np.uint8],
    supports: list[dict[str, Array]],
    errors: _Errors,
) -> None:
    """Compare the head on one picture, with all pictures but the first as supports."""
    # Two supports of one class and one of another, so that averaging within a class is compared too.
    averaging = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], np.float32)
    # For noise the prototype head answers 0 whatever its constants, so it gets a picture that is also a support.
    query = 0 if network.prototype_head is None else len(pictures) - 1
    presence, foreground = _answer(network, pictures, query, masks, torch.from_numpy(averaging))
    answer = head.run(
        {
            "tokens": supports[query]["tokens"],
            "kept": np.concatenate([support["support"] for support in supports[1:]]),
            "kept_mask": np.concatenate([support["kept_mask"] for support in supports[1:]]),
            "pooled": np.concatenate([support["pooled"] for support in supports[1:]]),
            "pooled_mask": np.concatenate([support["pooled_mask"] for support in supports[1:]]),
            "averaging": averaging,
        }
    )
    errors.add("head.presence", answer["presence"], presence)
    errors.add("head.foreground", answer["foreground"], foreground)


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
    except ImportError as error:
        raise EnvironmentLacksError(
            'Verifying on real pictures needs scikit-image; install it with: pip install "fsvit-edge[export]", '
            "or export with --no-verify."
        ) from error
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return [noise, *(resize_image(getattr(data, name)(), size) for name in ("chelsea", "coffee", "astronaut"))]


def _masks(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Rectangles of different sizes (count, size, size), so that the supports keep different numbers of tokens."""
    masks = np.zeros((count, size, size), np.uint8)
    for index in range(count):
        masks[index, size // 8 : size // 3 + index * size // 6, size // 4 : size // 2 + index * size // 8] = 1
    return masks
