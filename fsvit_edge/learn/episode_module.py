"""One training step: the losses, the metrics and the optimizer, as a Lightning module (CST, section 3.3)."""

from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy, MulticlassJaccardIndex

from fsvit_edge.learn.enhancement import enhanced_mask
from fsvit_edge.learn.examples import IGNORE
from fsvit_edge.learn.many_ways import Pairs, pairs_of, presence_cross_entropy, presence_loss, thinned
from fsvit_edge.learn.options import TrainOptions
from fsvit_edge.learn.sharp_outlines import sharpened, thing_of_name, weight_of_support
from fsvit_edge.learn.tokens import unpack
from fsvit_edge.learn.training_episodes import EpisodeBatch
from fsvit_edge.model.enhancer import PseudoLabelEnhancer
from fsvit_edge.model.fast_head import FastCorrelationHead, Supports, cache_supports
from fsvit_edge.model.head import HeadLogits
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.pseudo_mask import pseudo_mask
from fsvit_edge.runtime.errors import InputError

_OLD_NAMES = {"mask_dropout": "nameless", "trainer_precision": "precision"}
"""Names of version 0.1.0 in a checkpoint's identity: an interrupted training can still be resumed."""


class Questions(NamedTuple):
    """A batch as the head reads it."""

    query: Tensor  # (B, C, N, d) L2-normalized image tokens
    supports: Supports  # B
    target: Tensor  # (B, S, S) uint8 target masks: 0, 1 or 255 (ignored)
    objectness: Tensor  # (B, n, n) logits of the queries; n is 0 if the network predicts no objectness
    weight: Tensor | None  # (B,) how much each support trusts objectness; None if the network predicts none


