"""Keys: made once and for the user alone; a signature is believed only from a key that the workspace lists."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from segmill.errors import InputError
from segmill.promotion.keys import (
    PublicKey,
    SignatureError,
    make_signing_key,
    own_key_path,
    signing_key,
    trust,
    trusted_keys,
)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("SEGMILL_SIGNING_KEY", "SEGMILL_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)


def test_is_made_once_and_readable_by_its_owner_alone() -> None:
    with pytest.raises(InputError, match="segmill signing setup"):
        signing_key()
    made = make_signing_key()
    assert make_signing_key().public == signing_key().public == made.public
    assert stat.S_IMODE(own_key_path().stat().st_mode) == 0o600


def test_a_signature_is_believed_from_listed_keys_over_the_same_bytes(tmp_path: Path) -> None:
    key = make_signing_key()
    signature = key.sign(b"row 1")
    with pytest.raises(SignatureError, match="does not list"):
        trusted_keys(tmp_path).signer(b"row 1", key.public.id, signature)
    trust(tmp_path, PublicKey("anna", key.public.line))
    trust(tmp_path, key.public)
    assert (tmp_path / "trusted_keys").read_text() == f"{key.public.line} anna\n", "once"
    known = trusted_keys(tmp_path)
    assert known.signer(b"row 1", key.public.id, signature).name == "anna"
    for message, other in ((b"row 2", signature), (b"row 1", key.sign(b"row 2")), (b"row 1", "no base64")):
        with pytest.raises(SignatureError, match="was changed"):
            known.signer(message, key.public.id, other)


def test_the_environment_names_keys_where_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ed25519PrivateKey.generate()  # as ssh-keygen writes it
    (tmp_path / "ci").write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    line = made.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    (tmp_path / "ci.pub").write_text(f"{line} ci@builder\n")
    monkeypatch.setenv("SEGMILL_SIGNING_KEY", str(tmp_path / "ci"))
    monkeypatch.setenv("SEGMILL_TRUSTED_KEYS", str(tmp_path / "ci.pub"))
    key = signing_key()
    known = trusted_keys(None)
    assert known.signer(b"x", key.public.id, key.sign(b"x")).id == key.public.id
    assert trusted_keys(tmp_path) == known, "a workspace without a list"
    (tmp_path / "trusted_keys").write_text("# nobody yet\n")
    assert trusted_keys(tmp_path).keys == (), "its own list wins"
    monkeypatch.setenv("SEGMILL_SIGNING_KEY", make_signing_key() and own_key_path().read_text())
    assert signing_key().public.id == make_signing_key().public.id


@pytest.mark.parametrize("text", ["anna", "ssh-ed25519 AAAA anna", "ssh-rsa AAAA anna"])
def test_another_line_is_refused_with_its_number(tmp_path: Path, text: str) -> None:
    (tmp_path / "trusted_keys").write_text(f"# who may sign\n{text}\n")
    with pytest.raises(InputError, match="line 2 is no Ed25519 key"):
        trusted_keys(tmp_path)
    own_key_path().parent.mkdir(parents=True)
    own_key_path().write_text("no key")
    with pytest.raises(InputError, match="no Ed25519 private key"):
        signing_key()
