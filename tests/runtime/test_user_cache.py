from pathlib import Path

import pytest

from fsvit_edge.runtime.errors import EnvironmentLacksError
from fsvit_edge.runtime.user_cache import user_cache


def test_the_cache_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("engines") == tmp_path / "fsvit-edge" / "engines"


@pytest.mark.parametrize("stated", [None, "", "relative/path"])
def test_without_a_word_or_with_a_relative_one_it_lies_in_the_home_folder(
    stated: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if stated is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", stated)
    assert user_cache("kernels") == tmp_path / ".cache" / "fsvit-edge" / "kernels"


def test_without_a_home_folder_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(EnvironmentLacksError, match="export XDG_CACHE_HOME=/path"):
        user_cache("engines")
