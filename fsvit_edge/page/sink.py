"""The page as a sink: `--sink http://127.0.0.1:8080`."""

import re
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from fsvit_edge.fewshot.bank_file import check_bank_path
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.events import Event
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.uri import is_host
from fsvit_edge.page.access import Access, is_loopback
from fsvit_edge.page.addresses import reachable_addresses
from fsvit_edge.page.app import create_app
from fsvit_edge.page.frame_hub import FrameHub
from fsvit_edge.page.server import PageServer
from fsvit_edge.page.state import PageState
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.storage import remove_leftovers

_DEFAULT_PORT = 8080
_SAVE_LIMIT_S = 0.5
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{8,128}")


class PageSink(Sink):
    """Serves the page as soon as it is created, at "http://ADDRESS:PORT" with an address of this machine.

    Port 0 is any free one. The classes are saved to `bank_path`. Without a token, a page on loopback needs none, and a
    page on another address gets a random one. `hosts` are more host names of this machine. Each of the `addresses` is
    one to open in a browser, with the token.

    Raises:
        InputError: The URI, the token or the path of the bank is invalid.
        FsvitEdgeError: The port is in use, or the address is not one of this machine.
    """

    def __init__(
        self, uri: str, model: LiveModel, bank_path: Path, token: str | None = None, hosts: Sequence[str] = ()
    ) -> None:
        host, port = _parse(uri)
        check_bank_path(bank_path)
        if token is None and not is_loopback(host):
            token = secrets.token_urlsafe(16)
        if token is not None and not _TOKEN.fullmatch(token):
            raise InputError(
                "--token must be 8 to 128 letters, digits or . _ ~ -. Without --token, a page that others can reach "
                "gets a random one."
            )
        with suppress(OSError):  # there may be no place for temporary files
            remove_leftovers(Path(tempfile.gettempdir()))  # uploads that a kill cut off
        shown = [f"[{one}]" if ":" in one else one for one in reachable_addresses(host)]
        self._hub = FrameHub()
        self._state = PageState(self._hub, model, bank_path)
        app = create_app(self._state)
        self._server = PageServer(Access(app, token, hosts), host, port, self._hub.close)
        query = "" if token is None else f"?token={token}"
        self.addresses = tuple(f"http://{one}:{self._server.port}/{query}" for one in shown)

    @property
    def address(self) -> str:
        """The first of the addresses."""
        return self.addresses[0]

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `Sink.write`."""
        self._hub.put(frame, prediction)

    def tell(self, event: Event) -> None:
        """See `Sink.tell`."""
        self._state.events.add(event, self._state.model.classes)

    def report(self, health: Health) -> None:
        """See `Sink.report`."""
        self._hub.health = health

    def _finish(self) -> None:
        self._server.close()
        self._state.wait_for_writing(_SAVE_LIMIT_S)
        if self._state.has_unsaved_changes:
            self.trouble = f"What changed on the page was not saved to {self._state.bank_path}, and is lost."


def _parse(uri: str) -> tuple[str, int]:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, _DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    if (
        not host
        or not is_host(host)
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or parts.username is not None
    ):
        raise InputError("Unsupported page address; give only http://ADDRESS:PORT, as in http://127.0.0.1:8080.")
    return host, port
