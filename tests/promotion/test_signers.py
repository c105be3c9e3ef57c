"""Who may sign: the first user of a workspace begins its list; whoever is not on it hears so before the training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segmill.errors import InputError
from segmill.promotion.keys import make_signing_key, own_key_path, signing_key, trust, trusted_keys
from segmill.promotion.signers import ensure_signer, set_up


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("SEGMILL_SIGNING_KEY", "SEGMILL_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_workspace_without_keys_begins_with_the_users(tmp_path: Path) -> None:
    said = ensure_signer(tmp_path)
    assert said is not None and said.endswith("it is listed in trusted_keys now") and "its signature proves" in said
    assert [key.id for key in trusted_keys(tmp_path).keys] == [signing_key().public.id]
    assert ensure_signer(tmp_path) is None
    other = tmp_path / "other"
    other.mkdir()
    assert ensure_signer(other) == said, "one key for all workspaces"
    assert set_up(other).endswith("it is listed in trusted_keys already")


def test_whoever_is_not_listed_hears_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(tmp_path, make_signing_key().public)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    with pytest.raises(InputError, match=r"there is no signing key .*; make one with `segmill signing setup`"):
        ensure_signer(tmp_path)
    own = make_signing_key().public
    with pytest.raises(InputError, match=re.escape(f'`segmill signing trust "{own.line}" --name')):
        ensure_signer(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "trusted_keys").write_text("# nobody\n")
    with pytest.raises(InputError, match="is not listed"):
        ensure_signer(tmp_path / "empty")


def test_a_named_key_is_used_and_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_signing_key()
    own_key_path().rename(tmp_path / "ci.pem")
    monkeypatch.setenv("SEGMILL_SIGNING_KEY", str(tmp_path / "ci.pem"))
    said = ensure_signer(tmp_path)
    assert said is not None and "(SEGMILL_SIGNING_KEY)" in said and not own_key_path().exists()


def test_a_home_that_can_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"no signing key can be made at .* name one in SEGMILL_SIGNING_KEY"):
        ensure_signer(tmp_path)
