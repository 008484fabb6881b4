"""`FewShotModel`: enroll classes from a few pictures, then find in every frame which are present and where."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from threadpoolctl import ThreadpoolController

from fsvit_edge.fewshot.answer import answer_frame
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.bank_file import precision_of_bank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.decide import PresenceOverTime
from fsvit_edge.fewshot.enrollment import (
    Enrollment,
    copy_on_host,
    enroll_class,
    learn_scene,
    make_negative,
    make_support,
    mask_of_box,
    score_scene,
)
from fsvit_edge.fewshot.first_look import FirstLook, compare_bank
from fsvit_edge.fewshot.identity import EncoderIdentity, HeadIdentity
from fsvit_edge.fewshot.names import resolved
from fsvit_edge.fewshot.network import ExportedNetwork
from fsvit_edge.fewshot.outlines import OUTLINES
from fsvit_edge.fewshot.prediction import Prediction, Rejection, StageClock
from fsvit_edge.fewshot.review import Review
from fsvit_edge.fewshot.scene import SceneReport
from fsvit_edge.fewshot.support_masks import Box, Image, Mask, check_support
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle, Manifest
from fsvit_edge.runtime.engines.base import Array, Engine, ResidentTensor
from fsvit_edge.runtime.engines.choose import EngineChoice, choose_engines
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.postprocess import Maps
from fsvit_edge.runtime.preprocess import check_rgb, resize_image
from fsvit_edge.runtime.presence_level import check_level


class FewShotModel:
    """An exported network with its enrolled classes: `load` one, and close it or use it as a context manager.

    Args:
        manifest: The bundle's manifest.
        engines: Open engines by graph: encoder, enroll, head, and objectness if the bundle has such a graph.
        choice: Which engines these are; None for engines of unknown origin in the bundle's precision.

    Attributes:
        network: The graphs on their engines.
        bank: The enrolled classes.
        choice: Which engines compute, and why no others.
        exclusive: Whether classes that claim the same pixels exclude each other, so that only the likeliest is present.
        first_look: Chooses the classes of a frame that the head compares, the others are absent; None: all.
        scores_later: Whether changed classes stay unscored on the empty scene until `enrollment.score_next`.

    Raises:
        ArtifactError: The graphs do not have the sizes that the manifest states.
    """

    def __init__(self, manifest: Manifest, engines: Mapping[str, Engine], choice: EngineChoice | None = None) -> None:
        self.choice = choice or EngineChoice("given", manifest.precision, "engines that were given")
        self.network = ExportedNetwork(manifest, engines)
        self._is_sharp = self.network.has_objectness
        self.bank = self.network.empty_bank(self.choice.precision)
        self.exclusive = False
        self.first_look: FirstLook | None = None
        self.scores_later = False
        self._level_for_all: float | None = None
        self._blas = ThreadpoolController().select(user_api="blas")

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        bank: str | Path | None = None,
        say: Say = lambda _: None,
    ) -> "FewShotModel":
        """Open a bundle.

        Args:
            bundle: The folder; None for the bundled model.
            engine: "onnxruntime" or "openvino" (on the CPU), "onnxruntime-cuda", "tensorrt" or "tensorrt-rtx" (engines
                that build-engine made), or "auto": the fastest available; `choice` says which, and why not another.
            precision: "fp32"; "bf16" in OpenVINO; "fp16" or "int8" if built; "auto" takes the engine's.
            threads: Threads within an operator; None for all cores.
            bank: A bank that will be loaded, if it exists: "auto" prefers the precision that it was enrolled in.
            say: Gets a line before engines are timed, once per machine.

        Raises:
            ArtifactError: The bundle is missing, altered or damaged, or no engine that fits was built.
            EnvironmentLacksError: The engine is not installed here, or finds no device.
            InputError: The engine or precision is unknown.
        """
        loaded = Bundle.load(DEFAULT_BUNDLE if bundle is None else Path(bundle))
        made_in = None if bank is None else precision_of_bank(Path(bank), loaded.manifest.graphs["encoder"].sha256)
        engines, choice = choose_engines(loaded, engine, precision, threads, made_in, say)
        try:
            return cls(loaded.manifest, engines, choice)
        except ArtifactError:
            for opened in engines.values():
                opened.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.network.manifest

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the enrolled classes, in the order of enrollment."""
        return self.bank.classes

    @property
    def max_classes(self) -> int:
        """How many classes can be enrolled: as many as a bank can hold, or as the head's engine was built for."""
        return self.network.max_classes

    @property
    def outlines(self) -> str:
        """How outlines are drawn: "plain" by CST's foreground alone; "sharp" adds objectness, if the bundle has it.

        It also affects new supports: a class enrolled while outlines are plain is not sharpened later.

        Raises:
            InputError: On setting: the kind is unknown, or the bundle has no objectness.
        """
        return "sharp" if self._is_sharp else "plain"

    @outlines.setter
    def outlines(self, kind: str) -> None:
        if kind not in OUTLINES:
            raise InputError(f"Outlines must be {' or '.join(OUTLINES)}, got {kind!r:.40}.")
        if kind == "sharp" and not self.network.has_objectness:
            raise InputError(
                f"Bundle {self.manifest.name} has no objectness, which sharp outlines need; export it with: "
                "fsvit-edge export --objectness."
            )
        self._is_sharp = kind == "sharp"

    @property
    def review(self) -> Review:
        """The doubtful frames that the bank keeps, to judge, and to check the answers by the verdicts."""
        return Review(self.bank, self.manifest.image_size, self.predict_with)

    def bank_after(self, change: "Callable[[FewShotModel], object]") -> SupportBank:
        """Return the bank as a change would leave it; the model keeps its own. To keep the changed one, set `bank`."""
        kept, self.bank = self.bank, self.bank.copy()
        try:
            change(self)
            return self.bank
        finally:
            self.bank = kept

    def enroll(
        self,
        name: str,
        images: Sequence[Image],
        masks: Sequence[Mask | None] | None = None,
        boxes: Sequence[Box | None] | None = None,
        level: float | None = None,
    ) -> Enrollment:
        """Learn a class from pictures, or add pictures to a class.

        The encoder runs once for each picture, or twice if a small object is found by the name alone: with
        `Manifest.support_crop`, the encoder sees only the part of the picture around a small object.

        A picture of a class that already has others is scored by them, which costs a run of the head, and the level of
        the class follows from the scores; see `presence_level.level_of_supports`.

        Args:
            name: The class.
            images: (H, W, 3) uint8 RGB pictures that show it.
            masks: For each picture (H, W), not 0 on the object; None, for one or for all, to find it by the name alone.
            boxes: For each picture a box around the object, for `mask_of_box`; None, for one or for all, if not known.
            level: The score above which the class is present, in (0, 1), set by hand; None derives it from the
                pictures, or keeps what was set by hand before.

        Raises:
            ObjectTooSmallError: The object is too small in a picture; the bank is unchanged.
            InputError: The name, a picture, a mask, a box or the level cannot be used; the bank is unchanged.
            ArtifactError: The head's engine was built for fewer classes; the bank is unchanged.
        """
        enrollment = enroll_class(self.network, self.bank, name, images, masks, boxes, level, self._is_sharp)
        score_scene(self.network, self.bank, self.scores_later)
        return enrollment

    def predict(
        self,
        rgb: Image,
        probabilities: bool = False,
        over_time: PresenceOverTime | None = None,
        size_hw: tuple[int, int] | None = None,
    ) -> Prediction:
        """Score one frame against every enrolled class.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            probabilities: Also return P(foreground) at the frame's size, which takes a few milliseconds per class.
            over_time: Decides over several frames which classes are present; None: this frame decides alone.
            size_hw: Height and width of the label map, if `rgb` is a smaller picture of the frame; None: those of it.

        Raises:
            InputError: The frame is not such an array.
        """
        check_rgb(rgb, "The frame")
        # numpy's BLAS threads keep spinning after a product and starve the engine: 25 ms per frame on two cores.
        with self._blas.limit(limits=1):
            clock = StageClock()
            image = resize_image(rgb, self.manifest.image_size)
            clock.lap("preprocess")
            encoded = self.network.encode(image)
            self.network.encoder.wait()  # some ten microseconds on a GPU; without it the head's time includes both
            objectness = self._objectness_of(encoded, image)
            clock.lap("encoder")
            tokens = encoded["tokens"]
            del encoded  # freeing the rest takes time, which counts as the head's
            return self._answer(rgb, self.bank, tokens, objectness, probabilities, clock, over_time, size_hw)

    def predict_with(self, rgb: Image, banks: Sequence[SupportBank]) -> list[Prediction]:
        """Score one frame against other classes than the enrolled ones: by each bank in turn, encoding the frame once.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            banks: Made from what `cache_support` returned; this model's own bank is neither used nor changed.

        Returns:
            One answer for each bank; its latency covers head and post-processing.

        Raises:
            InputError: The frame is not such an array.
            ArtifactError: A bank has more classes than the head's engine was built for.
        """
        check_rgb(rgb, "The frame")
        with self._blas.limit(limits=1):
            encoded = self.network.encode(rgb)
            objectness = self._objectness_of(encoded, rgb)
            return [self._answer(rgb, bank, encoded["tokens"], objectness) for bank in banks]

    def cache_support(
        self, name: str, image: Image, mask: Mask | None = None, others: Sequence[CachedSupport] = ()
    ) -> CachedSupport:
        """Compute what `enroll` would keep of one picture, without keeping it.

        An object too small to see is not an error here: the published episodes have some, and for those the whole
        picture is compared.

        Args:
            name: The class, for the errors.
            image: (H, W, 3) uint8 RGB.
            mask: (H, W), not 0 on the object; None if only the name is known.
            others: The class's other supports, which score the picture.

        Raises:
            InputError: The picture or its mask cannot be used.
        """
        check_support(name, image, mask)
        return make_support(self.network, image, mask, others, self._is_sharp)[0]

    def mask_of_box(self, image: Image, box_xyxy: Box) -> Mask:
        """Make a mask of the object in a box: what objectness marks in it, or an ellipse if outlines are plain.

        Args:
            image: (H, W, 3) uint8 RGB.
            box_xyxy: Left, top, right and bottom in pixels, right and bottom exclusive.

        Returns:
            (H, W) bool, False outside the box.

        Raises:
            InputError: The picture is not such an array, or the box contains less than 4 x 4 pixels of it.
        """
        return mask_of_box(self.network, image, box_xyxy, self._is_sharp)

    def learn_scene(self, images: Sequence[Image]) -> SceneReport:
        """Learn what the camera sees when no enrolled thing is there.

        A class must then score higher than on any of these pictures, by a margin, unless its level was set by hand. The
        pictures are kept with the classes, so that a class enrolled later is held to them too.

        Args:
            images: (H, W, 3) uint8 RGB frames, at least one; the latest `MAX_SCENE_FRAMES` are kept.

        Raises:
            InputError: There is no picture, or one is not such an array; the scene is unchanged.
        """
        score_scene(self.network, self.bank, self.scores_later)
        return learn_scene(self.network, self.bank, images)

    def forget_scene(self) -> None:
        """Remove the pictures of the empty scene; the levels are those of the classes again."""
        self.bank.set_scene(())

    def reject(self, name: str, image: Image, mask: Mask | None = None) -> Rejection:
        """Learn that a picture, or a part of it, is not a class although it looks like it.

        The picture becomes a negative of the class: where the camera sees something that is as much like the negative
        as like the class's own pictures, the class is absent. A negative costs a frame as much as a support.

        Args:
            name: The class.
            image: (H, W, 3) uint8 RGB, a frame in which the class was wrongly found.
            mask: (H, W), not 0 on what is not the class; None for where the class is found, or all of the picture if it
                is not found.

        Raises:
            InputError: The class is not enrolled or has `MAX_NEGATIVES` negatives, or the picture or mask cannot be
                used; the bank is unchanged.
        """
        name = resolved(name, self.classes)
        supports = self.bank.supports(name)
        check_rgb(image, "The frame")
        with self._blas.limit(limits=1):
            resident = self.network.encode(image)
            objectness = self._objectness_of(resident, image)
            encoded = copy_on_host(resident)
            before = self._answer(image, self.bank, encoded["tokens"], objectness, probabilities=mask is None)
            way = self.classes.index(name)
            if mask is None:
                assert before.foreground is not None
                # Not its pixels in the label map, which another class may have won.
                mask = (before.foreground[way] > 0.5) & before.present[way]
            negative, is_mask_too_small = make_negative(self.network, supports, image, mask, encoded)
            self.bank.add_negative(name, negative)
            score_scene(self.network, self.bank, self.scores_later)
            after = self._answer(image, self.bank, encoded["tokens"], objectness)
        was, now = before.results[way], after.results[way]
        count = len(self.bank.negatives(name))
        return Rejection(
            name, count, was.is_present, was.score, now.score, now.level, negative.margin, is_mask_too_small
        )

    def remove_negative(self, name: str, index: int) -> None:
        """Remove one negative of a class, counted from 0; an InputError if there is none."""
        self.bank.remove_negative(name, index)
        score_scene(self.network, self.bank, self.scores_later)

    def remove(self, name: str) -> None:
        """Remove a class; an InputError if it is not enrolled."""
        self.bank.remove(name)

    def remove_support(self, name: str, index: int) -> None:
        """Remove one picture of a class, counted from 0, and with the last one the class."""
        self.bank.remove_support(name, index)
        score_scene(self.network, self.bank, self.scores_later)

    def rename(self, old: str, new: str) -> None:
        """Rename a class; an InputError if `old` is not enrolled, or `new` already is or cannot be used."""
        self.bank.rename(old, new)

    def set_level(self, name: str, level: float | None) -> None:
        """Set by hand the score above which a class is present, in (0, 1); it stays when pictures are added.

        None derives it from the class's pictures again. An InputError if it is out of range.
        """
        self.bank.set_level(name, level)
        score_scene(self.network, self.bank, self.scores_later)

    def set_level_for_all(self, level: float | None) -> None:
        """Use one level in (0, 1) for every class from now on; the bank keeps its own, which None uses again."""
        self._level_for_all = None if level is None else check_level(level)

    def save_bank(self, path: str | Path) -> None:
        """Write the enrolled classes to one .safetensors file; raises like `SupportBank.save`."""
        self.bank.save(Path(path))

    def load_bank(self, path: str | Path) -> None:
        """Replace the enrolled classes by those of a file.

        Raises:
            InputError: The path does not end in .safetensors.
            ArtifactError: The file is missing, damaged, made by another encoder, or has more classes than the head's
                engine was built for; the classes are unchanged.
        """
        self.use_bank(SupportBank.load(Path(path), *self.rules_of_banks))

    @property
    def rules_of_banks(self) -> tuple[EncoderIdentity, HeadIdentity, int, Mapping[str, str]]:
        """What `SupportBank.load` holds a file to for this model: its encoder, its head, tokens of a support."""
        return self.bank.identity, self.bank.head, self.manifest.support_grid**2 + 1, self.choice.lacks

    def use_bank(self, bank: SupportBank) -> None:
        """Replace the enrolled classes by those of a bank of this model; raises like `load_bank`."""
        self.network.check_ways(len(bank.classes))
        score_scene(self.network, bank, self.scores_later)
        self.bank = bank

    def close(self) -> None:
        """Free the engines; a second call does nothing."""
        self.network.close()

    def __enter__(self) -> "FewShotModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _objectness_of(self, encoded: dict[str, ResidentTensor], image: Image) -> Maps | None:
        return self.network.objectness_of(encoded, image) if self._is_sharp else None

    def _answer(
        self,
        rgb: Image,
        bank: SupportBank,
        tokens: Array | ResidentTensor,
        objectness: Maps | None,
        probabilities: bool = False,
        clock: StageClock | None = None,
        over_time: PresenceOverTime | None = None,
        size_hw: tuple[int, int] | None = None,
    ) -> Prediction:
        clock = clock or StageClock()
        found = compare_bank(self.network, tokens, bank, self.first_look)
        clock.lap("head")
        levels = bank.levels
        if self._level_for_all is not None:
            levels[:] = self._level_for_all
        size_hw = size_hw or (rgb.shape[0], rgb.shape[1])
        return answer_frame(size_hw, bank, levels, found, objectness, self.exclusive, clock, probabilities, over_time)
