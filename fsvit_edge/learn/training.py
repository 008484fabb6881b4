"""Train the correlation head on episodes of cached tokens; the encoder stays frozen (CST, section 4).

What enters: a network, a data set, options. What leaves: the network's head, trained in place, and a folder with the
last checkpoint, from which an interrupted training goes on, and a log of the epochs.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy, MulticlassJaccardIndex

from fsvit_edge.learn.batches import EpisodeBatch, Episodes, Split, TrainOptions, choose_split
from fsvit_edge.learn.datasets import IGNORE, FewShotData
from fsvit_edge.learn.enhancement import EnhancerOptions, EnhancerResult, enhanced_mask, train_enhancer
from fsvit_edge.learn.many_ways import Pairs, pairs_of, presence_cross_entropy, presence_loss, thinned
from fsvit_edge.learn.sharp_outlines import sharpened, thing_of_name, weight_of_support
from fsvit_edge.learn.tokens import TokenCache, unpack
from fsvit_edge.model.enhancer import PseudoLabelEnhancer
from fsvit_edge.model.fast_head import FastCorrelationHead, Supports, cache_supports
from fsvit_edge.model.head import CorrelationHead, HeadLogits
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.pseudo_mask import pseudo_mask
from fsvit_edge.runtime.bundle import TRAINED_HEAD
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.presence_level import DEFAULT_LEVEL

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TrainResult:
    """What came out.

    Attributes:
        epochs: Epochs trained, those before an interruption included.
        encoded: Pictures that the encoder had to run for; 0 when all were cached.
        validation: Loss, exact ratio and mIoU (both in percent) of the head kept, on pictures set aside.
        enhancer: How much the enhancer helped; None without mixed supervision.
    """

    epochs: int
    encoded: int
    validation: dict[str, float]
    enhancer: EnhancerResult | None


class Questions(NamedTuple):
    """A batch as the head sees it.

    Attributes:
        query: (B, C, N, d) L2-normalized image tokens.
        supports: The B supports.
        target: (B, S, S) uint8, the wanted masks, of 0, 1 and 255.
        objectness: (B, n, n) logits of the queries; n is 0 where the network tells none.
        weight: (B,) how much each support trusts objectness; None there.
    """

    query: Tensor
    supports: Supports
    target: Tensor
    objectness: Tensor
    weight: Tensor | None


class EpisodeModule(lightning.LightningModule):
    """One step of learning, as Lightning wants it. Only the head is a part of it, so only the head is checkpointed.

    Args:
        network: Its head learns.
        options: Loss and learning rate.
        identity: What a checkpoint must have been made with; another one is refused.
        enhancer: Improves pseudo-masks; None leaves them.
        num_labels: Number of classes of the data set, for the metrics.
    """

    def __init__(
        self,
        network: FewShotNetwork,
        options: TrainOptions,
        identity: dict[str, Any],
        enhancer: PseudoLabelEnhancer | None,
        num_labels: int,
    ) -> None:
        super().__init__()
        # In a tuple Lightning does not see them, and neither moves nor saves the frozen encoder.
        self._frozen = (network, enhancer)
        self._identity = identity
        self.options = options
        self.head = FastCorrelationHead(network.head)
        self.exact_ratio = BinaryAccuracy()
        self.iou = MulticlassJaccardIndex(num_labels + 1, average="none", ignore_index=IGNORE)
        self.loss = MeanMetric()

    def setup(self, stage: str) -> None:
        """Bring the enhancer to where the head is."""
        del stage
        _, enhancer = self._frozen
        if enhancer is not None:
            enhancer.to(self.device)

    def forward(self, batch: EpisodeBatch) -> tuple[HeadLogits, Questions]:
        """Judge the queries; return the logits, and what was asked."""
        asked = self._questions(batch)
        return self.head(asked.query, without_padding(asked.supports)), asked

    def _questions(self, batch: EpisodeBatch) -> Questions:
        network, enhancer = self._frozen
        query, support = unpack(batch.query, network), unpack(batch.support, network)
        grid, size = network.encoder.grid, network.config.image_size
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            if enhancer is None:
                own = pseudo_mask(support.class_query, support.image_keys, grid, size)
                other = pseudo_mask(support.class_query, query.image_keys, grid, size)
            else:
                own = enhanced_mask(enhancer, support.class_query, support, grid, size)
                other = enhanced_mask(enhancer, support.class_query, query, grid, size)
            weight = None
            if network.objectness is not None:
                own = thing_of_name(batch.support_objectness.float(), own)
            support_mask = torch.where(batch.support_known[:, None, None], batch.support_mask, own)
            if network.objectness is not None:
                weight = weight_of_support(batch.support_objectness.float(), support_mask)
            other = other.to(torch.uint8) * batch.present[:, None, None]
            target = torch.where(batch.query_known[:, None, None], batch.query_mask, other)
            vectors = network.query_vectors(query)
            supports = cache_supports(
                network.support_vectors(support), support_mask.float(), network.config.support_grid
            )
        return Questions(vectors, supports, target, batch.query_objectness.float(), weight)

    def training_step(self, batch: EpisodeBatch, _: int) -> Tensor:
        """Give the loss of CST, section 3.3: weighted presence + mask."""
        if self.options.ways > 1:
            loss = self._loss_of_many_ways(batch)
        else:
            asked = self._questions(batch)
            logits = self.head(asked.query, without_padding(self._drawn(asked.supports)))
            loss = self.loss_of(logits, asked, batch.present)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.present))
        return loss

    def _loss_of_many_ways(self, batch: EpisodeBatch) -> Tensor:
        """Presence of all pairs of queries and classes; masks of each query's own class and of one that is absent."""
        count, options = len(batch.label), self.options
        pairs = pairs_of(batch.present, batch.label, batch.shown, min(options.ways, count))
        asked = self._questions(batch)
        supports = without_padding(self._drawn(asked.supports))
        few = thinned(asked.query, self._frozen[0].encoder.grid)
        classification, _ = self.head.task_tokens(few[pairs.query], _of(supports, pairs.support))
        ranked = self.head.head.decode_presence(classification).float()
        loss = presence_loss(ranked[:, 1] - ranked[:, 0], pairs, options.label_noise)

        # A mask costs as much as four presence scores; every absent class teaches alike.
        drawn = Pairs(*(part[: 2 * count] for part in pairs))
        logits = self.head(asked.query[drawn.query], _of(supports, drawn.support))
        whole = logits.presence.float()
        loss = loss + presence_cross_entropy(whole[:, 1] - whole[:, 0], drawn, options.label_noise)
        wanted = torch.where(drawn.present[:, None, None], asked.target[drawn.query], 0)
        wanted = torch.where(drawn.known[:, None, None], wanted, IGNORE)
        weight = None if asked.weight is None else asked.weight[drawn.support]
        masks = self._mask_loss(logits.mask, wanted, asked.objectness[drawn.query], weight, drawn.present)
        return options.class_weight * loss + masks

    def _drawn(self, supports: Supports) -> Supports:
        """Leave each support a random choice of `kept_tokens` of its kept tokens, the class token always."""
        if self.options.kept_tokens is None:
            return supports
        chance = torch.rand_like(supports.kept_mask) * supports.kept_mask
        chance[:, 0] = 2.0
        length = min(1 + self.options.kept_tokens, chance.shape[1])
        least = chance.topk(length, dim=1).values[:, -1:]
        return supports._replace(kept_mask=supports.kept_mask * (chance >= least))

    def validation_step(self, batch: EpisodeBatch, _: int) -> None:
        """Add to the metrics."""
        logits, asked = self(batch)
        self.loss.update(self.loss_of(logits, asked, batch.present))
        self.exact_ratio.update(logits.presence.argmax(dim=1), batch.present)
        found = self.outlined(logits, asked).argmax(dim=1)
        label = batch.label[:, None, None] + 1
        self.iou.update(found * label, torch.where(asked.target == IGNORE, IGNORE, asked.target * label))

    def outlined(self, logits: HeadLogits, asked: Questions) -> Tensor:
        """Give the masks' logits (B, 2, S, S) as the runtime draws them: sharp, where the network tells objectness.

        Sharp outlines leave out a class that is not present.
        """
        full = enlarge(logits.mask.float(), asked.target.shape[1])
        if asked.weight is None:
            return full
        sharp = sharpened(full, asked.objectness, asked.weight)
        present = logits.presence.argmax(dim=1) == 1
        return torch.where(present[:, None, None, None], sharp, sharp.new_tensor([0.0, -torch.inf])[:, None, None])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics in percent."""
        # A class that is neither there nor found has no IoU; torchmetrics would count it as 0.
        counted = (self.iou.confmat.sum(dim=0) + self.iou.confmat.sum(dim=1) > 0)[1:]
        iou = self.iou.compute()[1:][counted]
        self.log("val_loss", self.loss.compute())
        self.log("val_exact_ratio", 100 * self.exact_ratio.compute())
        self.log("val_miou", 100 * iou.mean() if len(iou) else 0.0)
        for metric in (self.iou, self.loss, self.exact_ratio):
            metric.reset()

    def configure_optimizers(self) -> Any:
        """Adam, with a cosine over all epochs where the learning rate decays."""
        optimizer = torch.optim.Adam(self.head.parameters(), lr=self.options.learning_rate)
        if not self.options.decay:
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the checkpoint belongs to."""
        checkpoint["identity"] = self._identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another training."""
        stored = checkpoint.get("identity", {})
        if differing := sorted(key for key in self._identity if stored.get(key) != self._identity[key]):
            key = differing[0]
            raise InputError(
                f"The checkpoint belongs to a training with another {key}: {stored.get(key)!r}, now "
                f"{self._identity[key]!r}; give the options of then, or choose another --output."
            )

    def loss_of(self, logits: HeadLogits, asked: Questions, present: Tensor) -> Tensor:
        """Weigh the cross-entropies of presence and of the mask, the latter at the size of the picture."""
        presence = F.cross_entropy(logits.presence.float(), present.long())
        masks = self._mask_loss(logits.mask, asked.target, asked.objectness, asked.weight, present)
        return self.options.class_weight * presence + masks

    def _mask_loss(
        self, logits: Tensor, target: Tensor, objectness: Tensor, weight: Tensor | None, present: Tensor
    ) -> Tensor:
        """Of CST alone and of sharp outlines, half each; those are drawn of present classes only."""
        full = enlarge(logits.float(), target.shape[1])
        alone = self._mask_cross_entropy(full, target)
        if weight is None:
            return alone
        shown = torch.where(present[:, None, None], target, IGNORE)
        return 0.5 * (alone + self._mask_cross_entropy(sharpened(full, objectness, weight), shown))

    def _mask_cross_entropy(self, full: Tensor, target: Tensor) -> Tensor:
        weight = full.new_tensor([1.0, self.options.foreground_weight])
        each = F.cross_entropy(full, target.long(), weight=weight, ignore_index=IGNORE, reduction="sum")
        # Divided by the number of pixels, not by their weights, so that an episode's loss does not depend on its batch.
        return each / (target != IGNORE).sum().clamp_min(1)


def _of(supports: Supports, index: Tensor) -> Supports:
    return Supports(*(tensor[index] for tensor in supports))


def enlarge(logits: Tensor, size: int) -> Tensor:
    """(B, 2, s, s) -> (B, 2, size, size)."""
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=True)


def without_padding(supports: Supports) -> Supports:
    """Drop the tokens that no support of the batch keeps: they only cost time."""
    longest = int(supports.kept_mask.sum(dim=1).max())
    kept_mask, order = supports.kept_mask.sort(dim=1, descending=True, stable=True)
    index = order[:, None, :longest, None].expand(-1, supports.kept.shape[1], -1, supports.kept.shape[3])
    return supports._replace(kept=supports.kept.gather(2, index), kept_mask=kept_mask[:, :longest])


def new_head(network: FewShotNetwork, seed: int) -> None:
    """Give the network a head of random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = network.encoder
        network.config, network.prototype_head = (
            replace(network.config, head=TRAINED_HEAD, presence_level=DEFAULT_LEVEL),
            None,
        )
        network.head = CorrelationHead(encoder.num_channels, network.config.support_grid).eval()


