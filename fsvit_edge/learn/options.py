"""Training options."""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from fsvit_edge.runtime.errors import InputError

Supervision = Literal["mask", "image", "mixed"]


def check_supervision(name: str) -> Supervision:
    """Return `name` if it is a supervision.

    Raises:
        InputError: It is not.
    """
    for known in get_args(Supervision):
        if name == known:
            return cast("Supervision", known)
    raise InputError(f"The supervision must be one of {', '.join(get_args(Supervision))}; got {name!r}.")


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are the paper's, except that the learning rate decays.

    Attributes:
        supervision: What to learn from. "mask": true masks; "image": pseudo-masks, no mask file is opened; "mixed":
            true masks of some pictures and enhanced pseudo-masks of the rest.
        mask_fraction: For "mixed": share of the photographs whose masks are used, in (0, 1).
        mask_list: For "mixed": the pictures with masks, as class/stem, instead of a fraction.
        epochs: Passes over the pictures; an epoch has one episode per example.
        batch: Episodes per step.
        micro_batch: Episodes computed at once; a smaller number needs less memory and changes nothing else.
        learning_rate: Learning rate of Adam.
        decay: Lower the learning rate to 0 along a cosine; False keeps it constant, as in the paper.
        class_weight: Weight of the presence loss; the mask loss has weight 1.
        ways: Classes that each query is asked about: its own and those of the next queries in the batch. The paper
            trains with 1; with more, the presence loss also ranks the classes of a query and the queries of a class.
        label_noise: For more than 1 way: share of the absent classes that may be present after all, in [0, 1). It
            limits the harm of one wrong label.
        kept_tokens: Maximum number of image tokens per support, drawn anew in each step; None keeps all. It saves time
            and augments the data.
        foreground_weight: Weight of a foreground pixel in the mask loss; a background pixel has 1.
        views: Views per picture; the first is the picture itself, the others augment the data.
        same_picture: Share of the positive episodes whose support is another view of the query's photograph, in [0, 1].
        mask_dropout: Share of the supports whose true mask is replaced by the pseudo-mask, in [0, 1], so that the head
            learns to work with class names only.
        validation_fraction: Share of the photographs used for validation and not for training, in (0, 1).
        patience: Stop after this many epochs without a better validation mIoU, and keep the best head; None trains all
            epochs and keeps the last head.
        seed: Random seed.
        trainer_precision: Lightning's name: "32-true", "bf16-mixed" or "16-mixed".
        accelerator: Lightning's name: "auto", "cpu" or "gpu".
        devices: Number of devices, one process each; None: every GPU, or one process on the CPU.
        threads: CPU threads of torch, for the whole process; None does not change them.
    """

    supervision: Supervision = "mask"
    mask_fraction: float = 0.05
    mask_list: tuple[str, ...] = ()
    epochs: int = 50
    batch: int = 12
    micro_batch: int = 12
    learning_rate: float = 1e-3
    decay: bool = True
    class_weight: float = 0.1
    ways: int = 1
    label_noise: float = 0.0
    kept_tokens: int | None = None
    foreground_weight: float = 1.0
    views: int = 1
    same_picture: float = 0.0
    mask_dropout: float = 0.0
    validation_fraction: float = 0.1
    patience: int | None = None
    seed: int = 0
    trainer_precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            raise InputError(f"The batch ({self.batch}) must be a multiple of the micro-batch ({self.micro_batch}).")
        if not 1 <= self.ways <= self.micro_batch:
            raise InputError(
                f"The ways must be from 1 to the size of the micro-batch, {self.micro_batch}; got {self.ways}."
            )
        if not 0 <= self.label_noise < 1:
            raise InputError(f"label_noise must be at least 0 and below 1, got {self.label_noise}.")
        if self.kept_tokens is not None and self.kept_tokens < 1:
            raise InputError(f"kept_tokens must be at least 1, got {self.kept_tokens}.")
        for name in ("mask_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        for name in ("same_picture", "mask_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {getattr(self, name)}.")
        if self.same_picture and self.views == 1:
            raise InputError("same_picture needs two views of each picture; set views to 2 or more.")
