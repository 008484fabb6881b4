"""`fsvit-edge doctor`: what is installed, what is missing, and what needs it."""

import json

import typer

from fsvit_edge.cli.options import BundleOption, JsonOption


def doctor(
    bundle: BundleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: what is missing, and what needs it."""
    from fsvit_edge.inspect.packages import Diagnosis, import_problem, package_findings

    if import_problem("numpy"):  # which the other checks need
        diagnosis = Diagnosis(tuple(package_findings()))
    else:
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
