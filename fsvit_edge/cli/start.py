"""The program `fsvit-edge`: what must be so before the commands are imported, which takes 0.3 s."""

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback from the start on."""
    try:
        _fill_closed_streams()
        from fsvit_edge.cli.main import main as run_command

        run_command()
    except KeyboardInterrupt:
        sys.exit(130)


def _fill_closed_streams() -> None:
    """Take a closed standard stream for /dev/null, or the next file that is opened gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends
