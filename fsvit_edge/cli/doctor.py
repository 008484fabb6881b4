"""`fsvit-edge doctor`: what is installed, what is missing, and what needs it."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to check; default: the bundled model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and a bundle, and list what is missing and what needs it."""
    import json

    from fsvit_edge.inspect.diagnosis import diagnose

    diagnosis = diagnose(bundle)
    if as_json:
        print(json.dumps(diagnosis.to_dict()))
    else:
        width = max(len(finding.subject) for finding in diagnosis.findings)
        for finding in diagnosis.findings:
            print(f"{'ok     ' if finding.ok else 'missing'}  {finding.subject:<{width}}  {finding.text}")
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)
