"""Options that several commands share."""

from typing import Annotated

import typer

EngineOption = Annotated[
    str,
    typer.Option(
        help="auto, onnxruntime (on the CPU), onnxruntime-cuda, or what build-engine made: tensorrt, tensorrt-rtx."
    ),
]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32, fp16 or int8; build-engine makes the last two.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of the engine; default: every core.")]
