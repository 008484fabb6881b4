"""The graphs of a bundle on their engines: a picture is encoded, then enrolled as a support or compared with supports.

encoder     picture -> tokens (and objectness, if the encoder computes it)
enroll      tokens and a mask -> what the head keeps of a support
head        tokens of a frame and supports -> P(present) and P(foreground) of each class; see `heads.py`
objectness  picture -> objectness, if the bundle has a graph of its own for it
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fsvit_edge.fewshot.bank import MAX_CLASSES, SupportBank
from fsvit_edge.fewshot.cached_support import ClassSupports
from fsvit_edge.fewshot.heads import Head, HeadAnswer, PaddedHead, SplitHead, check_finite, known_size
from fsvit_edge.fewshot.identity import EncoderIdentity, HeadIdentity
from fsvit_edge.fewshot.support_masks import Image, Mask
from fsvit_edge.runtime.bundle import EXPORT_AGAIN, OBJECTNESS, Manifest
from fsvit_edge.runtime.engines.base import WIDE_COMPARE, Array, Engine, ResidentTensor, on_host
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.postprocess import Maps
from fsvit_edge.runtime.preprocess import resize_image, resize_mask


class ExportedNetwork:
    """The graphs of a bundle on engines that are already open.

    Raises:
        ArtifactError: The graphs do not have the sizes that the manifest states.
    """

    def __init__(self, manifest: Manifest, engines: Mapping[str, Engine]) -> None:
        self.manifest = manifest
        self.encoder = engines["encoder"]
        self.enroll = engines["enroll"]
        self.head = _open_head(manifest, engines)
        self._encoded = 0
        self.objectness = engines.get(OBJECTNESS)
        encoded = {spec.name: spec for spec in self.encoder.outputs}
        tokens = encoded["tokens"]
        self.has_objectness = self.objectness is not None or OBJECTNESS in encoded
        # Channels C, tokens T of a picture, values d per token and channel.
        self.num_channels, self.num_tokens, self.head_dim = (known_size(tokens, axis) for axis in (1, 2, 3))
        image = next(spec for spec in self.encoder.inputs if spec.name == "image")
        support = next(spec for spec in self.enroll.outputs if spec.name == "support")
        for what, stated, found in (
            ("images of image_size", manifest.image_size, image.shape[1]),
            ("masks of mask_size", manifest.mask_size, self.head.mask_size),
            ("num_layers x num_heads =", manifest.num_layers * manifest.num_heads, self.num_channels),
            (
                "(image_size / patch_size)^2 =",
                (manifest.image_size // (manifest.patch_size or 1)) ** 2,
                self.num_tokens,
            ),
            ("support_grid^2 + 1 =", manifest.support_grid**2 + 1, support.shape[2]),
        ):
            if stated != found:
                raise ArtifactError(
                    f"The manifest of {manifest.name} states {what} {stated}, its graphs have {found}; {EXPORT_AGAIN}."
                )

    def empty_bank(self, precision: str) -> SupportBank:
        """Return a bank for classes that these graphs enroll in this precision."""
        graphs, size = self.manifest.graphs, self.manifest.image_size
        encoder = (self.manifest.name, graphs["encoder"].sha256, size, self.num_channels, self.head_dim, precision)
        return SupportBank(EncoderIdentity(*encoder), HeadIdentity(graphs["head"].sha256, self.manifest.presence_level))

    @property
    def steps(self) -> int:
        """Grows whenever a part of a frame's work is done; from any thread."""
        return self._encoded + self.head.steps

    @property
    def max_classes(self) -> int:
        """How many classes the head can compare: as many as a bank can hold, or as its engine was built for."""
        return min(MAX_CLASSES, self.head.limits.get("ways", MAX_CLASSES))

    def check_ways(self, ways: int) -> None:
        """Refuse more classes than the head's engine was built for, with an ArtifactError."""
        if ways > self.head.limits.get("ways", ways):
            raise ArtifactError(
                f"The head engine was built for at most {self.max_classes} classes, the bank has {ways}; rebuild it "
                f"with: fsvit-edge build-engine --max-ways {ways}, and the options it was built with."
            )

    def encode(self, image: Image) -> dict[str, ResidentTensor]:
        """Encode an (H, W, 3) uint8 RGB picture of any size: "tokens" (1, C, T, d) and the encoder's other outputs."""
        encoded = self.encoder.run({"image": resize_image(image, self.manifest.image_size)[None]})
        self._encoded += 1
        return encoded

    def objectness_of(self, encoded: Mapping[str, Array | ResidentTensor], image: Image) -> Maps | None:
        """Return the objectness logits (n, n) float32 of an encoded picture; None if the bundle has no objectness."""
        logits = encoded.get(OBJECTNESS)
        if logits is None and self.objectness is not None:
            logits = self.objectness.run({"image": resize_image(image, self.manifest.image_size)[None]})[OBJECTNESS]
        return None if logits is None else check_finite(np.asarray(on_host(logits)[0], np.float32), "objectness")

    def run_enroll(self, encoded: Mapping[str, Array | ResidentTensor], mask: Mask | None) -> dict[str, Array]:
        """Run the enroll graph on what `encode` returned, with an (H, W) mask of any size or the encoder's own guess.

        Returns:
            "support" (1, C, 1 + T, d), "kept_mask" (1, 1 + T), "pooled" (1, C, 9, d), "pooled_mask" (1, 9) and
            "used_mask" (1, S, S) uint8, the mask or the guess at the encoder's input size.
        """
        size = self.manifest.image_size
        feed: dict[str, Array | ResidentTensor] = {
            **_cast_for(encoded, self.encoder, self.enroll),
            "mask": np.zeros((1, size, size), np.uint8) if mask is None else resize_mask(mask, size)[None],
            "has_mask": np.array([mask is not None]),
        }
        support = {name: tensor.numpy() for name, tensor in self.enroll.run(feed).items()}
        for name in ("support", "pooled"):
            check_finite(np.asarray(support[name], np.float32), name)
        return support

    def compare(
        self,
        tokens: Array | ResidentTensor,
        classes: Sequence[ClassSupports],
        negatives: Sequence[ClassSupports] = (),
    ) -> HeadAnswer:
        """Compare an encoded frame ("tokens" of `encode`) with the supports of classes and negatives of this encoder.

        Returns:
            The answer for the classes, then for the negatives.

        Raises:
            ArtifactError: The head's engine was built for fewer classes.
        """
        self.check_ways(len(classes))
        made = next(spec.dtype for spec in self.encoder.outputs if spec.name == "tokens")
        if made != self.head.token_dtype:
            tokens = on_host(tokens).astype(self.head.token_dtype)
        return self.head.compare(tokens, [*classes, *negatives])

    def close(self) -> None:
        """Close the engines; a second call does nothing."""
        self.head.close()
        for engine in (self.encoder, self.enroll, self.objectness):
            if engine is not None:
                engine.close()


def _cast_for(
    tensors: Mapping[str, Array | ResidentTensor], source: Engine, target: Engine
) -> dict[str, Array | ResidentTensor]:
    """Select what the target engine takes of the source's outputs, cast on the host where the types differ."""
    made = {spec.name: spec.dtype for spec in source.outputs}
    taken = {spec.name: spec.dtype for spec in target.inputs}
    return {
        name: tensor if made[name] == taken[name] else on_host(tensor).astype(taken[name])
        for name, tensor in tensors.items()
        if name in taken
    }


def _open_head(manifest: Manifest, engines: Mapping[str, Engine]) -> Head:
    if "compare" not in engines:
        return PaddedHead(engines["head"], manifest.head)
    wide = engines[WIDE_COMPARE]
    assert isinstance(wide, OnnxRuntimeEngine)
    return SplitHead(engines["compare"], wide, engines["outline"], wide.threads, manifest.most_tokens)
