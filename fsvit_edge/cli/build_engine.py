"""`fsvit-edge build-engine`: a bundle becomes FP16 or INT8 engines for the GPU or CPU that runs them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsvit_edge.cli.options import JsonOption
from fsvit_edge.cli.terminal import print_table, require, say, show_progress
from fsvit_edge.runtime.errors import InputError

if TYPE_CHECKING:
    from fsvit_edge.export.build import BuildResult


def build_engine(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle; default: the bundled model.")] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="auto, onnxruntime, tensorrt or tensorrt-rtx; auto prefers TensorRT (with a GPU), then TensorRT-RTX."
        ),
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8; default: fp16 with TensorRT, int8 with ONNX Runtime.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Same as --precision int8.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Same as --precision fp16.")] = False,
    calib: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SOURCE",
            help="For INT8: a .json from fsvit-edge calib, or pictures, a video or a camera; default: the bundle's.",
        ),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Nodes or operators to keep in FP32; repeatable.")
    ] = None,
    quantize: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Linear layers to quantize; repeatable; default: all."),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(metavar="MIB", min=1, help="Maximum scratch memory per layer; default: no limit."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File for TensorRT's kernel timings; default: one per version and GPU."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SM,...",
            help="GPUs to build for with TensorRT-RTX; default: this machine's, or sm86,sm89,sm120 if it has none.",
        ),
    ] = None,
    max_ways: Annotated[
        int | None, typer.Option(min=1, max=255, help="Maximum number of classes at once; default: 10.")
    ] = None,
    max_shots: Annotated[
        int | None, typer.Option(min=1, max=255, help="Maximum number of pictures per class; default: 5.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare with the FP32 graphs before anything is written.")] = True,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Data set (<class>/images and <class>/masks) on which to measure mIoU and exact ratio (share of "
            "episodes with every presence answer correct).",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", min=0, help="With --data: fail if exact ratio or mIoU drops by more."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild even if up to date.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build FP16 or INT8 engines for a GPU or this CPU.

    For GPUs they are TensorRT plans, for ONNX Runtime on a CPU quantized graphs.
    """
    from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE

    precisions = {precision, "int8" if int8 else None, "fp16" if fp16 else None} - {None}
    if len(precisions) > 1:
        raise InputError(f"Build one precision at a time, got {', '.join(sorted(map(str, precisions)))}.")
    require("fsvit-edge build-engine", ("onnx",), "build")
    if data is not None:
        require("fsvit-edge build-engine --data", ("torch", "lightning", "torchmetrics"), "train")
        if not data.is_dir():
            raise InputError(f"The data folder {data} does not exist or is not a folder.")
    from fsvit_edge.export.build import build_engines
    from fsvit_edge.export.job import BuildOptions

    with show_progress("Build") as progress:
        options = BuildOptions(
            engine=engine,
            precision=next(iter(precisions), None),
            calib=calib,
            keep_fp32=tuple(keep_fp32 or ()),
            quantize=tuple(quantize or ()),
            workspace_mib=workspace,
            timing_cache=timing_cache,
            targets=tuple(name.strip().lower() for part in target or () for name in part.split(",")),
            max_ways=max_ways,
            max_shots=max_shots,
            verify=verify,
            data=data,
            max_drop=max_drop,
            force=force,
        )
        result = build_engines(bundle or DEFAULT_BUNDLE, options, progress, say)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_result(result)
    for note in (*result.notes, *result.advice, *_bank_note(result)):
        say(note)
    say(f"Next: {_next_command(result, bundle)}")


def _print_result(result: "BuildResult") -> None:
    rows = []
    for graph, one in result.engines.items():
        record, time_ms, fp32_ms = one.record, one.record.latency_ms, one.record.fp32_latency_ms
        size, int8 = f"{record.size_bytes / 1e6:.1f} MB", f"{record.int8_gemms} of {record.gemms}"
        built = "up to date" if result.up_to_date else f"{record.build_s:.1f} s"
        fused = "-" if one.layers is None else str(one.layers.attention)
        run = "-" if time_ms is None else f"{time_ms:.2f} ms"
        speedup = "-" if time_ms is None or fp32_ms is None else f"{fp32_ms / time_ms:.2f} x"
        rows.append((graph, record.precision, size, built, int8, fused, run, speedup))
    header = ("graph", "precision", "size", "build", "INT8 matmuls", "fused attention", "run", "speedup")
    print_table(f"{result.backend.title}: {result.bundle.name}", header, rows)
    own_ms, times = result.latency_ms.get(result.precision), result.latency_ms
    for other in ("fp16", "fp32"):
        if own_ms is not None and other in times and other != result.precision:
            print(f"Encoder and head together: {own_ms:.1f} ms; in {other.upper()}: {times[other]:.1f} ms.")
    if (found := result.agreement) is not None:
        lines = [(name, f"{row['max_error']:.1e}", f"{row['cosine']:.6f}") for name, row in found.outputs.items()]
        title = f"Compared with FP32 on {found.pictures} pictures ({found.source}), run by {found.computed_by}"
        print_table(title, ("output", "max error", "cosine"), lines)
        print(
            f"{found.presence_flips} of {found.pairs} answers change; {100 * found.label_agreement:.2f} % of the "
            "pixels keep their label."
        )
        if not result.runs_here and result.precision != "fp32":
            print(
                "The CPU emulates FP16 in FP32, so overflow in FP16 cannot show here; on these pictures no value of "
                "the FP32 graphs is too large for FP16."
            )
    if result.scores:
        scores = [
            (row.precision, f"{row.exact_ratio:.1f}", "-" if row.miou is None else f"{row.miou:.1f}")
            for row in result.scores
        ]
        print_table("On the data set", ("precision", "exact ratio %", "mIoU %"), scores)
    for one in result.engines.values():
        print(f"{'Up to date:' if result.up_to_date else 'Wrote'} {one.path}")


def _bank_note(result: "BuildResult") -> Iterator[str]:
    """Yield a note if `run` now chooses another precision, but for the bank in this folder, which it loads."""
    from fsvit_edge.fewshot.bank import SupportBank
    from fsvit_edge.fewshot.predictor import FewShotModel
    from fsvit_edge.live.run import DEFAULT_BANK
    from fsvit_edge.runtime.errors import ArtifactError

    if not result.runs_here or not DEFAULT_BANK.is_file():
        return
    try:
        made_by = SupportBank.load(DEFAULT_BANK).identity
    except ArtifactError:  # damaged: `run` says so
        return
    with FewShotModel.load(result.bundle) as model:
        ours = model.bank.identity
    if made_by.encoder_sha256 == ours.encoder_sha256 and made_by.precision != ours.precision:
        yield (
            f"Note: {DEFAULT_BANK} was enrolled with {made_by.precision}, so only with another bank run now uses "
            f"{ours.precision}; for this one, enroll its classes again."
        )


def _next_command(result: "BuildResult", bundle: Path | None) -> str:
    option = "" if bundle is None else f" --bundle {bundle}"
    if not result.runs_here:
        return f"fsvit-edge inspect {result.engines['encoder'].path}"
    if result.up_to_date:
        return f"fsvit-edge bench{option}; rebuild with: fsvit-edge build-engine --force"
    return f"fsvit-edge bench{option}"
