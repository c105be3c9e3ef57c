"""Registered versions, fetched: into a private folder, verified there, and only that copy is ever loaded.

MLflow runs a model's own code when it loads it, and may load it from the store itself, so a check of the store would
come too late or be of other bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from segmill.errors import InfrastructureError, InputError, SegmillError
from segmill.files import replacing
from segmill.promotion import signing
from segmill.promotion.keys import NotSigned, SignatureError, SigningKey, TrustedKeys, UnknownSigner
from segmill.tracking import reaching

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SIGNATURE_TAG = "version_signature"
COLLECTED_TAG = "files_deleted"  # of a version or a run: when, UTC, ISO 8601
DELETION_BEGUN = "begun "  # before that while they are being deleted
ANOTHERS = "its folder is signed, but as another version's"
MEMBERS = f"{signing.ENSEMBLE}/members"


def fetch_verified(uri: str, model: str, version: str, trusted: TrustedKeys, *, to: Path) -> Path:
    """Copy a version into ``to``, verify the copy, and return its folder, which holds MLmodel.

    Args:
        uri: of MLflow.
        model: the registered model's name.
        version: its number.
        trusted: whose signatures are believed; see ``keys.trusted_keys``.
        to: a new or empty folder, which is made readable by this user alone. Nothing but the copy may be loaded.

    Raises:
        SignatureError: it is not signed, not by a trusted key, or not what was signed.
        InputError: there is no such version.
        SegmillError: its files are not in the store.
        InfrastructureError: MLflow does not answer.
    """
    manifest_sha256 = check_signed(uri, model, version, trusted)
    with _refusing(model, version):
        folder = _fetch(uri, model, version, "", to)
        if signing.verify_folder(folder, trusted, model=model).sha256 != manifest_sha256:
            raise SignatureError(ANOTHERS)
    return folder


@contextmanager
def verified_copy(uri: str, model: str, version: str, trusted: TrustedKeys) -> Iterator[Path]:
    """Yield ``fetch_verified``'s folder, a temporary one that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="segmill-version-") as folder:
        yield fetch_verified(uri, model, version, trusted, to=Path(folder))


def fetch_member(uri: str, model: str, version: str, member: str, trusted: TrustedKeys, *, to: Path) -> bool:
    """Copy the folder of one member of a version to ``to``, verified; False where it has no such member.

    Raises:
        SignatureError, InputError, SegmillError, InfrastructureError: as for ``fetch_verified``.
    """
    part = f"{MEMBERS}/{member}"
    manifest_sha256 = check_signed(uri, model, version, trusted)
    with tempfile.TemporaryDirectory(prefix="segmill-member-") as name, _refusing(model, version):
        folder = Path(name)
        for file in (signing.MANIFEST, signing.SIGNATURE):
            _fetch(uri, model, version, file, folder)
        manifest = signing.read_manifest(folder, trusted, model=model)
        if manifest.sha256 != manifest_sha256:
            raise SignatureError(ANOTHERS)
        if not any(path.startswith(f"{part}/") for path in manifest.files):
            return False
        _fetch(uri, model, version, part, folder)
        signing.verify_folder(folder, trusted, model=model, part=part)
        with replacing(to) as draft:
            shutil.copytree(folder / part, draft)
    return True


def model_bytes(uri: str, model: str, version: str, trusted: TrustedKeys) -> int:
    """Return how many bytes the version's ensemble has, by its signed manifest. Errors as for ``fetch_verified``."""
    with tempfile.TemporaryDirectory(prefix="segmill-manifest-") as name, _refusing(model, version):
        for file in (signing.MANIFEST, signing.SIGNATURE):
            _fetch(uri, model, version, file, Path(name))
        files = signing.read_manifest(Path(name), trusted, model=model).files
    return sum(size for path, (_, size) in files.items() if path.startswith(f"{signing.ENSEMBLE}/"))


def collected(tags: Mapping[str, str]) -> str | None:
    """Return when `segmill gc` deleted a version's files, or began to, UTC, ISO 8601; None while they are there."""
    when = tags.get(COLLECTED_TAG)
    return None if when is None else when.removeprefix(DELETION_BEGUN)


def files_are_there(uri: str, model: str, version: str) -> None:
    """Note that the files of a version are in the store, again or still."""
    with reaching(uri) as client:
        client.delete_model_version_tag(model, version, COLLECTED_TAG)


def serves_after_all(uri: str, model: str, version: str) -> None:
    """Take back that the files of a version are going to be deleted: it serves by the ledger, and none is gone.

    It was made the champion by somebody who had loaded it before `segmill gc` tagged it, and gc was then interrupted.
    """
    from mlflow.exceptions import MlflowException

    with reaching(uri) as client:
        try:
            tags = client.get_model_version(model, version).tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        if tags.get(COLLECTED_TAG, "").startswith(DELETION_BEGUN):
            client.delete_model_version_tag(model, version, COLLECTED_TAG)


