"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

EngineOption = Annotated[
    str,
    typer.Option(
        help="auto, onnxruntime or openvino (on the CPU), onnxruntime-cuda, or an engine from build-engine: tensorrt, "
        "tensorrt-rtx."
    ),
]
AnswerEngineOption = Annotated[
    str,
    typer.Option(
        help="auto, onnxruntime or openvino (on the CPU), onnxruntime-cuda, or an engine from build-engine: tensorrt, "
        "tensorrt-rtx; or triton://HOST:PORT/MODEL, a box that answers for this device."
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="auto, fp32, fp16 or int8, or bf16 with openvino; fp16, and int8 if the bundle brings none, need an "
        "engine from build-engine."
    ),
]
TrustOption = Annotated[
    str | None,
    typer.Option(
        help="Accept only a bank that this public key, or that in @FILE, has signed; a run follows the bank, which may "
        "then change."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum number of CPU threads; default: every core, or what a container may use."),
]
BundleOption = Annotated[Path | None, typer.Option(help="Bundle folder; default: the bundled model.")]
WaysOption = Annotated[int, typer.Option(min=1, max=255, help="Number of classes looked for at once (ways).")]
ClassesOption = Annotated[list[str] | None, typer.Option(help="Classes to use, as a,b or repeated; default: all.")]
ShotsOption = Annotated[int, typer.Option(min=1, help="Number of support pictures per class (shots).")]
SeedOption = Annotated[int, typer.Option(min=0, help="Random seed.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[
    Path, typer.Option(help="Data set folder: <class>/images/* and <class>/masks/*, or the benchmark's root.")
]
BenchmarkOption = Annotated[str, typer.Option(help="Layout of --data: folder, pascal or coco.")]
SplitsOption = Annotated[Path | None, typer.Option(help="Folder with the standard picture lists of pascal and coco.")]
FoldOption = Annotated[
    int | None, typer.Option(help="Fold, 0 to 3, whose classes are only tested on; default: all classes.")
]