class EpisodeModule(lightning.LightningModule):
    """The head with its losses and metrics. Encoder and enhancer are not submodules, so checkpoints have only the head.

    A checkpoint with another `identity`, the settings of the training, is refused. Without an enhancer, pseudo-masks
    are used unchanged. `num_labels` is the number of classes in the data set, for the metrics.
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
        # In a tuple, so that Lightning neither moves nor saves the frozen encoder.
        self._frozen = (network, enhancer)
        self._identity = identity
        self.options = options
        self.head = FastCorrelationHead(network.head)
        self.exact_ratio = BinaryAccuracy()
        self.iou = MulticlassJaccardIndex(num_labels + 1, average="none", ignore_index=IGNORE)
        self.loss = MeanMetric()

    @property
    def network(self) -> FewShotNetwork:
        """The network whose head learns."""
        return self._frozen[0]

    def forward(self, batch: EpisodeBatch) -> tuple[HeadLogits, Questions]:
        """Return the logits for the queries, and the batch as the head reads it."""
        questions = self._questions(batch)
        return self.head(questions.query, without_padding(questions.supports)), questions

    def _questions(self, batch: EpisodeBatch) -> Questions:
        network, enhancer = self._frozen
        query, support = unpack(batch.query, network), unpack(batch.support, network)
        grid, size = network.encoder.grid, network.config.image_size
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            support_guess, query_guess = (
                pseudo_mask(support.class_query, image.image_keys, grid, size)
                if enhancer is None
                else enhanced_mask(enhancer.to(self.device), support.class_query, image, grid, size)
                for image in (support, query)
            )
            has_objectness = network.objectness is not None
            objectness = batch.support_objectness.float()
            if has_objectness:
                support_guess = thing_of_name(objectness, support_guess)
            support_mask = torch.where(batch.support_known[:, None, None], batch.support_mask, support_guess)
            weight = weight_of_support(objectness, support_mask) if has_objectness else None
            query_guess = query_guess.to(torch.uint8) * batch.present[:, None, None]
            target = torch.where(batch.query_known[:, None, None], batch.query_mask, query_guess)
            vectors = network.support_vectors(support)
            supports = cache_supports(vectors, support_mask.float(), network.config.support_grid)
            return Questions(network.query_vectors(query), supports, target, batch.query_objectness.float(), weight)

    def training_step(self, batch: EpisodeBatch, _: int) -> Tensor:
        """Return the loss of CST, section 3.3: weighted presence loss + mask loss."""
        if self.options.ways > 1:
            loss = self._loss_of_many_ways(batch)
        else:
            questions = self._questions(batch)
            logits = self.head(questions.query, without_padding(self._with_fewer_tokens(questions.supports)))
            loss = self.loss_of(logits, questions, batch.present)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.present))
        return loss

    def _loss_of_many_ways(self, batch: EpisodeBatch) -> Tensor:
        """Return the presence loss of all pairs, plus the mask loss of each query's own class and of an absent one."""
        count, options = len(batch.label), self.options
        pairs = pairs_of(batch.present, batch.label, batch.shown, min(options.ways, count))
        questions = self._questions(batch)
        supports = without_padding(self._with_fewer_tokens(questions.supports))
        thinned_query = thinned(questions.query, self.network.encoder.grid)
        classification, _ = self.head.task_tokens(thinned_query[pairs.query], _of(supports, pairs.support))
        presence = self.head.head.decode_presence(classification).float()
        loss = presence_loss(presence[:, 1] - presence[:, 0], pairs, options.label_noise)

        # A mask costs as much as four presence scores, and one absent class teaches as much as another.
        mask_pairs = Pairs(*(part[: 2 * count] for part in pairs))
        logits = self.head(questions.query[mask_pairs.query], _of(supports, mask_pairs.support))
        full_presence = logits.presence.float()
        loss = loss + presence_cross_entropy(full_presence[:, 1] - full_presence[:, 0], mask_pairs, options.label_noise)
        target = torch.where(mask_pairs.present[:, None, None], questions.target[mask_pairs.query], 0)
        target = torch.where(mask_pairs.known[:, None, None], target, IGNORE)
        weight = None if questions.weight is None else questions.weight[mask_pairs.support]
        objectness = questions.objectness[mask_pairs.query]
        masks = self._mask_loss(logits.mask, target, objectness, weight, mask_pairs.present)
        return options.class_weight * loss + masks

    def _with_fewer_tokens(self, supports: Supports) -> Supports:
        """Keep the class token and a random choice of `kept_tokens` of the kept image tokens of each support."""
        if self.options.kept_tokens is None:
            return supports
        chance = torch.rand_like(supports.kept_mask) * supports.kept_mask
        chance[:, 0] = 2.0
        length = min(1 + self.options.kept_tokens, chance.shape[1])
        least = chance.topk(length, dim=1).values[:, -1:]
        return supports._replace(kept_mask=supports.kept_mask * (chance >= least))

    def validation_step(self, batch: EpisodeBatch, _: int) -> None:
        """Update the metrics."""
        logits, questions = self(batch)
        self.loss.update(self.loss_of(logits, questions, batch.present))
        self.exact_ratio.update(logits.presence.argmax(dim=1), batch.present)
        found = self.outlined(logits, questions).argmax(dim=1)
        label = batch.label[:, None, None] + 1
        self.iou.update(found * label, torch.where(questions.target == IGNORE, IGNORE, questions.target * label))

    def outlined(self, logits: HeadLogits, questions: Questions) -> Tensor:
        """Return the mask logits (B, 2, S, S) nearly as the runtime draws them, see `sharp_outlines`.

        They are sharp if the network predicts objectness; sharp outlines leave out a class that is not present.
        """
        full = resized_logits(logits.mask.float(), questions.target.shape[1])
        if questions.weight is None:
            return full
        sharp = sharpened(full, questions.objectness, questions.weight)
        present = logits.presence.argmax(dim=1) == 1
        return torch.where(present[:, None, None, None], sharp, sharp.new_tensor([0.0, -torch.inf])[:, None, None])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics in percent."""
        # A class that is neither shown nor found has no IoU, but torchmetrics counts it as 0.
        counted = (self.iou.confmat.sum(dim=0) + self.iou.confmat.sum(dim=1) > 0)[1:]
        iou = self.iou.compute()[1:][counted]
        self.log("val_loss", self.loss.compute())
        self.log("val_exact_ratio", 100 * self.exact_ratio.compute())
        self.log("val_miou", 100 * iou.mean() if len(iou) else 0.0)
        for metric in (self.iou, self.loss, self.exact_ratio):
            metric.reset()

    def configure_optimizers(self) -> Any:
        """Return Adam, and a cosine schedule over all epochs if the learning rate decays."""
        optimizer = torch.optim.Adam(self.head.parameters(), lr=self.options.learning_rate)
        if not self.options.decay:
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the settings of the training to the checkpoint."""
        checkpoint["identity"] = self._identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a training run with other settings."""
        stored = checkpoint.get("identity", {})
        stored = {**stored, **{new: stored[old] for new, old in _OLD_NAMES.items() if old in stored}}
        if differing := sorted(key for key in self._identity if stored.get(key) != self._identity[key]):
            key = differing[0]
            raise InputError(
                f"The checkpoint belongs to a training run with {key} {stored.get(key)!r}, but now it is "
                f"{self._identity[key]!r}; use the same options as before, or choose another --output."
            )

    def loss_of(self, logits: HeadLogits, questions: Questions, present: Tensor) -> Tensor:
        """Return the weighted sum of the cross-entropies of presence and of the mask (at the size of the input)."""
        presence = F.cross_entropy(logits.presence.float(), present.long())
        masks = self._mask_loss(logits.mask, questions.target, questions.objectness, questions.weight, present)
        return self.options.class_weight * presence + masks

    def _mask_loss(
        self, logits: Tensor, target: Tensor, objectness: Tensor, weight: Tensor | None, present: Tensor
    ) -> Tensor:
        """Return the mean of the losses of plain and of sharp outlines; the latter exist for present classes only."""
        full = resized_logits(logits.float(), target.shape[1])
        plain = self._mask_cross_entropy(full, target)
        if weight is None:
            return plain
        shown = torch.where(present[:, None, None], target, IGNORE)
        return 0.5 * (plain + self._mask_cross_entropy(sharpened(full, objectness, weight), shown))

    def _mask_cross_entropy(self, full: Tensor, target: Tensor) -> Tensor:
        weight = full.new_tensor([1.0, self.options.foreground_weight])
        total = F.cross_entropy(full, target.long(), weight=weight, ignore_index=IGNORE, reduction="sum")
        # Divided by the number of pixels, not by their weights, so that an episode's loss does not depend on its batch.
        return total / (target != IGNORE).sum().clamp_min(1)


def _of(supports: Supports, index: Tensor) -> Supports:
    return Supports(*(tensor[index] for tensor in supports))


def resized_logits(logits: Tensor, size: int) -> Tensor:
    """Resize mask logits: (B, 2, s, s) -> (B, 2, size, size)."""
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=True)


def without_padding(supports: Supports) -> Supports:
    """Drop the token places that no support of the batch needs: they only cost time."""
    longest = int(supports.kept_mask.sum(dim=1).max())
    kept_mask, order = supports.kept_mask.sort(dim=1, descending=True, stable=True)
    index = order[:, None, :longest, None].expand(-1, supports.kept.shape[1], -1, supports.kept.shape[3])
    return supports._replace(kept=supports.kept.gather(2, index), kept_mask=kept_mask[:, :longest])
