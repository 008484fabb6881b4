"""The accuracy table of the README: four folds of a folder data set, each trained, then tested on the held-out classes.

    python benchmarks/accuracy.py --data DIR --checkpoint NETWORK.safetensors --work DIR

Each fold trains the checkpoint's head further, which must not have seen the classes held out, and shifts its mask's
logit to where the IoU on validation pictures of the training classes is best. The training-free head is tested on the
same backbone, the same objectness and the same episodes, at the level that is right most often on episodes of the
training classes: its scores mean nothing by themselves, and sharp outlines leave out a class below its level.

What is done is kept in the work folder, so an interrupted run goes on there (and another checkpoint needs another
folder); the table is printed at the end from what the folder holds (without a fold after --folds, at once).
--all-classes trains a head on all classes in the same way, for use.

    python benchmarks/accuracy.py --sets DIR DIR ... [--bundle DIR]

Tests a bundle, by default the one shipped, on whole data sets of the same layout. Of a folder named davis* the first
picture of each class is the support, and the others are asked about twice: with their own class's support, and with
the next class's.

Either table has exact ratio / mIoU in percent, and where the network tells objectness the mIoU of sharp outlines, then
in brackets that of plain ones, which are CST's alone. The exact ratio is that of the first: with masks both have the
same, but a name means another mask where objectness is told.
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
from torch.utils.data import DataLoader

from fsvit_edge.export.pipeline import ExportOptions, export_bundle
from fsvit_edge.learn.batches import Episodes, TrainOptions, choose_split
from fsvit_edge.learn.datasets import FewShotData, open_data
from fsvit_edge.learn.episodes import Episode
from fsvit_edge.learn.evaluation import Answer, EvaluationOptions, EvaluationResult, evaluate
from fsvit_edge.learn.tokens import TokenCache, default_cache_folder
from fsvit_edge.learn.training import EpisodeModule, train
from fsvit_edge.model.checkpoint import load_network, save_network
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, MANIFEST_NAME, PROTOTYPE_HEAD
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.predictor import FewShotModel
from fsvit_edge.runtime.storage import atomic_write

FOLDS = range(4)
SETTINGS = ((1, 1), (1, 5), (2, 1))
"""(way, shot)."""
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
    nameless=0.25,
    validation_fraction=0.06,
    precision="bf16-mixed",
)
"""Of every fold. A foreground pixel weighs more, for at an IoU of about 0.5 it pays to guess at a chance of 1 in 4."""

LEVEL_EPISODES = 200
"""Of the training classes, by which the training-free head gets its level."""

SHIFTS = tuple(step / 4 for step in range(-8, 5))
"""Of the mask's logit, tried on the validation pictures."""

Say = Callable[[str], None]


def main() -> None:
    """Train and test what the work folder lacks, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, nargs="+", default=[], help="data sets to test a bundle on")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--data", type=Path, help="<class>/{images,masks}/<stem>.*")
    parser.add_argument("--checkpoint", type=Path, help="whose backbone to use")
    parser.add_argument("--work", type=Path, help="folder for heads and figures")
    parser.add_argument("--cache", type=Path, default=default_cache_folder(), help="folder of the tokens")
    parser.add_argument("--folds", type=int, nargs="*", default=list(FOLDS))
    parser.add_argument("--all-classes", type=Path, help="train on all classes too: where to write that head")
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
    training_free = _exported(lambda: _training_free(options.checkpoint), options.work / "training-free")
    trained = {fold: _trained(fold, options, recipe, say) for fold in options.folds}
    for way, shot in SETTINGS:
        for masks in (True, False):
            asked = EvaluationOptions(way, shot, options.episodes, masks)
            for fold in options.folds:
                _test(fold, "trained", trained[fold], asked, options, say)
                _test(fold, "training-free", training_free, asked, options, say)
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, {options.threads} threads")
    print(table([json.loads(path.read_text()) for path in sorted(options.work.glob("fold*.*.json"))]))


def table(results: list[dict[str, Any]]) -> str:
    """Give the mean over the folds as Markdown: exact ratio / mIoU in percent, see the module.

    Args:
        results: What the work folder holds: of each fold, head, kind of supports, setting and outlines one.
    """
    lines = ["| head | supports | " + " | ".join(f"{way}-way {shot}-shot" for way, shot in SETTINGS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(SETTINGS))
    for head in ("trained", "training-free"):
        for masks in (True, False):
            cells = []
            for way, shot in SETTINGS:
                of_kind: dict[str, dict[int, tuple[float, float | None]]] = {}
                for result in results:
                    if (result["head"], result["masks"], result["way"], result["shot"]) == (head, masks, way, shot):
                        miou = None if result["miou"] is None else result["miou"]["value"]
                        of_fold = of_kind.setdefault(result["outlines"], {})
                        of_fold[result["fold"]] = (result["exact_ratio"]["value"], miou)
                cells.append(_mean_cell(of_kind))
            lines.append(f"| {head} | {'with masks' if masks else 'names only'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_cell(of_kind: Mapping[str, Mapping[int, tuple[float, float | None]]]) -> str:
    """One setting, outlines -> fold -> exact ratio and mIoU: the means over the folds that have all outlines."""
    folds = set.intersection(*(set(of_fold) for of_fold in of_kind.values())) if of_kind else set()
    if not folds:
        return "- (0 folds)"
    mious: dict[str, float | None] = {}
    for kind, of_fold in of_kind.items():
        measured = [miou for fold in folds if (miou := of_fold[fold][1]) is not None]
        mious[kind] = statistics.mean(measured) if measured else None
    judged = of_kind["sharp" if "sharp" in of_kind else "plain"]
    exact_ratio = statistics.mean(judged[fold][0] for fold in folds)
    return _cell(exact_ratio, mious) + (f", {len(folds)} folds" if len(folds) < len(FOLDS) else "")


def _cell(exact_ratio: float, mious: Mapping[str, float | None]) -> str:
    """Exact ratio / mIoU of the best outlines (and of plain ones)."""
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
    """ONNX Runtime asks a picture in a third of torch's time."""
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
    """Shift the mask's logit to where the mIoU on the validation pictures is best, of the outlines that are drawn.

    Returns:
        The shift, and that mIoU in percent.
    """
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
    network.head.decoder2_seg[2].bias[1] += SHIFTS[best]
    return SHIFTS[best], 100 * float(miou[best])


def _training_free(checkpoint: Path) -> FewShotNetwork:
    """The checkpoint's encoder, with its objectness, under the head without weights."""
    source = load_network(checkpoint)
    network = FewShotNetwork(dataclasses.replace(source.config, head=PROTOTYPE_HEAD))
    network.encoder, network.objectness = source.encoder, source.objectness
    return network


def _test(fold: int, head: str, bundle: Path, asked: EvaluationOptions, options: argparse.Namespace, say: Say) -> None:
    supports = "masks" if asked.masks else "names"
    with FewShotModel.load(bundle, "onnxruntime", threads=options.threads) as model:
        for outlines in kinds_of(model):
            file = options.work / f"fold{fold}.{head}.{asked.way}w{asked.shot}s.{supports}.{outlines}.json"
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
    """Give the level at which the model says most often rightly whether a class is there."""
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
    """Ask about every picture but the first of each class, once with its own class's first picture, once another's."""
    labels = list(data.class_names)
    episodes = []
    for place, label in enumerate(labels):
        other = labels[(place + 1) % len(labels)]
        for query in data.of_class(label)[1:]:
            episodes += [Episode(query, (way,), ((data.of_class(way)[0],),)) for way in (label, other)]
    return episodes


if __name__ == "__main__":
    main()
