"""Signed folders: whatever is not as it was signed is refused in one sentence; what MLflow adds is allowed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from segmill.promotion import signing
from segmill.promotion.keys import PublicKey, SignatureError, SigningKey, TrustedKeys
from segmill.promotion.signing import MANIFEST, SIGNATURE, sign_folder, verify_folder

WEIGHTS = "artifacts/ensemble/members/a/weights.safetensors"


def new_key(name: str) -> SigningKey:
    private = Ed25519PrivateKey.generate()
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SigningKey(PublicKey(name, line), private)


ANNA, EVE = new_key("anna"), new_key("eve")
TRUSTED = TrustedKeys((ANNA.public,), "trusted_keys")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    for path, content in {
        "MLmodel": "flavors: {}",
        "served.py": "x = 1\n",
        WEIGHTS: "0123456789",
        "code/a.py": "",
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(content)
    sign_folder(made, ANNA, model="m")
    return made


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def resign_with_a_path(folder: Path, path: str) -> None:
    """Sign, with the trusted key, a manifest that names a file elsewhere."""
    facts = json.loads((folder / MANIFEST).read_text())
    facts["files"][path] = facts["files"]["MLmodel"]
    (folder / MANIFEST).write_text(json.dumps(facts))
    content = (folder / MANIFEST).read_bytes()
    signature = ANNA.sign(b"segmill model folder\n" + content)
    (folder / SIGNATURE).write_text(json.dumps({"key": ANNA.public.id, "signature": signature}))


def sign_later(folder: Path) -> None:
    """Leave the earlier signature beside a manifest that was made again, of changed files."""
    earlier = (folder / SIGNATURE).read_bytes()
    (folder / "served.py").write_text("x = 2\n")
    sign_folder(folder, EVE, model="m")
    (folder / SIGNATURE).write_bytes(earlier)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit": (lambda top: flip(top / WEIGHTS), "weights.safetensors was changed"),
    "line": (lambda top: (top / "served.py").open("a").write("import os\n"), "served.py was changed"),
    "added": (lambda top: (top / "code/b.py").write_text(""), "code/b.py was added"),
    "compiled": (lambda top: (top / "code/a.cpython-311.pyc").write_text(""), "a.cpython-311.pyc was added"),
    "empty folder": (lambda top: (top / "code/numpy").mkdir(), "empty folder code/numpy was added"),
    "removed": (lambda top: (top / "code/a.py").unlink(), "code/a.py is missing"),
    "renamed": (lambda top: (top / "served.py").rename(top / "serve.py"), "served.py is missing"),
    "swapped": (lambda top: swap(top / "served.py", top / WEIGHTS), "was changed"),
    "link": (lambda top: os.symlink("MLmodel", top / "more"), "more is a symbolic link"),
    "folder link": (lambda top: os.symlink("code", top / "more"), "more is a symbolic link"),
    "pipe": (lambda top: os.mkfifo(top / "pipe"), "pipe is a special file"),
    "no manifest": (lambda top: (top / MANIFEST).unlink(), "not signed: it has no segmill_manifest.json"),
    "no signature": (lambda top: (top / SIGNATURE).unlink(), "not signed: it has no segmill_manifest.sig"),
    "no JSON": (lambda top: (top / SIGNATURE).write_text("{"), "signature can't be read"),
    "foreign": (lambda top: sign_folder(top, EVE, model="m"), f"key {EVE.public.id}, which trusted_keys does not list"),
    "stale": (sign_later, "signature by anna .* does not fit"),
    "manifest": (lambda top: flip(top / MANIFEST), "signature by anna .* does not fit"),
    "outside": (lambda top: resign_with_a_path(top, "../MLmodel"), "outside the model's folder"),
    "absolute": (lambda top: resign_with_a_path(top, "/etc/passwd"), "outside the model's folder"),
    "other model": (lambda top: sign_folder(top, ANNA, model="other"), "a version of other, not of m"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_it_was_signed_is_refused(folder: Path, change: str) -> None:
    assert verify_folder(folder, TRUSTED, model="m").signer.name == "anna"
    how, says = CHANGES[change]
    how(folder)
    with pytest.raises(SignatureError, match=says):
        verify_folder(folder, TRUSTED, model="m")


def test_every_bit_of_the_signature_counts_and_so_does_a_space(folder: Path) -> None:
    signature = (folder / SIGNATURE).read_bytes()
    for bit in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        (folder / SIGNATURE).write_bytes(changed)
        with pytest.raises(SignatureError):
            verify_folder(folder, TRUSTED, model="m")
    for changed in (signature + b"\n", signature.replace(b", ", b",  ")):
        (folder / SIGNATURE).write_bytes(changed)
        with pytest.raises(SignatureError, match=r"segmill_manifest\.sig was changed"):
            verify_folder(folder, TRUSTED, model="m")


def test_a_link_in_the_place_of_a_file_with_the_same_bytes_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "served.py", tmp_path / "served.py")
    os.symlink(tmp_path / "served.py", folder / "served.py")
    with pytest.raises(SignatureError, match="symbolic link"):
        verify_folder(folder, TRUSTED, model="m")
    with pytest.raises(SignatureError, match="symbolic link"):
        signing.copy_plain(folder, tmp_path / "copy")


def test_what_mlflow_adds_and_the_passport_are_allowed_and_no_more_is(folder: Path, tmp_path: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: m\n")
    (folder / "passport").mkdir()
    for name in ("passport.json", "passport.html", "passport.sig"):
        (folder / "passport" / name).write_text("{}")
    before = verify_folder(folder, TRUSTED, model="m")
    assert set(before.files) == {"MLmodel", "served.py", WEIGHTS, "code/a.py"}
    signing.copy_plain(folder, tmp_path / "copy")
    assert verify_folder(tmp_path / "copy", TRUSTED) == before
    for more in ("code/registered_model_meta", "passport/passport.py"):
        (folder / more).write_text("model_name: m\n")
        with pytest.raises(SignatureError, match=f"{more} was added"):
            verify_folder(folder, TRUSTED, model="m")
        (folder / more).unlink()


def test_a_part_is_verified_alone(folder: Path) -> None:
    part = "artifacts/ensemble/members/a"
    for path in ("MLmodel", "served.py", "code/a.py"):
        (folder / path).unlink()
    (folder / "code").rmdir()
    verify_folder(folder, TRUSTED, model="m", part=part)
    flip(folder / WEIGHTS)
    with pytest.raises(SignatureError, match="was changed"):
        verify_folder(folder, TRUSTED, model="m", part=part)


def test_a_version_says_which_manifest_is_its_own() -> None:
    tag = signing.sign_version(ANNA, "m", "3", "a" * 64)
    assert signing.check_version(tag, TRUSTED, "m", "3") == "a" * 64
    other = json.loads(tag) | {"manifest_sha256": "b" * 64}
    for value, model, version in (
        (tag, "m", "4"), (tag, "n", "3"), (json.dumps(other), "m", "3"), ("no JSON", "m", "3"), (None, "m", "3"),
        (signing.sign_version(EVE, "m", "3", "a" * 64), "m", "3"),
    ):  # fmt: skip
        with pytest.raises(SignatureError):
            signing.check_version(value, TRUSTED, model, version)


def test_a_signature_of_one_kind_is_none_of_another(folder: Path) -> None:
    signature = ANNA.sign((folder / MANIFEST).read_bytes())  # of the bytes, for no purpose
    (folder / SIGNATURE).write_text(json.dumps({"key": ANNA.public.id, "signature": signature}))
    with pytest.raises(SignatureError, match="does not fit"):
        verify_folder(folder, TRUSTED, model="m")
