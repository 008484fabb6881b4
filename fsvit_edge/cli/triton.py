"""`fsvit-edge triton`: a bundle and a folder of banks in, a model repository of Triton Inference Server out."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.options import EngineOption, PrecisionOption, ThreadsOption
from fsvit_edge.cli.terminal import say


def triton(
    banks: Annotated[Path, typer.Option(help="Folder of the banks, each NAME.safetensors; they may change later.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the model: the server's model repository, which may have others."
        ),
    ],
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder; default: the bundled model.")] = None,
    instances: Annotated[
        int, typer.Option(min=1, help="Number of frames that are answered at once, on each GPU if there is one.")
    ] = 1,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Let a box with Triton answer the frames of many cameras.

    This writes a model for Triton Inference Server. Devices use it with run and label, and --engine triton://HOST:PORT/MODEL.
    """
    from fsvit_edge.remote.box import FORMAT_VERSION, Settings
    from fsvit_edge.remote.repository import check_banks, model_name, write_model
    from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
    from fsvit_edge.runtime.engines.choose import check_options

    check_options(engine, precision)
    manifest = Bundle.load(bundle or DEFAULT_BUNDLE).manifest
    usable = check_banks(banks, manifest, say)
    settings = Settings(
        FORMAT_VERSION,
        None if bundle is None else os.path.abspath(bundle),
        os.path.abspath(banks),
        engine,
        precision,
        threads,
        instances,
    )
    name = model_name(manifest)
    folder = write_model(output, name, settings)
    print(f"Wrote {folder}; banks: {', '.join(usable) or 'none yet'}")
    say(f"Start the server with: tritonserver --model-repository {output}")
    say(f"On a device: fsvit-edge run SOURCE --bank NAME --engine triton://HOST:8001/{name}")
