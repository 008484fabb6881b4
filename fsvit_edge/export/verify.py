"""Does the exported network compute what torch computes? Measured, per output, on random and on real pictures."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fsvit_edge.model.graphs import EncoderGraph, EnrollGraph, PrototypeGraph, build_graphs
from fsvit_edge.model.network import FewShotNetwork, normalize
from fsvit_edge.runtime.engines.base import Array, ResidentTensor
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import AccuracyGateError, EnvironmentLacksError
from fsvit_edge.runtime.preprocess import resize_image

PROBABILITY_TOLERANCE = 1e-4
"""Absolute."""
SCALE_TOLERANCE = 1e-4
"""Relative to the largest absolute value of the output."""


@dataclass(frozen=True)
class ParityRow:
    """One output of one graph.

    Attributes:
        output: graph.output.
        max_error: Largest absolute difference over all pictures, divided by the scale where that is relative; of
            used_mask the largest share of pixels that differ.
        tolerance: What it may be.
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


def verify(
    network: FewShotNetwork, models: dict[str, bytes], beside: FewShotNetwork | None = None
) -> tuple[ParityRow, ...]:
    """Compare encoder and enrollment with their torch modules, and the head with the PUBLISHED order of operations.

    The head without weights has one order of operations alone and is compared with its torch module.

    Each graph is fed what torch computed before it, except the last two rows: they follow a frame through all three
    graphs, as the device does, against the plain network from the same pictures.

    Args:
        network: The network in torch.
        models: The ONNX graphs by name: encoder, enroll, head, and objectness where it is a graph of its own.
        beside: The network of that graph.
    """
    size = network.config.image_size
    pictures = _pictures(size)
    masks = _masks(len(pictures), size)
    errors: dict[str, list[tuple[float, float]]] = {}

    def compare(output: str, ours: Array, reference: torch.Tensor) -> None:
        wanted = reference.numpy().astype(np.float64)
        differences = np.abs(ours.astype(np.float64) - wanted)
        # A cosine may lie at the pseudo-mask's threshold: in 3 of 100 pictures of 400 px, one pixel fell the other way.
        difference = differences.mean() if output == "enroll.used_mask" else differences.max()
        errors.setdefault(output, []).append((float(difference), float(np.abs(wanted).max())))

    with (
        OnnxRuntimeEngine(models["encoder"], "cpu") as encoder,
        OnnxRuntimeEngine(models["enroll"], "cpu") as enroll,
        OnnxRuntimeEngine(models["head"], "cpu") as head,
        torch.inference_mode(),
    ):
        encoder_graph, enroll_graph = EncoderGraph(network).eval(), EnrollGraph(network).eval()
        chained: list[dict[str, Array]] = []
        for index, picture in enumerate(pictures):
            wanted = encoder_graph(torch.from_numpy(picture[None]))
            names = [spec.name for spec in encoder.outputs]
            got = {name: tensor.numpy() for name, tensor in encoder.run({"image": picture[None]}).items()}
            for name, reference in zip(names, wanted, strict=True):
                compare(f"encoder.{name}", got[name], reference)
            mask, has_mask = masks[index][None], np.array([index % 2 == 0])
            encoded = dict(zip(names, wanted, strict=True))
            encoded.pop("objectness", None)
            got.pop("objectness", None)
            feed: dict[str, Array | ResidentTensor] = {
                **{name: tensor.numpy() for name, tensor in encoded.items()},
                "mask": mask,
                "has_mask": has_mask,
            }
            cached = enroll_graph(*encoded.values(), torch.from_numpy(mask), torch.from_numpy(has_mask))
            for name, reference in zip([spec.name for spec in enroll.outputs], cached, strict=True):
                compare(f"enroll.{name}", enroll.run(feed)[name].numpy(), reference)
            full = np.ones((1,), np.bool_)
            own = enroll.run({**got, "mask": mask, "has_mask": full})
            chained.append({"tokens": got["tokens"], **{name: tensor.numpy() for name, tensor in own.items()}})

        # The first two supports are one class, so that what they say of each other is compared too.
        averaging = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], np.float32)
        # The prototype head says 0 of noise whatever its constants; it is shown a picture that is a support as well.
        asked = 0 if network.prototype_head is None else len(pictures) - 1
        presence, foreground = _answer(network, pictures, asked, masks, torch.from_numpy(averaging))
        supports = chained[1:]
        answer = head.run(
            {
                "tokens": chained[asked]["tokens"],
                "kept": np.concatenate([support["support"] for support in supports]),
                "kept_mask": np.concatenate([support["kept_mask"] for support in supports]),
                "pooled": np.concatenate([support["pooled"] for support in supports]),
                "pooled_mask": np.concatenate([support["pooled_mask"] for support in supports]),
                "averaging": averaging,
            }
        )
        compare("head.presence", answer["presence"].numpy(), presence)
        compare("head.foreground", answer["foreground"].numpy(), foreground)
        if beside is not None:
            own_graph = build_graphs(network, beside)["objectness"].module.eval()
            with OnnxRuntimeEngine(models["objectness"], "cpu") as objectness:
                for picture in pictures:
                    answer = objectness.run({"image": picture[None]})
                    (reference,) = own_graph(torch.from_numpy(picture[None]))
                    compare("objectness.objectness", answer["objectness"].numpy(), reference)
    return tuple(_row(output, pairs) for output, pairs in errors.items())


