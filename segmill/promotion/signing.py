"""Signed model folders: a manifest with the sha256 of every file, and an Ed25519 signature over it.

Signed with `cryptography` and not with OpenSSF's model-signing, because: its 1.1.1 passes a changed model when a
verification config is used a second time; it brings sigstore and the clients of its network services, which nothing
here asks; and the same keys sign the rows of the ledger, which are no files. The manifest is a file of the model's
folder like MLmodel, so it moves with the model through every artifact store.

A signature states who registered a version, never that it is good: that is the gate's word, in the ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path, PurePosixPath
from typing import Any

from segmill.promotion.keys import NotSigned, PublicKey, SignatureError, SigningKey, TrustedKeys

MANIFEST, SIGNATURE = "segmill_manifest.json", "segmill_manifest.sig"
# What comes into a version's folder after it is signed, and no code of it reads: its name and number, which MLflow adds
# to a download, and its passport, which has a signature of its own.
ADDED_LATER = (
    "registered_model_meta", "passport/passport.json", "passport/passport.html", "passport/passport.sig"
)  # fmt: skip
ENSEMBLE = "artifacts/ensemble"  # where the ensemble's folder is in a model's
FORMAT = 1
# What a signature is for is part of what is signed: none can be passed off as another kind's.
_OF_FOLDER, _OF_VERSION = b"segmill model folder\n", b"segmill model version\n"


@dataclass(frozen=True)
class Manifest:
    """What was signed: ``files`` is path to (sha256, bytes), ``sha256`` that of the manifest file itself."""

    model: str
    ensemble_sha256: str
    segmill: str
    made: str
    files: dict[str, tuple[str, int]]
    sha256: str
    signer: PublicKey


def sign_folder(folder: Path, key: SigningKey, *, model: str) -> str:
    """Write manifest and signature into a model's folder, over those that are there; return the manifest's sha256.

    Args:
        folder: holds MLmodel; plain files and folders only.
        key: whose signature it is.
        model: the registered model's name.

    Raises:
        SignatureError: the folder holds a link or a special file.
    """
    files = {path: {"sha256": _sha256(folder / path), "bytes": size} for path, size in sorted(_plain(folder).items())}
    facts = {
        "format": FORMAT,
        "model": model,
        "ensemble_sha256": ensemble_digest(folder / ENSEMBLE),
        "segmill": installed_version("segmill"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
    }
    content = json.dumps(facts, indent=1).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SIGNATURE).write_text(_signed(key, _OF_FOLDER + content))
    return hashlib.sha256(content).hexdigest()


def verify_folder(folder: Path, trusted: TrustedKeys, *, model: str | None = None, part: str = "") -> Manifest:
    """Return the manifest of a folder that holds what was signed, to the byte, and nothing else.

    Files that MLflow adds when it downloads are allowed by name. The folder must be one that nobody else can write to:
    see ``versions.fetch_verified``.

    Args:
        folder: holds MLmodel and the manifest.
        trusted: whose signatures are believed.
        model: the registered model that it must be of; None accepts any.
        part: a folder of the model, of which alone the files are there.

    Raises:
        SignatureError: says in one sentence what is not as it was signed.
    """
    manifest = read_manifest(folder, trusted, model=model)
    there = _plain(folder)
    listed = {path: file for path, file in manifest.files.items() if not part or path.startswith(f"{part}/")}
    if missing := sorted(listed.keys() - there.keys()):
        raise SignatureError(f"{_some(missing)} is missing, though it was signed")
    if added := sorted(there.keys() - listed.keys()):
        raise SignatureError(f"{_some(added)} was added after it was signed")
    if strange := sorted(
        _folders(folder) - {str(up) for path in (*there, *ADDED_LATER) for up in PurePosixPath(path).parents}
    ):
        raise SignatureError(f"the empty folder {_some(strange)} was added after it was signed")
    for path, (sha256, size) in listed.items():
        if there[path] != size or _sha256(folder / path) != sha256:
            raise SignatureError(f"{path} was changed after it was signed")
    return manifest


def read_manifest(folder: Path, trusted: TrustedKeys, *, model: str | None = None) -> Manifest:
    """Return the manifest in a folder, whose signature is by a trusted key; the files it names are not looked at.

    Raises SignatureError where there is none, or none that is believed, or it is another ``model``'s.
    """
    for name in (MANIFEST, SIGNATURE):
        if not os.path.lexists(folder / name):
            raise NotSigned(f"it is not signed: it has no {name}")
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise SignatureError(f"{name} is no plain file")
    content = (folder / MANIFEST).read_bytes()
    signature = (folder / SIGNATURE).read_bytes()
    signer = _signer(signature, _OF_FOLDER + content, trusted)
    if json.dumps(json.loads(signature)).encode() != signature:
        raise SignatureError(f"{SIGNATURE} was changed after it was signed")
    facts = json.loads(content)
    if facts["format"] != FORMAT:
        raise SignatureError(f"its manifest has format {facts['format']}, which this segmill does not read; upgrade it")
    if model is not None and facts["model"] != model:
        raise SignatureError(f"it was signed as a version of {facts['model']}, not of {model}")
    files = {_inside(path): (one["sha256"], one["bytes"]) for path, one in facts["files"].items()}
    return Manifest(
        model=facts["model"],
        ensemble_sha256=facts["ensemble_sha256"],
        segmill=facts["segmill"],
        made=facts["made"],
        files=files,
        sha256=hashlib.sha256(content).hexdigest(),
        signer=signer,
    )


def sign_version(key: SigningKey, model: str, version: str, manifest_sha256: str) -> str:
    """Return the value of a version's tag that says, signed, which manifest is this version's.

    A folder's own signature can't say that: with it alone, the whole folder of another version could take its place.
    """
    content = _version_content(model, version, manifest_sha256)
    return json.dumps({"manifest_sha256": manifest_sha256, **json.loads(_signed(key, _OF_VERSION + content))})


def check_version(tag: str | None, trusted: TrustedKeys, model: str, version: str) -> str:
    """Return the sha256 of the manifest that belongs to a version, from its tag of ``sign_version``.

    Raises SignatureError where there is none that is believed.
    """
    if tag is None:
        raise NotSigned("it is not signed")
    try:
        sha256 = str(json.loads(tag)["manifest_sha256"])
    except (ValueError, KeyError, TypeError):
        raise SignatureError("its tag with the signature can't be read") from None
    _signer(tag.encode(), _OF_VERSION + _version_content(model, version, sha256), trusted)
    return sha256


def ensemble_digest(ensemble_dir: Path) -> str:
    """Return the sha256 over every file's relative path and content, in order of path."""
    digest = hashlib.sha256()
    for path in sorted(path for path in ensemble_dir.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(ensemble_dir).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def copy_plain(source: Path, to: Path) -> None:
    """Copy a file or a folder of plain files; never through a link.

    Raises:
        SignatureError: there is a link or a special file.
        FileNotFoundError: ``source`` is not there.
    """
    _refuse_special(source.lstat().st_mode, source.name)
    if not source.is_dir():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to, follow_symlinks=False)
        return
    to.mkdir(parents=True, exist_ok=True)
    for entry in os.scandir(source):
        copy_plain(Path(entry.path), to / entry.name)


