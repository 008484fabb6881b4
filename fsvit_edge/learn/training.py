"""Train the correlation head on episodes of cached tokens; the encoder stays frozen (CST, section 4).

Input: a network, a data set, options. Output: the network's head, trained in place, and a folder with the last
checkpoint, from which an interrupted training can resume, and a log of the epochs.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from fsvit_edge.learn.enhancement import EnhancerOptions, EnhancerResult, train_enhancer
from fsvit_edge.learn.episode_module import EpisodeModule
from fsvit_edge.learn.evaluation import every_few_seconds
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.options import TrainOptions
from fsvit_edge.learn.tokens import TokenCache
from fsvit_edge.learn.training_episodes import EpisodeBatch, Episodes, ValidationSplit, choose_split
from fsvit_edge.model.head import CorrelationHead
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.model.torch_engine import use_threads
from fsvit_edge.runtime.bundle import TRAINED_HEAD
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.presence_level import DEFAULT_LEVEL


@dataclass(frozen=True)
class TrainResult:
    """The result of `train`."""

    epochs: int  # trained, including those before an interruption
    encoded: int  # pictures that had to be encoded; 0 if all were cached
    before: dict[str, float]  # loss, exact_ratio and miou (in percent) of the head that the training began with
    validation: dict[str, float]  # the same of the final head, on the same validation pictures
    enhancer: EnhancerResult | None  # how much the enhancer helped; None without mixed supervision


def new_head(network: FewShotNetwork, seed: int) -> None:
    """Replace the network's head by a new one with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.config = replace(network.config, head=TRAINED_HEAD, presence_level=DEFAULT_LEVEL)
        network.prototype_head = None
        network.head = CorrelationHead(network.encoder.num_channels, network.config.support_grid).eval()


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

    The folder `workspace` gets the checkpoints and the log of the epochs (`log.jsonl`). If it has a training, that is
    refused, or continued with `resume`, for which the options must be the same. The cache has `options.views` views.
    """
    last = workspace / "last.ckpt"
    if last.exists() and not resume:
        raise InputError(f"{workspace} already contains a training run; continue it with --resume, or delete it.")
    workspace.mkdir(parents=True, exist_ok=True)
    use_threads(options.threads)
    encoded = cache.fill(data, progress)
    split = choose_split(data, options)
    improved = None
    if options.supervision == "mixed":
        progress("train the enhancer")
        with_masks = [index for index, is_known in enumerate(split.known) if is_known]
        improved = train_enhancer(network, cache, data, with_masks, EnhancerOptions(seed=options.seed), progress)
        progress(improved.sentence)
    enhancer = improved.enhancer if improved and improved.helps else None
    model = EpisodeModule(network, options, _identity(options, cache, data), enhancer, max(data.class_names) + 1)
    progress("train")
    with _quiet():
        trainer = _trainer(options, workspace, progress)
        loaders = _Loaders(data, cache, options, split)
        (before,) = trainer.validate(model, datamodule=loaders, verbose=False)  # if it resumes, the first head, too
        trainer.fit(model, datamodule=loaders, ckpt_path=last if resume and last.exists() else None)
        best = workspace / "best.ckpt"
        if options.patience is not None and best.exists():
            model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        (figures,) = trainer.validate(model, datamodule=loaders, verbose=False)
    network.head.cpu().eval()
    return TrainResult(int(trainer.current_epoch), encoded, _named(before), _named(figures), improved)


def _named(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("val_"): float(value) for name, value in figures.items()}


def _identity(options: TrainOptions, cache: TokenCache, data: FewShotData) -> dict[str, Any]:
    """Return the settings that a resumed training must share with the interrupted one."""
    identity = {**asdict(options), "cache": cache.folder.name, "examples": len(data.examples)}
    # A resumed training may add epochs (unless the learning rate decays over them) and run on other devices.
    for name in ("accelerator", "devices", "threads", *(() if options.decay else ("epochs",))):
        identity.pop(name)
    return identity


def _trainer(options: TrainOptions, workspace: Path, progress: Progress) -> lightning.Trainer:
    callbacks: list[Callback] = [
        ModelCheckpoint(workspace, "best", monitor="val_miou", mode="max", enable_version_counter=False),
        # `save_last` of the first callback would write only in the epochs that are the best so far.
        ModelCheckpoint(workspace, "last", enable_version_counter=False),
        _Log(workspace / "log.jsonl", options.epochs, progress),
    ]
    if options.patience is not None:
        callbacks.append(EarlyStopping("val_miou", mode="max", patience=options.patience))
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=options.devices or ("auto" if torch.cuda.is_available() else 1),
        precision=options.trainer_precision,  # type: ignore[arg-type]  # Lightning checks the name itself
        max_epochs=options.epochs,
        accumulate_grad_batches=options.batch // options.micro_batch,
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        inference_mode=False,  # or the metrics of the first validation cannot be used in the training
        default_root_dir=workspace,
    )


class _Loaders(lightning.LightningDataModule):
    """Data loaders. The number of an epoch determines its episodes, so a resumed training sees the same ones."""

    def __init__(self, data: FewShotData, cache: TokenCache, options: TrainOptions, split: ValidationSplit) -> None:
        super().__init__()
        self._source = (data, cache, options, split)
        self._batch = options.micro_batch

    def train_dataloader(self) -> DataLoader[EpisodeBatch]:
        assert self.trainer is not None
        return DataLoader(Episodes(*self._source, self.trainer.current_epoch), self._batch)

    def val_dataloader(self) -> DataLoader[EpisodeBatch]:
        return DataLoader(Episodes(*self._source, None), self._batch)


class _Log(Callback):
    """Appends a line of JSON per epoch, and tells how far the training is."""

    def __init__(self, path: Path, epochs: int, progress: Progress) -> None:
        self._path = path
        self._epochs = epochs
        self._progress, self._report = progress, every_few_seconds(progress)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = f"step {trainer.fit_loop.batch_idx + 1} of {trainer.num_training_batches}"
        self._report(f"epoch {trainer.current_epoch + 1} of {self._epochs}, {step}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            figures = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
            with self._path.open("a") as log:
                log.write(json.dumps({"epoch": trainer.current_epoch, **figures}) + "\n")
            texts = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
            self._progress(f"epoch {trainer.current_epoch + 1} of {self._epochs}: {', '.join(texts)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice on GPUs and on data loader workers (which are slower than reading mapped files)."""
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
