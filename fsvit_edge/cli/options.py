"""Options that several commands share."""

from typing import Annotated

import typer

EngineOption = Annotated[
    str,
    typer.Option(
        help="auto, onnxruntime (on the CPU), onnxruntime-cuda, or an engine from build-engine: tensorrt, tensorrt-rtx."
    ),
]
PrecisionOption = Annotated[
    str, typer.Option(help="auto, fp32, fp16 or int8; fp16 and int8 need an engine from build-engine.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads to compute with; default: one per core.")]
