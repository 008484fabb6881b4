"""Training options."""

from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.given_text import read_given_text

SUPERVISIONS = ("mask", "image", "mixed")
_MAX_LIST_BYTES = 10**8


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are the paper's, except that the learning rate decays."""

    # "mask": true masks; "image": pseudo-masks, no mask file is opened; "mixed": true masks of some pictures and
    # enhanced pseudo-masks of the rest
    supervision: str = "mask"
    mask_fraction: float = 0.05  # for "mixed": share of the photographs whose masks are used, in (0, 1)
    mask_list: tuple[str, ...] = ()  # for "mixed": the pictures with masks, as class/stem, instead of a fraction
    epochs: int = 50  # passes over the pictures; an epoch has one episode per example
    batch: int = 12  # episodes per step
    micro_batch: int = 12  # episodes computed at once; fewer need less memory and change nothing else
    learning_rate: float = 1e-3  # of Adam
    decay: bool = True  # lower the learning rate to 0 along a cosine; False keeps it constant, as in the paper
    class_weight: float = 0.1  # weight of the presence loss; the mask loss has weight 1
    # Classes that each query is asked about: its own and those of the next queries in the batch. The paper trains with
    # 1; with more, the presence loss also ranks the classes of a query and the queries of a class.
    ways: int = 1
    # For more than 1 way: share of the absent classes that may be present after all, in [0, 1). It limits the harm of
    # one wrong label.
    label_noise: float = 0.0
    # Maximum number of image tokens per support, drawn anew in each step, which saves time and augments; None: all
    kept_tokens: int | None = None
    foreground_weight: float = 1.0  # weight of a foreground pixel in the mask loss; a background pixel has 1
    views: int = 1  # per picture; the first is the picture itself, the others augment the data
    same_picture: float = 0.0  # share of the positive episodes whose support is another view of the query, in [0, 1]
    # Share of the supports whose true mask is replaced by the pseudo-mask, in [0, 1], so that the head learns to work
    # with class names only
    mask_dropout: float = 0.0
    validation_fraction: float = 0.1  # share of the photographs used for validation and not for training, in (0, 1)
    # Stop after this many epochs without a better validation mIoU, and keep the best head; None trains all epochs and
    # keeps the last head
    patience: int | None = None
    seed: int = 0
    trainer_precision: str = "32-true"  # Lightning's name; also "bf16-mixed" and "16-mixed"
    accelerator: str = "auto"  # Lightning's name; also "cpu" and "gpu"
    devices: int | None = None  # one process each; None: every GPU, or one process on the CPU
    threads: int | None = (
        None  # CPU threads of torch, for the whole process; None: at most one for each core that it may use
    )

    def __post_init__(self) -> None:
        if self.supervision not in SUPERVISIONS:
            raise InputError(f"The supervision must be one of {', '.join(SUPERVISIONS)}; got {self.supervision!r}.")
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


def read_mask_list(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty: one class/stem each."""
    text = read_given_text(path, "The list", _MAX_LIST_BYTES)
    return tuple(line.strip() for line in text.splitlines() if line.strip())
