"""`FewShotModel`: enroll classes from a few pictures, then ask of every frame what is there and where."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from fsvit_edge.runtime.bank import MAX_CLASSES, EncoderIdentity, HeadIdentity, SupportBank, check_name
from fsvit_edge.runtime.box_mask import Box, mask_from_box
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, MANIFEST_NAME, OBJECTNESS, Bundle, Manifest
from fsvit_edge.runtime.cached_support import CachedSupport
from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor
from fsvit_edge.runtime.engines.choose import EngineChoice, choose_engines
from fsvit_edge.runtime.errors import ArtifactError, InputError, UnseenThingError
from fsvit_edge.runtime.head_runs import head_runs
from fsvit_edge.runtime.outlines import OUTLINES, objectness_weight, recognized, sharpen
from fsvit_edge.runtime.pictures import thumbnail
from fsvit_edge.runtime.postprocess import label_map, upsample_foreground
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.preprocess import check_rgb, resize_image, resize_mask, resize_nearest
from fsvit_edge.runtime.presence_level import check_level
from fsvit_edge.runtime.support_crop import support_window
from fsvit_edge.runtime.support_masks import Image, Mask, check_support, support_masks
from fsvit_edge.runtime.thing_mask import thing_in_box, thing_of_name

Probabilities = npt.NDArray[np.float32]

_THUMBNAIL_PX = 96
_MOST_JUDGES = 5
"""Supports that judge a new one: enough for a mean, and the hundredth picture costs no more than the sixth."""


@dataclass(frozen=True)
class Enrollment:
    """What was learned of a class.

    Attributes:
        name: The class.
        shots: Supports that the class has now.
        mask_cover: Share of each new picture that its mask, given or guessed, covers, in [0, 1].
        kept_tokens: Image tokens of each new picture that the mask keeps, at least 1.
        masks: (H, W) bool for each new picture, at its size: the mask that was used, given, made of a box or guessed.
    """

    name: str
    shots: int
    mask_cover: tuple[float, ...]
    kept_tokens: tuple[int, ...]
    masks: tuple[Mask, ...] = field(compare=False, repr=False)


class FewShotModel:
    """An exported network with its enrolled classes. Close it, or use it as a context manager.

    Use `FewShotModel.load`; the constructor takes engines that are already open.

    Args:
        manifest: What the bundle says.
        encoder: Runs `encoder.onnx`.
        enroll: Runs `enroll.onnx`.
        head: Runs `head.onnx`.
        choice: What these engines are; None: somebody's, of the bundle's precision.
        objectness: Runs `objectness.onnx`, where the bundle has it.

    Attributes:
        choice: What computes, and why nothing else does.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: Engine,
        enroll: Engine,
        head: Engine,
        choice: EngineChoice | None = None,
        objectness: Engine | None = None,
    ) -> None:
        self.manifest = manifest
        self.choice = choice or EngineChoice("given", manifest.precision, "engines that were given")
        self._encoder = encoder
        self._enroll = enroll
        self._head = head
        self._objectness = objectness
        tells = objectness is not None or any(spec.name == OBJECTNESS for spec in encoder.outputs)
        self._outlines = "sharp" if tells else "plain"
        self._tells_objectness = tells
        tokens = next(spec for spec in encoder.outputs if spec.name == "tokens")
        channels, num_query, head_dim = (_known(size) for size in tokens.shape[1:])
        self._num_query = num_query
        self.bank = SupportBank(
            EncoderIdentity(
                manifest.name,
                manifest.graphs["encoder"].sha256,
                manifest.image_size,
                channels,
                head_dim,
                self.choice.precision,
            ),
            HeadIdentity(manifest.graphs["head"].sha256, manifest.presence_level),
        )
        self._level_for_all: float | None = None
        self._runs: list[dict[str, ResidentTensor]] | None = None
        self._blas = ThreadpoolController().select(user_api="blas")

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> "FewShotModel":
        """Open a bundle.

        Args:
            bundle: The folder; None for the small model that is shipped.
            engine: "cpu" or "cuda" (ONNX Runtime), "tensorrt" or "tensorrt-rtx" (engines that build-engine made), or
                "auto": the fastest that is here; `choice` tells which, and why not another.
            precision: "fp32", "fp16" or "int8", for which engines must have been built; "auto" takes the engine's.
            threads: Threads within an operator; None for every core.

        Raises:
            ArtifactError: The bundle is missing, altered or damaged, or no engine that fits was built.
            EnvironmentLacksError: The engine is not installed here, or finds no device.
            InputError: There is no such engine or precision.
        """
        loaded = Bundle.load(DEFAULT_BUNDLE if bundle is None else Path(bundle))
        opened = choose_engines(loaded, engine, precision, threads)
        model = cls(loaded.manifest, opened.encoder, opened.enroll, opened.head, opened.choice, opened.objectness)
        stated = (loaded.manifest.image_size, loaded.manifest.mask_size)
        found = (opened.encoder.inputs[0].shape[1], opened.head.outputs[1].shape[1])
        if stated != found:
            model.close()
            raise ArtifactError(
                f"{loaded.path / MANIFEST_NAME} states images of {stated[0]} px and masks of {stated[1]}, its "
                f"graphs have {found[0]} and {found[1]}; export the bundle again with: fsvit-edge export."
            )
        return model

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the enrolled classes, in the order of enrollment."""
        return self.bank.classes

    @property
    def max_classes(self) -> int:
        """How many classes can be enrolled: as many as a bank holds, or as the head's engine was built for."""
        return min(MAX_CLASSES, self._head.limits.get("ways", MAX_CLASSES))

    @property
    def outlines(self) -> str:
        """Of what outlines are made: "plain" is CST's foreground alone; "sharp", where the bundle can, adds objectness.

        Also of what supports are made: a class enrolled while outlines are plain has nothing of objectness in it.

        Raises:
            InputError: On setting: there is no such kind, or the bundle tells no objectness.
        """
        return self._outlines

    @outlines.setter
    def outlines(self, kind: str) -> None:
        if kind not in OUTLINES:
            raise InputError(f"Outlines are {' or '.join(OUTLINES)}, got {kind!r:.40}.")
        if kind == "sharp" and not self._tells_objectness:
            raise InputError(
                f"Bundle {self.manifest.name} tells no objectness, which sharp outlines need; export it with: "
                "fsvit-edge export --objectness."
            )
        self._outlines = kind

    def enroll(
        self,
        name: str,
        images: Sequence[Image],
        masks: Sequence[Mask | None] | None = None,
        boxes: Sequence[Box | None] | None = None,
        level: float | None = None,
    ) -> Enrollment:
        """Learn a class from pictures, or add pictures to a class.

        Costs one run of the encoder for each picture, two where a small thing is found by the name alone: where the
        bundle says so (`Manifest.support_crop`), the encoder sees a part of the picture around a small thing.

        A picture of a class that has others is judged by them, which costs a run of the head, and the level of the
        class follows; see `presence_level.level_of_supports`.

        Args:
            name: The class.
            images: (H, W, 3) uint8 RGB pictures that show it.
            masks: For each picture (H, W), not 0 where the thing is; None, for one or for all, where only the name is
                known: the encoder's own pseudo-mask stands in.
            boxes: For each picture a box around the thing, which stands for the mask that `mask_of_box` makes of it;
                None, for one or for all, where there is none.
            level: The score above which the class is present, in (0, 1), set by hand; None leaves it to the pictures,
                or as it was set by hand before.

        Raises:
            UnseenThingError: The thing is too small in a picture; the bank is as it was.
            InputError: The name, a picture, a mask, a box or the level cannot be used; the bank is as it was.
            ArtifactError: The head's engine was built for fewer classes; the bank is as it was.
        """
        check_name(name)
        if level is not None:
            check_level(level)
        if name not in self.classes:
            self._check_ways(len(self.classes) + 1)
        given = support_masks(name, images, masks, boxes, self.mask_of_box)
        others = list(self.bank.supports(name)) if name in self.classes else []
        supports: list[CachedSupport] = []
        used: list[Mask] = []
        for index, (image, mask) in enumerate(zip(images, given, strict=True)):
            support, seen = self._cache(image, mask, [*others, *supports])
            if support.kept.shape[1] == 1:
                raise UnseenThingError(f"Picture {index + 1} of {name!r}", index)
            supports.append(support)
            used.append(seen)
        self.bank.add(name, supports)
        if level is not None:
            self.bank.set_level(name, level)
        self._runs = None
        kept = tuple(support.kept.shape[1] - 1 for support in supports)
        covers = tuple(float(mask.mean()) for mask in used)
        return Enrollment(name, len(self.bank.supports(name)), covers, kept, tuple(used))

    def predict(self, rgb: Image, probabilities: bool = False) -> Prediction:
        """Judge one frame against every enrolled class.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            probabilities: Also return P(foreground) at the frame's size, which costs a few milliseconds a class.

        Raises:
            InputError: The frame is not such an array.
        """
        check_rgb(rgb, "The frame")
        # numpy's BLAS threads keep spinning after a product and starve the engine: 25 ms a frame on two cores.
        with self._blas.limit(limits=1):
            return self._predict(rgb, probabilities)

    def predict_with(self, rgb: Image, banks: Sequence[SupportBank]) -> list[Prediction]:
        """Judge one frame by other classes than the enrolled: by each bank in turn, while the encoder runs once.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            banks: Made of what `cache_support` returned; this model's own bank stays as it is.

        Returns:
            One answer for each bank; its latency is that of head and post-processing.

        Raises:
            InputError: The frame is not such an array.
        """
        check_rgb(rgb, "The frame")
        size_hw = (rgb.shape[0], rgb.shape[1])
        predictions = []
        with self._blas.limit(limits=1):
            encoded = self._encode(rgb)
            objectness = self._objectness_of(encoded, rgb) if self._outlines == "sharp" else None
            for bank in banks:
                with self._judging_by(bank):
                    clock = _Clock()
                    scores, foreground = self._compare(encoded["tokens"])
                    clock.lap("head")
                    labels = self._labels(self._sharpened(foreground, objectness), scores, size_hw)
                    clock.lap("postprocess")
                    predictions.append(Prediction(bank.classes, scores, self._levels(), labels, None, clock.laps_ms))
        return predictions

    def cache_support(
        self, name: str, image: Image, mask: Mask | None = None, others: Sequence[CachedSupport] = ()
    ) -> CachedSupport:
        """Compute what `enroll` would keep of one picture, and keep it nowhere.

        A thing too small to see is no error here: the published episodes have some, and there the picture as a whole
        is compared.

        Args:
            name: The class, for the errors.
            image: See `enroll`.
            mask: See `enroll`.
            others: The class's other supports, by which the picture is judged.

        Raises:
            InputError: The picture or its mask cannot be used.
        """
        check_support(name, image, mask)
        return self._cache(image, mask, others)[0]

    def mask_of_box(self, image: Image, box_xyxy: Box) -> Mask:
        """Make a mask of the thing in a box: what objectness marks in it, or an ellipse where that is not told.

        Args:
            image: (H, W, 3) uint8 RGB.
            box_xyxy: Left, top, right and bottom in pixels, right and bottom exclusive.

        Returns:
            (H, W) bool, nowhere outside the box.

        Raises:
            InputError: The picture is none, or the box holds less than 4 x 4 pixels of it.
        """
        check_rgb(image, "The picture")
        ellipse = mask_from_box((image.shape[0], image.shape[1]), box_xyxy)
        if self._outlines == "plain":
            return ellipse
        objectness = self._objectness_of(self._encode(image), image)
        assert objectness is not None
        return thing_in_box(objectness, ellipse, box_xyxy)

    def _predict(self, rgb: Image, probabilities: bool) -> Prediction:
        size_hw = (rgb.shape[0], rgb.shape[1])
        clock = _Clock()
        image = resize_image(rgb, self.manifest.image_size)
        clock.lap("preprocess")
        scores, foreground, objectness = self._judge(image, clock)
        sharp = self._sharpened(foreground, objectness)
        labels = self._labels(sharp, scores, size_hw)
        full = upsample_foreground(sharp, size_hw) if probabilities else None
        plain = full if sharp is foreground or not probabilities else upsample_foreground(foreground, size_hw)
        clock.lap("postprocess")
        return Prediction(self.classes, scores, self._levels(), labels, full, clock.laps_ms, plain)

    def _levels(self) -> Probabilities:
        levels = self.bank.levels
        if self._level_for_all is not None:
            levels[:] = self._level_for_all
        return levels

    @contextmanager
    def _judging_by(self, bank: SupportBank) -> Iterator[None]:
        """Put another bank in the place of the model's own for a while."""
        own, runs = self.bank, self._runs
        self.bank, self._runs = bank, None
        try:
            yield
        finally:
            self.bank, self._runs = own, runs

    def _judge(self, image: Image, clock: "_Clock") -> tuple[Probabilities, Probabilities, Probabilities | None]:
        """P(present) (ways,), P(foreground) (ways, mask_size, mask_size) and objectness (n, n) of a resized frame.

        The encoder's outputs are freed in here, so that what freeing them costs counts as the head's time.
        """
        encoded = self._encode(image)
        self._encoder.wait()  # some ten microseconds on a GPU, without which the head's time would be that of both
        objectness = self._objectness_of(encoded, image) if self._outlines == "sharp" else None
        clock.lap("encoder")
        scores, foreground = self._compare(encoded["tokens"])
        del encoded
        clock.lap("head")
        return scores, foreground, objectness

    def _objectness_of(self, encoded: Mapping[str, ResidentTensor], image: Image) -> Probabilities | None:
        """Logits (n, n) of an encoded picture; None where the bundle does not tell them."""
        told = encoded.get(OBJECTNESS)
        if told is None and self._objectness is not None:
            told = self._objectness.run({"image": resize_image(image, self.manifest.image_size)[None]})[OBJECTNESS]
        return None if told is None else np.asarray(told.numpy()[0], np.float32)

    def _sharpened(self, foreground: Probabilities, objectness: Probabilities | None) -> Probabilities:
        """P(foreground) with objectness as the classes of `self.bank` weigh it; itself where none does."""
        weights = self.bank.objectness_weights
        if objectness is None or not weights.any():
            return foreground
        return sharpen(foreground, objectness, weights * recognized(foreground, objectness))

    def _labels(self, foreground: Probabilities, scores: Probabilities, size_hw: tuple[int, int]) -> Image:
        """The label map; with sharp outlines a class that is not present has no pixels.

        CST learned to mark nothing of an absent class, but objectness lights whatever else stands out. Where half of
        the classes asked are absent, mIoU on pascal10-coseg: CST 39.6, sharp 41.3, without the absent 38.9 and 54.5.
        """
        if self._outlines == "sharp":
            foreground = foreground * (scores > self._levels())[:, None, None]
        return label_map(foreground, size_hw)

    def _compare(self, tokens: ResidentTensor) -> tuple[Probabilities, Probabilities]:
        """P(present) and P(foreground) of the classes of `self.bank`."""
        ways = len(self.classes)
        mask_size = self.manifest.mask_size
        scores = np.zeros(ways, np.float32)
        foreground = np.zeros((ways, mask_size, mask_size), np.float32)
        frame = _as_taken({"tokens": tokens}, self._encoder, self._head)
        for supports in self._resident_supports() if ways else ():
            answer = self._head.run({**frame, **supports})
            scores += np.asarray(answer["presence"].numpy(), np.float32)
            foreground += np.asarray(answer["foreground"].numpy(), np.float32)
        return scores, foreground

    def remove(self, name: str) -> None:
        """Forget a class.

        Raises:
            InputError: There is no such class.
        """
        self.bank.remove(name)
        self._runs = None

    def remove_support(self, name: str, index: int) -> None:
        """Forget one picture of a class; the class goes with its last.

        Raises:
            InputError: There is no such class or picture.
        """
        self.bank.remove_support(name, index)
        self._runs = None

    def rename(self, old: str, new: str) -> None:
        """Rename a class.

        Raises:
            InputError: `old` is not enrolled, or `new` is, or cannot be used.
        """
        self.bank.rename(old, new)

    def set_level(self, name: str, level: float | None) -> None:
        """Set by hand the score above which a class is present; it stays when pictures are added.

        Args:
            name: The class.
            level: In (0, 1); None takes again what its pictures say.

        Raises:
            InputError: There is no such class, or no such level.
        """
        self.bank.set_level(name, level)

    def set_level_for_all(self, level: float | None) -> None:
        """Judge every class, also those that come, by one level from now on; the bank keeps its own.

        Args:
            level: In (0, 1); None judges by the bank's levels again.

        Raises:
            InputError: There is no such level.
        """
        self._level_for_all = None if level is None else check_level(level)

    def save_bank(self, path: str | Path) -> None:
        """Write the enrolled classes to one .safetensors file.

        Raises:
            InputError: The path cannot be a bank's.
            FsvitEdgeError: The disk is full; an old file is untouched.
        """
        self.bank.save(Path(path))

    def load_bank(self, path: str | Path) -> None:
        """Replace the enrolled classes by those of a file.

        Raises:
            ArtifactError: The file is missing, damaged, made by another encoder, or has more classes than the head's
                engine takes; the classes are as they were.
        """
        bank = SupportBank.load(Path(path), self.bank.identity, self.bank.head)
        self._check_ways(len(bank.classes))
        self.bank = bank
        self._runs = None

    def close(self) -> None:
        """Free the graphs; a second call does nothing."""
        self._runs = None
        for engine in (self._encoder, self._enroll, self._head, self._objectness):
            if engine is not None:
                engine.close()

    def __enter__(self) -> "FewShotModel":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _cache(self, image: Image, mask: Mask | None, others: Sequence[CachedSupport]) -> tuple[CachedSupport, Mask]:
        """One support, and the mask that was used, at the picture's size."""
        encoded = self._encode(image)
        objectness = self._objectness_of(encoded, image) if self._outlines == "sharp" else None
        loo_score = self._score_by(others, encoded["tokens"]) if others else None
        if mask is None:
            seen = {spec.name: encoded[spec.name].numpy() for spec in self._enroll.inputs if spec.name in encoded}
            cached = self._enrolled(seen, None)
            guess = cached["used_mask"][0] != 0
            if objectness is not None:
                guess = thing_of_name(objectness, guess)
                cached = self._enrolled(seen, guess)
            used = resize_nearest(guess, (image.shape[0], image.shape[1])) != 0
        else:
            used = np.asarray(mask) != 0
        weight = 0.0 if objectness is None else objectness_weight(objectness, used)
        window = support_window(used, self.manifest.support_crop)
        if window is not None:
            image = np.ascontiguousarray(image[window])
            cached = self._enrolled(self._encode(image), used[window])
        elif mask is not None:
            cached = self._enrolled(encoded, used)
        keep = cached["kept_mask"][0] > 0
        small = thumbnail(image, _THUMBNAIL_PX)
        support = CachedSupport(
            kept=cached["support"][0][:, keep].astype(np.float16),
            pooled=cached["pooled"][0].astype(np.float16),
            pooled_mask=cached["pooled_mask"][0] > 0,
            thumbnail=small,
            thumbnail_mask=resize_nearest(cached["used_mask"][0], (small.shape[0], small.shape[1])) != 0,
            has_mask=mask is not None,
            loo_score=loo_score,
            objectness_weight=weight,
        )
        return support, used

    def _encode(self, image: Image) -> dict[str, ResidentTensor]:
        return self._encoder.run({"image": resize_image(image, self.manifest.image_size)[None]})

    def _enrolled(self, encoded: Mapping[str, Array | ResidentTensor], mask: Mask | None) -> dict[str, Array]:
        """What the enroll graph says of an encoded picture with a bool mask, or by the name alone."""
        size = self.manifest.image_size
        feed: dict[str, Array | ResidentTensor] = {
            **_as_taken(encoded, self._encoder, self._enroll),
            "mask": np.zeros((1, size, size), np.uint8) if mask is None else resize_mask(mask, size)[None],
            "has_mask": np.array([mask is not None]),
        }
        return {name: tensor.numpy() for name, tensor in self._enroll.run(feed).items()}

    def _score_by(self, supports: Sequence[CachedSupport], tokens: ResidentTensor) -> float:
        """P(present) in an encoded picture of one class that has some of these supports, evenly chosen."""
        bank = self.bank.emptied()
        bank.add("it", supports[:: -(-len(supports) // _MOST_JUDGES)])
        with self._judging_by(bank):
            score = float(self._compare(tokens)[0][0])
        return min(max(0.0, score), 1.0)  # a mean of ones may be rounded to more

    def _resident_supports(self) -> list[dict[str, ResidentTensor]]:
        """Put the supports where the engine computes, in runs of bounded size, once for many frames."""
        if self._runs is None:
            self._check_ways(len(self.classes))
            self._runs = [
                {name: self._head.upload(array) for name, array in feed.items()}
                for feed in head_runs(self.bank, self.manifest.head, self._num_query, self._head)
            ]
        return self._runs

    def _check_ways(self, ways: int) -> None:
        if ways > self._head.limits.get("ways", ways):
            raise ArtifactError(
                f"The head engine was built for at most {self.max_classes} classes, the bank has {ways}; rebuild it "
                f"with: fsvit-edge build-engine --max-ways {ways}, and the options it was built with."
            )


class _Clock:
    """Milliseconds between laps, by name."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps_ms[name] = (now - self._last) * 1e3
        self._last = now


def _as_taken(
    tensors: Mapping[str, Array | ResidentTensor], made_by: Engine, taken_by: Engine
) -> dict[str, Array | ResidentTensor]:
    """What the next engine takes of what one returned, cast on the host where the types differ."""
    made = {spec.name: spec.dtype for spec in made_by.outputs}
    taken = {spec.name: spec.dtype for spec in taken_by.inputs}
    return {
        name: tensor if made[name] == taken[name] else _on_host(tensor).astype(taken[name])
        for name, tensor in tensors.items()
        if name in taken
    }


def _on_host(tensor: Array | ResidentTensor) -> Array:
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def _known(size: int | str) -> int:
    if isinstance(size, str):
        raise ArtifactError(f"The encoder's output 'tokens' has an unknown size {size!r}; export the bundle again.")
    return size