def train(
    network: FewShotNetwork,
    data: FewShotData,
    options: TrainOptions,
    cache: TokenCache,
    workspace: Path,
    resume: bool = False,
    progress: Progress = lambda _: None,
) -> TrainResult:
    """Train `network.head` in place.

    Args:
        network: Encoder and head to start from.
        data: Pictures of the classes to learn.
        options: How.
        cache: Where tokens are kept; made with `options.views` views.
        workspace: Folder for checkpoints and the log of the epochs (`log.jsonl`).
        resume: Go on from the last checkpoint in `workspace`, if there is one.
        progress: Told what begins.

    Raises:
        InputError: There is an unfinished training and `resume` is False, or it is another training's; the data
            set has too few pictures.
        ArtifactError: A file of the cache is damaged.
    """
    last = workspace / "last.ckpt"
    if last.exists() and not resume:
        raise InputError(f"{workspace} holds a training; go on with --resume, or delete the folder.")
    workspace.mkdir(parents=True, exist_ok=True)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    encoded = cache.fill(data, progress)
    split = choose_split(data, options)
    enhancer = None
    if options.supervision == "mixed":
        progress("train the enhancer")
        with_masks = [index for index, mask in enumerate(split.known) if mask]
        enhancer = train_enhancer(network, cache, data, with_masks, EnhancerOptions(seed=options.seed), progress)
        progress(enhancer.sentence)
    identity = {**asdict(options), "cache": cache.folder.name, "examples": len(data.examples)}
    # More epochs may be added; where to compute does not change what is learned.
    for name in ("accelerator", "devices", "threads", *(() if options.decay else ("epochs",))):
        identity.pop(name)
    model = EpisodeModule(
        network,
        options,
        identity,
        enhancer.enhancer if enhancer and enhancer.helps else None,
        max(data.class_names) + 1,
    )
    callbacks: list[Callback] = [
        ModelCheckpoint(workspace, "best", monitor="val_miou", mode="max", enable_version_counter=False),
        # Not `save_last` of the best: that writes only in epochs that are the best so far.
        ModelCheckpoint(workspace, "last", enable_version_counter=False),
        _Log(workspace / "log.jsonl"),
    ]
    if options.patience is not None:
        callbacks.append(EarlyStopping("val_miou", mode="max", patience=options.patience))
    progress("train")
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=options.accelerator,
            devices=options.devices or ("auto" if torch.cuda.is_available() else 1),
            precision=options.precision,  # type: ignore[arg-type]  # Lightning checks the name itself
            max_epochs=options.epochs,
            accumulate_grad_batches=options.batch // options.micro_batch,
            callbacks=callbacks,
            logger=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            default_root_dir=workspace,
        )
        loaders = _Loaders(data, cache, options, split)
        trainer.fit(model, datamodule=loaders, ckpt_path=last if resume and last.exists() else None)
        best = workspace / "best.ckpt"
        if options.patience is not None and best.exists():
            model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        (figures,) = trainer.validate(model, datamodule=loaders, verbose=False)
    network.head.cpu().eval()
    validation = {name.removeprefix("val_"): float(value) for name, value in figures.items()}
    return TrainResult(int(trainer.current_epoch), encoded, validation, enhancer)


class _Loaders(lightning.LightningDataModule):
    """Loaders of the epoch that is on: the episodes of an epoch follow from its number, so a resumed one is alike."""

    def __init__(self, data: FewShotData, cache: TokenCache, options: TrainOptions, split: Split) -> None:
        super().__init__()
        self._source = (data, cache, options, split)
        self._batch = options.micro_batch

    def train_dataloader(self) -> DataLoader[EpisodeBatch]:
        """Give the training episodes of this epoch."""
        assert self.trainer is not None
        return DataLoader(Episodes(*self._source, self.trainer.current_epoch), self._batch)

    def val_dataloader(self) -> DataLoader[EpisodeBatch]:
        """Give the episodes of every validation."""
        return DataLoader(Episodes(*self._source, None), self._batch)


class _Log(Callback):
    """Appends a line of JSON an epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Write what Lightning logged."""
        if trainer.is_global_zero:
            figures = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
            with self._path.open("a") as log:
                log.write(json.dumps({"epoch": trainer.current_epoch, **figures}) + "\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice: on data loader workers, which cost more than reading a mapped file, and on GPUs."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", module=r"torchmetrics\..*")
            yield
    finally:
        logger.setLevel(level)
