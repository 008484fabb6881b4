"""The program `fsvit-edge`: what must be so before the commands are imported, which takes 0.3 s."""

import signal
import sys

from fsvit_edge.cli.streams import open_closed


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback from the start on."""
    try:
        open_closed()
        from fsvit_edge.cli.main import main as run_command

        run_command()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # What packages do at the end is not worth a traceback: Ray's end that is interrupted is a crash.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
