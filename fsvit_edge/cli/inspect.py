"""`fsvit-edge inspect`: what a file is, and whether it runs here."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fsvit_edge.cli.options import JsonOption, TrustOption


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="Engine, sidecar of an engine, ONNX graph, bundle, bank, its signature or public key, calibration or "
            "checkpoint."
        ),
    ],
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a file is, if it is intact, and if it runs here. Nothing in it is executed."""
    from fsvit_edge.fewshot.bank_signature import read_trusted_key
    from fsvit_edge.inspect.inspection import inspect_file
    from fsvit_edge.runtime.given_text import given_line

    found = inspect_file(file, None if trust is None else read_trusted_key(given_line(trust)))
    if found.kind == "calibration":
        from fsvit_edge.calib.calibration import Calibration

        Calibration.load(file)
    if as_json:
        print(json.dumps({**found.to_dict(), "exit_code": found.exit_code}, ensure_ascii=False))
    else:
        print(f"{found.path}: {found.kind}")
        width = max(map(len, found.facts), default=0)
        for name, value in found.facts.items():
            print(f"  {name:<{width}}  {value}")
        if found.runs_here is not None:
            but = ", but:" if found.problems else "."
            print(f"It runs here{but}" if found.runs_here else "It does not run here:")
        for problem in found.problems:
            print(f"- {problem}")
    if found.exit_code:
        raise typer.Exit(found.exit_code)
