"""Where what can be made again is kept for the user: engines of the shipped model, timings, compiled kernels."""

import os
from pathlib import Path

from fsvit_edge.runtime.errors import EnvironmentLacksError


def user_cache(kind: str) -> Path:
    """Return `$XDG_CACHE_HOME/fsvit-edge/<kind>`, by default below `~/.cache`; it need not exist.

    Raises:
        EnvironmentLacksError: There is no home folder.
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(stated) if os.path.isabs(stated) else Path.home() / ".cache"
    except RuntimeError as error:
        raise EnvironmentLacksError(
            "There is no home folder for a cache; name a folder with: export XDG_CACHE_HOME=/path."
        ) from error
    return base / "fsvit-edge" / kind
