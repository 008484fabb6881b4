"""`fsvit-edge eval`: how good a model is on few-shot episodes or on scenes, and whether it is good enough."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsvit_edge.cli.options import PrecisionOption, ThreadsOption

if TYPE_CHECKING:
    from fsvit_edge.learn.datasets import FewShotData
    from fsvit_edge.learn.evaluation import EvaluationResult
    from fsvit_edge.learn.metrics import Score
    from fsvit_edge.learn.scenes import SceneResult
    from fsvit_edge.runtime.engines.choose import EngineChoice
    from fsvit_edge.runtime.predictor import FewShotModel


class Protocol(str, Enum):
    """What a model is asked."""

    EPISODES = "episodes"
    SCENES = "scenes"


_PROTOCOL_OF = {
    **dict.fromkeys(("way", "episodes", "pictures", "max_pictures"), Protocol.EPISODES),
    **dict.fromkeys(("min_miou", "min_er", "max_drop", "drop"), Protocol.EPISODES),
    **dict.fromkeys(("per_class", "max_false_alarms", "min_hits"), Protocol.SCENES),
}
"""Of the options that belong to one."""


class Outlines(str, Enum):
    """Of what outlines are made."""

    PLAIN = "plain"
    SHARP = "sharp"


class SupportKind(str, Enum):
    """What is known of a support."""

    MASKS = "masks"
    NAMES = "names"


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="The data set's folder; of one's own: <class>/{images,masks}/<stem>.*")],
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the small model shipped.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint, by torch, in place of a bundle.")] = None,
    benchmark: Annotated[str, typer.Option(help="pascal, coco or folder.")] = "folder",
    splits: Annotated[Path | None, typer.Option(help="Folder of the lists of pictures of pascal and coco.")] = None,
    fold: Annotated[int | None, typer.Option(help="0 to 3: the classes held out; default: all classes.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option(help="Classes of a folder, a,b or repeated; default: all.")
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="The paper's episodes, or scenes: all classes at once on all other pictures.")
    ] = Protocol.EPISODES,
    way: Annotated[int, typer.Option(min=1, max=255, help="Classes of an episode.")] = 1,
    shot: Annotated[int, typer.Option(min=1, help="Support pictures of each class.")] = 1,
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 1000,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each class to judge as scenes; default: all.")
    ] = None,
    supports: Annotated[SupportKind, typer.Option(help="Enroll with masks, or by names alone.")] = SupportKind.MASKS,
    outlines: Annotated[
        Outlines | None,
        typer.Option(help="plain is CST alone, sharp adds objectness; default: sharp where the model can."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, onnxruntime, onnxruntime-cuda, tensorrt, tensorrt-rtx; torch for --checkpoint.")
    ] = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON to this file.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Draw the first episodes into this folder.")] = None,
    max_pictures: Annotated[int, typer.Option(min=1, help="How many of them.")] = 20,
    min_miou: Annotated[float | None, typer.Option(help="Fail below this mIoU, in percent.")] = None,
    min_er: Annotated[float | None, typer.Option(help="Fail below this exact ratio, in percent.")] = None,
    max_false_alarms: Annotated[
        float | None, typer.Option(help="Fail where more scenes without a class are taken for it, in percent.")
    ] = None,
    min_hits: Annotated[
        float | None, typer.Option(help="Fail where a class is found in fewer of its scenes, in percent.")
    ] = None,
    max_drop: Annotated[
        Path | None, typer.Option(help="Fail where mIoU or exact ratio fall behind this earlier --output.")
    ] = None,
    drop: Annotated[float | None, typer.Option(min=0, help="Points that they may fall behind by; default: 1.")] = None,
) -> None:
    """Measure exact ratio and mIoU over episodes, or hits and false alarms on scenes; a limit that fails has code 5."""
    from fsvit_edge.cli.terminal import advise, progress
    from fsvit_edge.learn.episode_pictures import draw_answer
    from fsvit_edge.learn.evaluation import Answer, EvaluationOptions
    from fsvit_edge.learn.evaluation import evaluate as run_episodes
    from fsvit_edge.learn.gates import DEFAULT_DROP_POINTS, Gates, Reference, SceneGates
    from fsvit_edge.learn.scenes import SceneOptions, evaluate_scenes
    from fsvit_edge.runtime.errors import InputError
    from fsvit_edge.runtime.pictures import write_image

    _check_protocol(context, protocol)
    if drop is not None and max_drop is None:
        raise InputError("--drop says how far to fall behind a reference; name it with --max-drop REFERENCE.json.")
    if output is not None and output.is_dir():
        raise InputError(f"{output} is a folder; give the name of a file to write.")
    masks = supports is SupportKind.MASKS
    source = {
        "source": str(checkpoint or bundle or "the model shipped"),
        "data": {"benchmark": benchmark, "folder": str(data), "fold": fold},
    }
    if protocol is Protocol.SCENES:
        selection = _open_data(benchmark, data, splits, fold, classes, masks)
        with progress("Evaluate") as step:
            step("load the model")
            with _open_model(bundle, checkpoint, engine, precision, threads) as model:
                _set_outlines(model, outlines)
                scenes = evaluate_scenes(model, selection, SceneOptions(shot, masks, per_class), step)
        text = _put_out({**scenes.to_dict(), **source}, model.choice, output)
        if as_json:
            print(text, end="")
        else:
            _print_scenes(scenes, model.choice)
        SceneGates(max_false_alarms, min_hits).check(scenes)
        if max_false_alarms is None:
            advise("Next: hold later models to it with: fsvit-edge eval --protocol scenes --max-false-alarms PERCENT")
        return
    options = EvaluationOptions(way, shot, episodes, masks)
    reference = None if max_drop is None else Reference.load(max_drop)
    gates = Gates(min_miou, min_er, reference, DEFAULT_DROP_POINTS if drop is None else drop)
    selection = _open_data(benchmark, data, splits, fold, classes, masks)

    def draw(answer: Answer) -> None:
        if pictures is not None and answer.number < max_pictures:
            name = f"episode-{answer.number:0{len(str(episodes - 1))}}.png"
            write_image(pictures / name, draw_answer(selection, answer, masks))

    with progress("Evaluate") as step:
        step("load the model")
        with _open_model(bundle, checkpoint, engine, precision, threads) as model:
            _set_outlines(model, outlines)
            if reference is not None:
                reference.check_settings({**vars(options), "outlines": model.outlines})
            result = run_episodes(model, selection, options, step, draw)

    text = _put_out({**result.to_dict(), **source}, model.choice, output)
    if as_json:
        print(text, end="")
    else:
        _print_result(result, model.choice)
    gates.check(result)
    if output is not None and max_drop is None:
        advise(f"Next: keep {output} and hold later models to it with: fsvit-edge eval --max-drop {output}")
    elif checkpoint is not None:
        advise(f"Next: fsvit-edge export --checkpoint {checkpoint}")
    elif pictures is None:
        advise("Next: see the answers with --pictures DIR")


def _check_protocol(context: typer.Context, protocol: Protocol) -> None:
    from fsvit_edge.runtime.errors import InputError

    for name, its in _PROTOCOL_OF.items():
        given = context.get_parameter_source(name)
        if its is not protocol and given is not None and given.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} belongs to --protocol {its.value}; leave it out of --protocol {protocol.value}."
            )


def _put_out(result: dict[str, Any], choice: "EngineChoice", output: Path | None) -> str:
    """Return a result as JSON, and write it where it is asked for."""
    import json

    from fsvit_edge.runtime.storage import atomic_write

    document = {
        **result,
        "engine": choice.engine,
        "precision": choice.precision,
        "computed_by": choice.description,
        "versions": _versions(),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if output is not None:
        atomic_write(output, text.encode())
    return text


def _open_data(
    benchmark: str, root: Path, splits: Path | None, fold: int | None, classes: list[str] | None, masks: bool
) -> "FewShotData":
    from fsvit_edge.learn.datasets import FolderFewShot, open_data
    from fsvit_edge.runtime.errors import InputError

    if not root.is_dir():
        raise InputError(f"The data folder {root} does not exist or is not a folder.")
    if not classes:
        return open_data(benchmark, root, splits, fold, "test", masks)
    if benchmark != "folder" or fold is not None:
        raise InputError("--classes chooses among the classes of a folder; leave out --benchmark and --fold.")
    names = [name.strip() for part in classes for name in part.split(",")]
    return FolderFewShot(root, names, masks)


def _open_model(
    bundle: Path | None, checkpoint: Path | None, engine: str, precision: str, threads: int | None
) -> "FewShotModel":
    from fsvit_edge.cli.terminal import open_model, require
    from fsvit_edge.runtime.errors import InputError

    if checkpoint is None:
        if engine == "torch":
            raise InputError("--engine torch computes a checkpoint, not a bundle; name it with --checkpoint FILE.")
        return open_model(bundle, engine, precision, threads)
    if bundle is not None:
        raise InputError("Evaluate either a bundle or a checkpoint: give --bundle or --checkpoint, not both.")
    export = f"make one with: fsvit-edge export --checkpoint {checkpoint}"
    if engine not in ("auto", "torch"):
        raise InputError(f"--engine {engine} computes a bundle; {export}.")
    if precision not in ("auto", "fp32"):
        raise InputError(f"--precision {precision} is for the engines of a bundle, torch computes in fp32; {export}.")
    require("fsvit-edge eval --checkpoint", ("torch", "timm"), "export")
    from fsvit_edge.model.torch_engine import open_checkpoint

    return open_checkpoint(checkpoint, threads)


def _set_outlines(model: "FewShotModel", outlines: Outlines | None) -> None:
    if outlines is not None:
        model.outlines = outlines.value


def _print_result(result: "EvaluationResult", choice: "EngineChoice") -> None:
    from fsvit_edge.cli.terminal import print_table

    options, scores, model = result.options, result.scores, result.model
    kind = "supports with masks" if options.masks else "supports by name"
    title = (
        f"{model.name} at {model.image_size} px, {choice.description}: {options.way}-way {options.shot}-shot, {kind}, "
        f"{options.episodes} episodes in {result.elapsed_s:.0f} s, {result.outlines} outlines"
    )
    overall = [
        ("0/1 exact ratio", *_cells(scores.exact_ratio)),
        ("mIoU", *_cells(scores.miou)),
    ]
    print_table(title, ("", "%", "95 % interval"), overall)
    if result.segmented < options.episodes:
        print(f"mIoU is of {result.segmented} episodes; the other queries have no mask.\n")
    rows = [
        (one.name, str(one.asked), str(one.shown), *_cells(one.presence), *_cells(one.iou)) for one in scores.classes
    ]
    header = ("class", "asked", "shown", "presence right %", "95 % interval", "IoU %", "95 % interval")
    print_table("By class", header, rows)


def _print_scenes(result: "SceneResult", choice: "EngineChoice") -> None:
    from fsvit_edge.cli.terminal import print_table

    options, scores, model = result.options, result.scores, result.model
    kind = "with masks" if options.masks else "by name"
    supports = "1 support" if options.shot == 1 else f"{options.shot} supports"
    title = (
        f"{model.name} at {model.image_size} px, {choice.description}: {supports} a class {kind}, "
        f"{len(scores.classes)} classes, {result.pictures} pictures in {result.elapsed_s:.0f} s"
    )
    overall = [
        ("hits at the levels in use", *_cells(scores.hits)),
        ("false alarms at the levels in use", *_cells(scores.false_alarms)),
        ("area under the curve", *_cells(scores.area)),
        ("hits at 1 % false alarms, a level for each class", *_cells(scores.hits_at_1_percent)),
        ("hits at 0.1 % false alarms, a level for each class", *_cells(scores.hits_at_01_percent)),
        ("hits at 1 % false alarms, one level for all", *_cells(scores.pooled_hits_at_1_percent)),
        ("hits at 0.1 % false alarms, one level for all", *_cells(scores.pooled_hits_at_01_percent)),
    ]
    print_table(title, ("", "%", "95 % interval"), overall)
    rows = [
        (
            one.name,
            f"{one.level:.2f}",
            str(one.pictures),
            str(one.scenes),
            _cells(one.hits)[0],
            *_cells(one.false_alarms),
            _cells(one.area)[0],
            _cells(one.hits_at_1_percent)[0],
        )
        for one in scores.classes
    ]
    rates = ("hits %", "false alarms %", "95 % interval", "area %", "hits at 1 %")
    print_table("By class", ("class", "level", "pictures", "scenes", *rates), rows)


def _cells(score: "Score | None") -> tuple[str, str]:
    return ("-", "-") if score is None else (f"{score.value:.1f}", f"{score.low:.1f} to {score.high:.1f}")


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import distributions

    wanted = ("fsvit-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "torch")
    found = {name: one.version for one in distributions() if (name := one.metadata["Name"]) in wanted}
    return {"python": platform.python_version(), **dict(sorted(found.items()))}
