from __future__ import annotations

from pathlib import Path

import pytest

from segmill.user_cache import user_cache


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("speed") == tmp_path / "segmill" / "speed"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache("compiling") == Path.home() / ".cache" / "segmill" / "compiling"
