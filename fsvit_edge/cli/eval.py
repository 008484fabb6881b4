"""`fsvit-edge eval`: measure the accuracy of a model, and fail if it misses a limit."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsvit_edge.cli.options import (
    BenchmarkOption,
    BundleOption,
    ClassesOption,
    DataOption,
    FoldOption,
    JsonOption,
    PrecisionOption,
    ShotsOption,
    SplitsOption,
    ThreadsOption,
    WaysOption,
)
from fsvit_edge.cli.outputs import refuse_to_replace, write_preview

if TYPE_CHECKING:
    from fsvit_edge.fewshot.predictor import FewShotModel
    from fsvit_edge.learn.evaluation import EvaluationResult
    from fsvit_edge.learn.metrics import Score
    from fsvit_edge.learn.scenes import SceneResult
    from fsvit_edge.runtime.engines.choose import EngineChoice


class EvaluationProtocol(str, Enum):
    """How a model is evaluated."""

    EPISODES = "episodes"
    SCENES = "scenes"


_ONLY_WITH = {
    **dict.fromkeys(("ways", "episodes", "preview", "max_pictures"), EvaluationProtocol.EPISODES),
    **dict.fromkeys(("min_miou", "min_exact_ratio", "baseline", "max_drop"), EvaluationProtocol.EPISODES),
    **dict.fromkeys(("per_class", "max_false_alarms", "min_hits"), EvaluationProtocol.SCENES),
}
"""The options that only one protocol has."""


class Outlines(str, Enum):
    """How outlines are drawn."""

    PLAIN = "plain"
    SHARP = "sharp"


class SupportKind(str, Enum):
    """What is known about a support picture."""

    MASKS = "masks"
    NAMES = "names"


def evaluate(
    context: typer.Context,
    data: DataOption,
    bundle: BundleOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of a network, .safetensors or .ckpt, evaluated in PyTorch instead of a bundle."),
    ] = None,
    benchmark: BenchmarkOption = "folder",
    splits: SplitsOption = None,
    fold: FoldOption = None,
    classes: ClassesOption = None,
    protocol: Annotated[
        EvaluationProtocol,
        typer.Option(
            help="episodes: as in the paper, each compares one query picture with support pictures of a few "
            "classes; scenes: enroll every class, then look for all classes in all remaining pictures."
        ),
    ] = EvaluationProtocol.EPISODES,
    ways: WaysOption = 1,
    shots: ShotsOption = 1,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 1000,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of scenes per class; default: all remaining pictures.")
    ] = None,
    supports: Annotated[
        SupportKind, typer.Option(help="masks: enroll with the masks; names: hide them, so that they are guessed.")
    ] = SupportKind.MASKS,
    outlines: Annotated[
        Outlines | None,
        typer.Option(
            help="plain: by the CST head alone; sharp: with objectness (where objects end); default: sharp if possible."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="auto, onnxruntime or openvino (on the CPU), onnxruntime-cuda, or what build-engine made: tensorrt, "
            "tensorrt-rtx; torch for a --checkpoint."
        ),
    ] = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the result as JSON.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Draw pictures of the first episodes into this folder.")] = None,
    max_pictures: Annotated[int, typer.Option(min=1, help="Maximum number of pictures.")] = 20,
    min_miou: Annotated[
        float | None, typer.Option(help="Fail if the mIoU (mean overlap of masks) is below this percentage.")
    ] = None,
    min_exact_ratio: Annotated[
        float | None,
        typer.Option(
            help="Fail if the exact ratio (share of episodes with every presence answer correct) is below this "
            "percentage."
        ),
    ] = None,
    max_false_alarms: Annotated[
        float | None,
        typer.Option(help="Fail if false alarms (scenes in which an absent class is found) exceed this percentage."),
    ] = None,
    min_hits: Annotated[
        float | None,
        typer.Option(help="Fail if hits (scenes in which a class that they show is found) are below this percentage."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Earlier result (written with --output) to compare with.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=0,
            help="With --baseline: fail if exact ratio or mIoU drops by more than this many percentage points; "
            "default: 1.",
        ),
    ] = None,
) -> None:
    """Measure accuracy on few-shot episodes or on scenes.

    Ends with code 5 if a given limit is missed.
    """
    from fsvit_edge.cli.terminal import say, show_progress
    from fsvit_edge.learn.datasets import open_data
    from fsvit_edge.learn.episode_pictures import draw_answer
    from fsvit_edge.learn.evaluation import Answer, EvaluationOptions, EvaluationResult, to_json
    from fsvit_edge.learn.evaluation import evaluate as run_episodes
    from fsvit_edge.learn.gates import DEFAULT_MAX_DROP, Baseline, Gates, SceneGates
    from fsvit_edge.learn.scenes import SceneOptions, SceneResult, evaluate_scenes
    from fsvit_edge.runtime.errors import InputError
    from fsvit_edge.runtime.storage import atomic_write

    for name, only in _ONLY_WITH.items():
        given = context.get_parameter_source(name)
        if only is not protocol and given is not None and given.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} works only with --protocol {only.value}; leave it out here.")
    if max_drop is not None and baseline is None:
        raise InputError("--max-drop compares with an earlier result; give one with --baseline FILE.")
    if output is not None and output.is_dir():
        raise InputError(f"{output} is a folder; give the name of a file to write.")
    refuse_to_replace(output, [checkpoint], "--output")
    masks = supports is SupportKind.MASKS
    options = EvaluationOptions(ways, shots, episodes, masks)
    earlier = None if baseline is None else Baseline.load(baseline)
    names = [name.strip() for part in classes or () for name in part.split(",")]
    selection = open_data(benchmark, data, splits, fold, "test", masks, names)

    def draw(answer: Answer) -> None:
        if preview is not None and answer.number < max_pictures:
            name = f"episode-{answer.number:0{len(str(episodes - 1))}}.png"
            write_preview(preview / name, draw_answer(selection, answer, masks))

    result: EvaluationResult | SceneResult
    with show_progress("Evaluate") as progress:
        progress("load the model")
        with _open_model(bundle, checkpoint, engine, precision, threads) as model:
            if outlines is not None:
                model.outlines = outlines.value
            if protocol is EvaluationProtocol.SCENES:
                result = evaluate_scenes(model, selection, SceneOptions(shots, masks, per_class), progress)
            else:
                if earlier is not None:
                    earlier.check_settings({**vars(options), "outlines": model.outlines})
                result = run_episodes(model, selection, options, progress, draw)

    source = {
        "source": str(checkpoint or bundle or "the bundled model"),
        "data": {"benchmark": benchmark, "folder": str(data), "fold": fold},
    }
    text = to_json({**result.to_dict(), **source}, model.choice)
    if output is not None:
        atomic_write(output, text.encode())
    if as_json:
        print(text, end="")
    if isinstance(result, SceneResult):
        if not as_json:
            _print_scenes(result, model.choice)
        SceneGates(max_false_alarms, min_hits).check(result)
        if max_false_alarms is None:
            say("Next: make this a limit with: fsvit-edge eval --protocol scenes --max-false-alarms PERCENT")
        return
    if not as_json:
        _print_episodes(result, model.choice)
    Gates(min_miou, min_exact_ratio, earlier, DEFAULT_MAX_DROP if max_drop is None else max_drop).check(result)
    if output is not None and baseline is None:
        say(f"Next: compare later models with this one: fsvit-edge eval --baseline {output}")
    elif checkpoint is not None:
        say(f"Next: fsvit-edge export --checkpoint {checkpoint}")
    elif preview is None:
        say("Next: draw the answers with --preview DIR")


def _open_model(
    bundle: Path | None, checkpoint: Path | None, engine: str, precision: str, threads: int | None
) -> "FewShotModel":
    from fsvit_edge.cli.terminal import open_model, require
    from fsvit_edge.runtime.errors import InputError

    if checkpoint is None:
        if engine == "torch":
            raise InputError("--engine torch runs a checkpoint, not a bundle; give one with --checkpoint FILE.")
        return open_model(bundle, engine, precision, threads)
    if bundle is not None:
        raise InputError("Give either --bundle or --checkpoint, not both.")
    export = f"make one with: fsvit-edge export --checkpoint {checkpoint}"
    if engine not in ("auto", "torch"):
        raise InputError(f"--engine {engine} runs a bundle, not a checkpoint; {export}.")
    if precision not in ("auto", "fp32"):
        raise InputError(f"--precision {precision} needs a bundle, because PyTorch runs checkpoints in fp32; {export}.")
    require("fsvit-edge eval --checkpoint", ("torch", "timm"), "export")
    from fsvit_edge.model.torch_engine import open_checkpoint

    return open_checkpoint(checkpoint, threads)


def _print_episodes(result: "EvaluationResult", choice: "EngineChoice") -> None:
    from fsvit_edge.cli.terminal import print_table

    options, scores, model = result.options, result.scores, result.model
    kind = "supports with masks" if options.masks else "supports without masks"
    title = (
        f"{model.name} at {model.image_size} px, {choice.description}: {options.ways}-way {options.shots}-shot, "
        f"{kind}, {options.episodes} episodes in {result.elapsed_s:.0f} s, {result.outlines} outlines"
    )
    overall = [("0/1 exact ratio", *_cells(scores.exact_ratio)), ("mIoU", *_cells(scores.miou))]
    print_table(title, ("", "%", "95 % interval"), overall)
    if result.segmented < options.episodes:
        print(f"mIoU covers {result.segmented} episodes; the other query pictures have no mask.\n")
    rows = [
        (class_.name, str(class_.asked), str(class_.shown), *_cells(class_.presence), *_cells(class_.iou))
        for class_ in scores.classes
    ]
    header = ("class", "asked", "present", "presence correct %", "95 % interval", "IoU %", "95 % interval")
    print_table("Per class", header, rows)


def _print_scenes(result: "SceneResult", choice: "EngineChoice") -> None:
    from fsvit_edge.cli.terminal import print_table
    from fsvit_edge.runtime.presence_level import score_text

    options, scores, model = result.options, result.scores, result.model
    kind = "with masks" if options.masks else "without masks"
    supports = "1 support" if options.shots == 1 else f"{options.shots} supports"
    title = (
        f"{model.name} at {model.image_size} px, {choice.description}: {supports} per class {kind}, "
        f"{len(scores.classes)} classes, {result.pictures} pictures in {result.elapsed_s:.0f} s"
    )
    overall = [
        ("hits at the current levels", *_cells(scores.hits)),
        ("false alarms at the current levels", *_cells(scores.false_alarms)),
        ("area under the ROC curve", *_cells(scores.area)),
        ("hits at 1 % false alarms, one level per class", *_cells(scores.hits_at_1_percent)),
        ("hits at 0.1 % false alarms, one level per class", *_cells(scores.hits_at_01_percent)),
        ("hits at 1 % false alarms, one level for all", *_cells(scores.pooled_hits_at_1_percent)),
        ("hits at 0.1 % false alarms, one level for all", *_cells(scores.pooled_hits_at_01_percent)),
    ]
    print_table(title, ("", "%", "95 % interval"), overall)
    rows = [
        (
            class_.name,
            score_text(class_.level),
            str(class_.pictures),
            str(class_.scenes),
            _cells(class_.hits)[0],
            *_cells(class_.false_alarms),
            _cells(class_.area)[0],
            _cells(class_.hits_at_1_percent)[0],
        )
        for class_ in scores.classes
    ]
    rates = ("hits %", "false alarms %", "95 % interval", "AUC %", "hits at 1 %")
    print_table("Per class", ("class", "level", "pictures", "scenes", *rates), rows)


def _cells(score: "Score | None") -> tuple[str, str]:
    return ("-", "-") if score is None else (f"{score.value:.1f}", f"{score.low:.1f} to {score.high:.1f}")
