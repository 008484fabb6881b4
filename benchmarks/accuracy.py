"""Measure accuracy: train on four folds of a data set and test on the held-out classes, or test a bundle as it is.

    python benchmarks/accuracy.py --data DIR --checkpoint NETWORK.safetensors --work DIR

For each fold, it trains the checkpoint's head further (the head must not have seen the held-out classes), and shifts
its mask logit to the value with the best IoU on validation pictures of the training classes. The training-free head is
tested with the same backbone, the same objectness and the same episodes, at the level that is most often right on
episodes of the training classes, because its scores are not calibrated and sharp outlines leave out a class below its
level.

Results are kept in the work folder, so an interrupted run continues there (use another folder for another checkpoint).
The table is printed at the end from the files in the folder; an empty --folds prints it at once. --all-classes also
trains a head on all classes in the same way.

    python benchmarks/accuracy.py --sets DIR DIR ... [--bundle DIR]

Tests a bundle, by default the bundled model, on whole data sets of the same layout. In a folder named davis*, the first
picture of each class is the support, and the others are queries twice: with the support of their own class, and with
that of the next class.

Both tables show exact ratio / mIoU in percent. If the network predicts objectness, the mIoU is that of sharp outlines,
followed by that of plain outlines (CST alone) in parentheses. The exact ratio belongs to the sharp outlines: with masks
both are the same, but with names only, objectness changes the guessed mask.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outlines import kinds_of
from torch import nn
from torch.utils.data import DataLoader

from fsvit_edge.export.pipeline import ExportOptions, export_bundle
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.episode_module import EpisodeModule
from fsvit_edge.learn.episodes import Episode
from fsvit_edge.learn.evaluation import Answer, EvaluationOptions, EvaluationResult, evaluate
from fsvit_edge.learn.examples import FewShotData
from fsvit_edge.learn.options import TrainOptions
from fsvit_edge.learn.tokens import TokenCache, default_cache_folder
from fsvit_edge.learn.training import train
from fsvit_edge.learn.training_episodes import Episodes, choose_split
from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, MANIFEST_NAME, PROTOTYPE_HEAD
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import Say
from fsvit_edge.runtime.storage import atomic_write

FOLDS = range(4)
SETTINGS = ((1, 1), (1, 5), (2, 1))
"""(ways, shots)."""
SETS_SHOTS = (1, 5)
SETS_HEADER = "| data | 1 shot, masks | 1 shot, names | 5 shots, masks | 5 shots, names |\n| --- |" + " --- |" * 4
RECIPE = TrainOptions(
    epochs=3,
    batch=16,
    micro_batch=16,
    learning_rate=3e-4,
    class_weight=0.5,
    ways=12,
    label_noise=0.05,
    kept_tokens=48,
    foreground_weight=3.0,
    views=2,
    same_picture=0.2,
    mask_dropout=0.25,
    validation_fraction=0.06,
    trainer_precision="bf16-mixed",
)
"""Training of every fold. Foreground pixels weigh more: at an IoU near 0.5, pixels with P(foreground) > 1/4 pay off."""

LEVEL_EPISODES = 200
"""Episodes of the training classes from which the level of the training-free head is chosen."""

SHIFTS = tuple(step / 4 for step in range(-8, 5))
"""Shifts of the mask logit to try on the validation pictures."""


def main() -> None:
    """Train and test what is missing in the work folder, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, nargs="+", default=[], help="data sets to test a bundle on")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--data", type=Path, help="<class>/{images,masks}/<stem>.*")
    parser.add_argument("--checkpoint", type=Path, help="network to start from")
    parser.add_argument("--work", type=Path, help="folder for heads and results")
    parser.add_argument("--cache", type=Path, default=default_cache_folder(), help="folder for cached tokens")
    parser.add_argument("--folds", type=int, nargs="*", default=list(FOLDS))
    parser.add_argument("--all-classes", type=Path, help="also train on all classes, and write that network here")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {text}", flush=True)

    if options.sets:
        with FewShotModel.load(options.bundle, "onnxruntime", threads=options.threads) as model:
            print(SETS_HEADER, flush=True)
            for root in options.sets:
                print(_row(model, root, options.episodes), flush=True)
        return
    recipe = dataclasses.replace(RECIPE, epochs=options.epochs)
    if options.all_classes is not None and not options.all_classes.exists():
        _train(None, options.all_classes, options, recipe, say)
    training_free = _exported(lambda: training_free_network(options.checkpoint), options.work / "training-free")
    trained = {fold: _trained(fold, options, recipe, say) for fold in options.folds}
    for ways, shots in SETTINGS:
        for masks in (True, False):
            asked = EvaluationOptions(ways, shots, options.episodes, masks)
            for fold in options.folds:
                evaluate_fold(fold, "trained", trained[fold], asked, options, say)
                evaluate_fold(fold, "training-free", training_free, asked, options, say)
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, {options.threads} threads")
    print(table([json.loads(path.read_text()) for path in sorted(options.work.glob("fold*.*.json"))]))