def raise_on_failure(rows: tuple[ParityRow, ...]) -> None:
    """Refuse an export whose numbers are not torch's.

    Raises:
        AccuracyGateError: An output misses its tolerance.
    """
    worst = [row for row in rows if not row.passed]
    if worst:
        names = ", ".join(f"{row.output} by {row.max_error:.2g} (tolerance {row.tolerance:.0e})" for row in worst)
        raise AccuracyGateError(f"ONNX Runtime differs from torch in {names}; no bundle was written.")


def _answer(
    network: FewShotNetwork,
    pictures: list[npt.NDArray[np.uint8]],
    asked: int,
    masks: npt.NDArray[np.uint8],
    averaging: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What torch says of one picture, with all but the first as supports: presence and foreground."""
    if network.prototype_head is not None:
        encoder_graph, enroll_graph = EncoderGraph(network).eval(), EnrollGraph(network).eval()
        tokens = encoder_graph(torch.from_numpy(pictures[asked][None]))[0]
        has_mask = torch.tensor([True])
        caches = [
            enroll_graph(*encoder_graph(torch.from_numpy(picture[None]))[:5], torch.from_numpy(mask[None]), has_mask)[
                :4
            ]
            for picture, mask in zip(pictures[1:], masks[1:], strict=True)
        ]
        supports = (torch.cat(parts) for parts in zip(*caches, strict=True))
        presence, foreground = PrototypeGraph(network.prototype_head)(tokens, *supports, averaging)
        return presence, foreground
    outputs = network.encoder(normalize(torch.from_numpy(np.stack(pictures[1:]))))
    query = network.encoder(normalize(torch.from_numpy(pictures[asked][None])))
    logits = network.head(
        network.query_vectors(query), network.support_vectors(outputs), torch.from_numpy(masks[1:]).float()
    )
    present, thing = logits.presence.softmax(dim=1)[:, 1], logits.mask.softmax(dim=1)[:, 1]
    return averaging @ present, torch.einsum("ws,sij->wij", averaging, thing)


def _row(output: str, pairs: list[tuple[float, float]]) -> ParityRow:
    absolute = output.startswith("head.") or output.endswith("mask")
    # numpy's maximum, because Python's loses a NaN that is not the first.
    largest, largest_value = (float(value) for value in np.max(pairs, axis=0))
    scale = 1.0 if absolute else max(largest_value, 1e-12)
    error = largest / scale if np.isfinite(largest) else float("inf")
    return ParityRow(output, error, PROBABILITY_TOLERANCE if absolute else SCALE_TOLERANCE, scale)


def _pictures(size: int) -> list[npt.NDArray[np.uint8]]:
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
    """Rectangles of different cover, so that the supports of one run keep different numbers of tokens."""
    masks = np.zeros((count, size, size), np.uint8)
    for index in range(count):
        masks[index, size // 8 : size // 3 + index * size // 6, size // 4 : size // 2 + index * size // 8] = 1
    return masks