def sign_registered(
    uri: str, model: str, version: str, key: SigningKey, trusted: TrustedKeys
) -> tuple[signing.Manifest, bool]:
    """Sign a version that nobody signed as it is in the store now; return its manifest, and whether it was signed now.

    The signature says of the version's origin what the person knows who signs, and no more. A version that a trusted
    key signed keeps that signature.

    Raises:
        InputError: there is no such version.
        SignatureError: it was signed and changed after that, or holds a link or a special file.
        InfrastructureError: MLflow does not answer.
    """
    tags = _version(uri, model, version).tags
    with tempfile.TemporaryDirectory(prefix="segmill-version-") as name, _refusing(model, version):
        folder = _fetch(uri, model, version, "", Path(name))
        with suppress(NotSigned, UnknownSigner):
            manifest = signing.verify_folder(folder, trusted, model=model)
            if signing.check_version(tags.get(SIGNATURE_TAG), trusted, model, version) != manifest.sha256:
                raise SignatureError(ANOTHERS)
            return manifest, False
        signing.sign_folder(folder, key, model=model)
        manifest = signing.read_manifest(folder, TrustedKeys((key.public,), "your key"))
        _put(uri, _source(uri, model, version), folder)
    tag_version(uri, model, version, key, manifest.sha256)
    return manifest, True


def tag_version(uri: str, model: str, version: str, key: SigningKey, manifest_sha256: str) -> None:
    """Say on a version's page, signed, which manifest is its own."""
    with reaching(uri) as client:
        tag = signing.sign_version(key, model, version, manifest_sha256)
        client.set_model_version_tag(model, version, SIGNATURE_TAG, tag)


def put(uri: str, model: str, version: str, folder: Path) -> None:
    """Store all files of ``folder`` as those of a version, over what is there."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    source = _source(uri, model, version)
    with reaching(uri):
        get_artifact_repository(source, tracking_uri=uri).log_artifacts(os.fspath(folder))


def check_signed(uri: str, model: str, version: str, trusted: TrustedKeys) -> str:
    """Return the sha256 of the manifest that a version says, signed by a trusted key, is its own.

    Its files are not looked at. Errors as for ``fetch_verified``.
    """
    tags = _version(uri, model, version).tags
    with _refusing(model, version):
        return signing.check_version(tags.get(SIGNATURE_TAG), trusted, model, version)


def signed_by(uri: str, model: str, version: str, key: SigningKey) -> signing.Manifest | None:
    """Return the manifest in a version's folder where this key signed it; the other files are not looked at."""
    own = TrustedKeys((key.public,), "your key")
    with tempfile.TemporaryDirectory() as name:
        try:
            for file in (signing.MANIFEST, signing.SIGNATURE):
                _fetch(uri, model, version, file, Path(name))
            return signing.read_manifest(Path(name), own, model=model)
        except InfrastructureError:
            raise
        except SegmillError:
            return None


@contextmanager
def _refusing(model: str, version: str) -> Iterator[None]:
    """Say of which version it is that a signature is wrong, and what helps."""
    try:
        yield
    except SignatureError as fault:
        if isinstance(fault, NotSigned):
            fix = f"`segmill signing sign {version}` signs it as it is now, if you know where it comes from"
        elif isinstance(fault, UnknownSigner):
            fix = "`segmill signing trust` lists a key, if you know whose it is"
        else:
            fix = "retrain, or serve another version: somebody wrote to the store"
        raise type(fault)(f"version {version} of {model} is not used: {fault}; {fix}") from None


@contextmanager
def _naming(model: str, version: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(f"{model} has no version {version}", "`segmill status` shows what there is") from None
        raise


def _version(uri: str, model: str, version: str) -> ModelVersion:
    """Return what the registry has of a version; InputError where there is none, or its files were deleted."""
    with reaching(uri) as client, _naming(model, version):
        found = client.get_model_version(model, version)
    if when := collected(found.tags):
        raise InputError(
            f"the files of version {version} of {model} were deleted on {when[:10]} by `segmill gc`",
            "choose a version that `segmill gc --dry-run` keeps, or retrain with its settings, which stores it again",
        )
    return found


def _source(uri: str, model: str, version: str) -> str:
    with reaching(uri) as client, _naming(model, version):
        return str(client.get_model_version_download_uri(model, version)).rstrip("/")


def _fetch(uri: str, model: str, version: str, part: str, to: Path) -> Path:
    """Copy a version, or a file or folder of it, to the same place below ``to``, which nobody else may read.

    Compiled code is left out: a plain ``mlflow.pyfunc.load_model`` writes it into a store that is a folder, and nothing
    here runs it.
    """
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    to.chmod(0o700)
    source = _source(uri, model, version)
    gone = f"version {version} of {model} can't be fetched: {part or 'its files'} can't be read at {source}"
    folder = (
        _copied(source, part, to, gone)
        if urlsplit(source).scheme in ("", "file")
        else _downloaded(uri, source, part, to, gone)
    )
    for compiled in [path for path in folder.rglob("__pycache__") if path.is_dir()]:
        shutil.rmtree(compiled)
    return folder


def _copied(source: str, part: str, to: Path, gone: str) -> Path:
    from mlflow.utils.file_utils import local_file_uri_to_path

    try:
        signing.copy_plain(Path(local_file_uri_to_path(source), part), to / part)
    except OSError as error:
        raise SegmillError(f"{gone} ({error.strerror})") from error
    return to


def _downloaded(uri: str, source: str, part: str, to: Path, gone: str) -> Path:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    place = to / part
    with reaching(uri):
        try:
            fetched = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source}/{part}" if part else source, dst_path=str(place.parent if part else to),
                tracking_uri=uri,
            )  # fmt: skip
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise SegmillError(f"{gone} ({error.message.splitlines()[0]})") from error
            raise
    return to if part else Path(fetched)


def _put(uri: str, source: str, folder: Path) -> None:
    """Write manifest and signature of ``folder`` beside the MLmodel at ``source``."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with reaching(uri):
        repository = get_artifact_repository(source, tracking_uri=uri)
        for name in (signing.MANIFEST, signing.SIGNATURE):
            repository.log_artifact(os.fspath(folder / name))