def table(results: list[dict[str, Any]]) -> str:
    """Return the means over the folds as a Markdown table: exact ratio / mIoU in percent, see the module.

    `results` are the files of the work folder: one per fold, head, kind of supports, setting and kind of outlines.
    """
    lines = ["| head | supports | " + " | ".join(f"{ways}-way {shots}-shot" for ways, shots in SETTINGS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(SETTINGS))
    for head in ("trained", "training-free"):
        for masks in (True, False):
            cells = []
            for ways, shots in SETTINGS:
                of_kind: dict[str, dict[int, tuple[float, float | None]]] = {}
                for result in results:
                    if (result["head"], result["masks"], result["ways"], result["shots"]) == (head, masks, ways, shots):
                        miou = None if result["miou"] is None else result["miou"]["value"]
                        of_fold = of_kind.setdefault(result["outlines"], {})
                        of_fold[result["fold"]] = (result["exact_ratio"]["value"], miou)
                cells.append(_mean_cell(of_kind))
            lines.append(f"| {head} | {'with masks' if masks else 'names only'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_cell(of_kind: Mapping[str, Mapping[int, tuple[float, float | None]]]) -> str:
    """Format the means of one setting (outlines -> fold -> exact ratio, mIoU) over the folds that have all outlines."""
    folds = set.intersection(*(set(of_fold) for of_fold in of_kind.values())) if of_kind else set()
    if not folds:
        return "- (0 folds)"
    mious: dict[str, float | None] = {}
    for kind, of_fold in of_kind.items():
        measured = [miou for fold in folds if (miou := of_fold[fold][1]) is not None]
        mious[kind] = statistics.mean(measured) if measured else None
    first = of_kind["sharp" if "sharp" in of_kind else "plain"]
    exact_ratio = statistics.mean(first[fold][0] for fold in folds)
    return _cell(exact_ratio, mious) + (f", {len(folds)} folds" if len(folds) < len(FOLDS) else "")


def _cell(exact_ratio: float, mious: Mapping[str, float | None]) -> str:
    """Format exact ratio / mIoU of sharp outlines (and of plain ones)."""
    shown = {kind: "-" if miou is None else f"{miou:.1f}" for kind, miou in mious.items()}
    if "sharp" not in shown:
        return f"{exact_ratio:.1f} / {shown['plain']}"
    return f"{exact_ratio:.1f} / {shown['sharp']} ({shown.get('plain', '-')})"


def _trained(fold: int, options: argparse.Namespace, recipe: TrainOptions, say: Say) -> Path:
    file = options.work / f"fold{fold}.safetensors"
    if not file.exists():
        _train(fold, file, options, recipe, say)
    return _exported(lambda: load_network(file), options.work / f"fold{fold}")


def _exported(make: Callable[[], FewShotNetwork], bundle: Path) -> Path:
    """Export a network once: ONNX Runtime needs a third of torch's time per picture."""
    if not (bundle / MANIFEST_NAME).exists():
        export_bundle(make(), bundle, ExportOptions())
    return bundle


def _train(fold: int | None, file: Path, options: argparse.Namespace, recipe: TrainOptions, say: Say) -> None:
    network = load_network(options.checkpoint)
    data = open_data("folder", options.data, None, fold, "train")
    cache = TokenCache(network, options.cache, recipe.views)
    result = train(
        network, data, recipe, cache, file.with_suffix(".training"), True, lambda text: say(f"fold {fold}: {text}")
    )
    say(f"fold {fold}: validation {result.validation}")
    shift, miou = calibrate(network, data, cache, recipe)
    say(f"fold {fold}: mask logit shifted by {shift}: mIoU {miou:.1f}")
    save_network(network, file)


@torch.inference_mode()
def calibrate(
    network: FewShotNetwork, data: FewShotData, cache: TokenCache, recipe: TrainOptions
) -> tuple[float, float]:
    """Shift the mask logit to the best value on the validation pictures; return it and its mIoU in percent."""
    module = EpisodeModule(network, recipe, {}, None, max(data.class_names) + 1)
    pixels = torch.zeros(2, max(data.class_names) + 1, len(SHIFTS))  # intersections and unions
    shifts = torch.tensor(SHIFTS)[:, None, None, None]
    for batch in DataLoader(Episodes(data, cache, recipe, choose_split(data, recipe), None), recipe.micro_batch):
        logits, asked = module(batch)
        background, foreground = module.outlined(logits, asked).unbind(1)
        found, there = foreground - background + shifts > 0, asked.target == 1
        pixels[0].index_add_(0, batch.label, (found & there).sum(dim=(2, 3)).T.float())
        pixels[1].index_add_(0, batch.label, (found | there).sum(dim=(2, 3)).T.float())
    wanted = pixels[1].amax(dim=1) > 0
    miou = (pixels[0] / pixels[1].clamp_min(1))[wanted].mean(dim=0)
    best = int(miou.argmax())
    last = network.head.decoder2_seg[2]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias[1] += SHIFTS[best]
    return SHIFTS[best], 100 * float(miou[best])


def training_free_network(checkpoint: Path) -> FewShotNetwork:
    """Return the checkpoint's encoder and objectness decoder with the head without weights."""
    source = load_network(checkpoint)
    network = FewShotNetwork(dataclasses.replace(source.config, head=PROTOTYPE_HEAD))
    network.encoder, network.objectness = source.encoder, source.objectness
    return network


def evaluate_fold(
    fold: int, head: str, bundle: Path, asked: EvaluationOptions, options: argparse.Namespace, say: Say
) -> None:
    """Test a head on the held-out classes of a fold with each kind of outlines; write a JSON file per kind."""
    supports = "masks" if asked.masks else "names"
    with FewShotModel.load(bundle, "onnxruntime", threads=options.threads) as model:
        for outlines in kinds_of(model):
            file = options.work / f"fold{fold}.{head}.{asked.ways}w{asked.shots}s.{supports}.{outlines}.json"
            if file.exists():
                continue
            model.outlines = outlines
            if head == "training-free":
                seen = open_data("folder", options.data, None, fold, "train")
                model.bank.head = dataclasses.replace(model.bank.head, presence_level=best_level(model, seen, asked))
            result = evaluate(model, open_data("folder", options.data, None, fold, "test"), asked)
            used = {"fold": fold, "head": head, "outlines": outlines, "level": model.bank.head.presence_level}
            found = {**used, **result.to_dict()}
            atomic_write(file, json.dumps(found, indent=2).encode())
            figures = _cell(result.scores.exact_ratio.value, {"plain": _miou(result)})
            say(f"{file.stem}: {figures}, {result.elapsed_s:.0f} s")


def best_level(model: FewShotModel, data: FewShotData, asked: EvaluationOptions) -> float:
    """Return the level at which the presence answers of the model are most often right."""
    scores: list[float] = []
    shown: list[bool] = []

    def keep(answer: Answer) -> None:
        scores.extend(answer.prediction.scores.tolist())
        shown.extend(answer.shown.tolist())

    evaluate(model, data, dataclasses.replace(asked, episodes=LEVEL_EPISODES), on_answer=keep)
    score, there = np.array(scores), np.array(shown)
    known = np.unique(score)
    levels = np.clip((known[1:] + known[:-1]) / 2, 1e-6, 1 - 1e-6)
    right = ((score > levels[:, None]) == there).mean(axis=1)
    return float(levels[right.argmax()])


def _row(model: FewShotModel, root: Path, episodes: int) -> str:
    data = open_data("folder", root, None, None, "test")
    follows = first_picture_episodes(data) if root.name.startswith("davis") else None
    kinds = kinds_of(model)
    cells = []
    for shot in SETS_SHOTS:
        for masks in (True, False):
            options = EvaluationOptions(1, shot, len(follows) if follows else episodes, masks)
            if follows and shot > 1:
                cells.append("-")
                continue
            results: dict[str, EvaluationResult] = {}
            try:
                for outlines in kinds:
                    model.outlines = outlines
                    results[outlines] = evaluate(model, data, options, episodes=follows)
            except InputError as error:  # a class has fewer pictures than shots
                print(f"{root.name}, {shot} shots: {error}", file=sys.stderr)
                cells.append("-")
                continue
            finally:
                model.outlines = kinds[0]
            mious = {outlines: _miou(result) for outlines, result in results.items()}
            cells.append(_cell(results[kinds[0]].scores.exact_ratio.value, mious))
    return f"| {root.name}, {len(data.examples)} pictures | {' | '.join(cells)} |"


def _miou(result: EvaluationResult) -> float | None:
    return None if result.scores.miou is None else result.scores.miou.value


def first_picture_episodes(data: FewShotData) -> list[Episode]:
    """Ask about every picture but the first of each class: with the first picture of its class, and of the next one."""
    labels = list(data.class_names)
    episodes = []
    for place, label in enumerate(labels):
        other = labels[(place + 1) % len(labels)]
        for query in data.of_class(label)[1:]:
            episodes += [Episode(query, (way,), ((data.of_class(way)[0],),)) for way in (label, other)]
    return episodes


if __name__ == "__main__":
    main()