def _version_content(model: str, version: str, manifest_sha256: str) -> bytes:
    return json.dumps([model, version, manifest_sha256]).encode()


def _signed(key: SigningKey, message: bytes) -> str:
    return json.dumps({"key": key.public.id, "signature": key.sign(message)})


def _signer(signature: bytes, message: bytes, trusted: TrustedKeys) -> PublicKey:
    try:
        facts = json.loads(signature)
        key_id, value = str(facts["key"]), str(facts["signature"])
    except (ValueError, KeyError, TypeError):
        raise SignatureError("its signature can't be read") from None
    return trusted.signer(message, key_id, value)


def _plain(folder: Path) -> dict[str, int]:
    """Return path and bytes of every file that a manifest lists; SignatureError for a link or a special file."""
    found: dict[str, int] = {}
    for top, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(top, name)
            facts, relative = path.lstat(), path.relative_to(folder).as_posix()
            _refuse_special(facts.st_mode, relative)
            if stat.S_ISREG(facts.st_mode) and relative not in (MANIFEST, SIGNATURE, *ADDED_LATER):
                found[relative] = facts.st_size
    return found


def _folders(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()}


def _refuse_special(mode: int, path: str) -> None:
    if stat.S_ISLNK(mode):
        raise SignatureError(f"{path} is a symbolic link, and a model holds none")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise SignatureError(f"{path} is a special file, and a model holds none")


def _inside(path: Any) -> str:
    """Return a path of the manifest; SignatureError where it leads out of the model's folder."""
    if not isinstance(path, str) or path != PurePosixPath(path).as_posix() or path.startswith("/") or ".." in Path(
        path
    ).parts:  # fmt: skip
        raise SignatureError(f"its manifest names {path}, which is outside the model's folder")
    return path


def _some(paths: Iterable[str]) -> str:
    first, *more = paths
    return f"{first} (and {len(more)} more)" if more else first


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
