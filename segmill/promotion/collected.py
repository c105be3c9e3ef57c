"""What MLflow stores of a model's versions and runs: listed, and deleted but for the record of what was decided.

A version whose files are deleted stays in the registry with its tags, passport and signed manifest, so that its number
is never given to another ensemble and a decision against it stays known. Its ensemble may be registered again.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from segmill.errors import InfrastructureError
from segmill.promotion import passport, points, sbom, signing
from segmill.promotion.registry import LOGGED_TAG
from segmill.promotion.versions import COLLECTED_TAG, DELETION_BEGUN
from segmill.tracking import reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RECORD = (
    f"{passport.FOLDER}/{passport.JSON}",
    f"{passport.FOLDER}/{passport.SIGNATURE}",
    signing.MANIFEST,
    signing.SIGNATURE,
    sbom.FILE,
)
_PAGE = 1000


@dataclass(frozen=True)
class VersionFacts:
    """A version as the registry lists it.

    Attributes:
        source: where its files are.
        made_s: seconds since 1970.
        gone: its files were deleted.
        going: that was begun and not finished.
    """

    version: str
    run_id: str
    source: str
    made_s: float
    tags: Mapping[str, str]
    gone: bool = False
    going: bool = False


@dataclass(frozen=True)
class PastRun:
    """A run of MLflow.

    Attributes:
        parent: the run it is shown under.
        version: of the model that it registered or judged, "" for none.
        ended_s: seconds since 1970; None while it runs.
        artifacts: where its files are.
        gone: its files were deleted.
    """

    run_id: str
    name: str
    parent: str | None
    version: str
    ended_s: float | None
    artifacts: str = ""
    gone: bool = False


@dataclass(frozen=True)
class ArtifactFile:
    """A file of a version or run. ``path``: from the top of its folder; ``inode``: None in object storage."""

    path: str
    size_bytes: int
    inode: tuple[int, int] | None
    links: int


def versions_of(uri: str, model: str) -> tuple[list[VersionFacts], dict[str, str]]:
    """Return all versions of a model, the first one first, and alias -> version; none where there is no such model.

    Raises InfrastructureError where MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with reaching(uri) as client:
        try:
            aliases = {name: str(version) for name, version in client.get_registered_model(model).aliases.items()}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return [], {}
            raise
        found = [
            VersionFacts(
                version=str(one.version),
                run_id=str(one.run_id),
                source=client.get_model_version_download_uri(model, one.version).rstrip("/"),
                made_s=one.creation_timestamp / 1000,
                tags=dict(one.tags),
                gone=COLLECTED_TAG in one.tags and not one.tags[COLLECTED_TAG].startswith(DELETION_BEGUN),
                going=one.tags.get(COLLECTED_TAG, "").startswith(DELETION_BEGUN),
            )
            for one in _every(lambda token: client.search_model_versions(f"name='{model}'", _PAGE, page_token=token))
        ]
    return sorted(found, key=lambda one: int(one.version)), aliases


def used_elsewhere(uri: str, model: str, version: VersionFacts) -> str:
    """Return which other model has a version with the same files, as "NAME/VERSION"; "" where none has."""
    with reaching(uri) as client:
        for source in {version.source, f"models:/{model}/{version.version}", *_as_logged(version)}:
            for one in client.search_model_versions(f"source_path='{source}'"):
                if one.name != model:
                    return f"{one.name}/{one.version}"
    return ""


def files_of(uri: str, source: str, *, record: bool = False) -> list[ArtifactFile]:
    """Return the files of a version or run that are deleted with it; with ``record`` those that are left, too."""
    with reaching(uri):
        found = list(_walk(uri, source))
    return found if record else [one for one in found if one.path not in RECORD]


def begin_deletion(uri: str, model: str, version: str) -> None:
    """Note that the files of a version are going to be deleted: from then on nobody is given them."""
    with reaching(uri) as client:
        client.set_model_version_tag(model, version, COLLECTED_TAG, f"{DELETION_BEGUN}{_now()}")


def delete_version_files(uri: str, model: str, version: VersionFacts) -> None:
    """Delete the files of a version but its ``RECORD``. Called again after an interruption it deletes what is left.

    Raises InfrastructureError where files are there after it: the version counts as one whose deletion was interrupted.
    """
    with reaching(uri) as client:
        repository = _repository(uri, version.source)
        for entry in repository.list_artifacts():
            inside = any(path.startswith(f"{entry.path}/") for path in RECORD)
            for one in repository.list_artifacts(entry.path) if inside else [entry]:
                if one.path not in RECORD:
                    repository.delete_artifacts(one.path)
                    points.at("in deletion")
        _refuse_left(
            f"version {version.version} of {model}",
            [one for one in _walk(uri, version.source) if one.path not in RECORD],
        )
        client.set_model_version_tag(model, version.version, COLLECTED_TAG, _now())


def runs_before(uri: str, experiment: str, before_s: float) -> list[PastRun]:
    """Return the runs of an experiment that began before ``before_s``, seconds since 1970; none without it."""
    with reaching(uri) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        asked = f"attributes.start_time < {int(before_s * 1000)}"
        runs = _every(
            lambda token: client.search_runs([found.experiment_id], asked, max_results=_PAGE, page_token=token)
        )
        return [_run(one) for one in runs]


def delete_runs(uri: str, runs: Collection[PastRun], registered: Collection[str]) -> None:
    """Delete runs with their files. Of a run that registered a version the files alone go: its page leads there.

    In a database that is reached directly the rows are deleted; a server keeps them as deleted until its own
    `mlflow gc`.

    Args:
        registered: ids of the runs that any version came from.

    Raises:
        InfrastructureError: files are there after their deletion.
    """
    with reaching(uri) as client:
        for run in runs:
            if run.artifacts and not run.gone:
                repository = _repository(uri, run.artifacts)
                for entry in repository.list_artifacts():
                    repository.delete_artifacts(entry.path)
                _refuse_left(f"run {run.name}", repository.list_artifacts())
            if run.run_id in registered:
                client.set_tag(run.run_id, COLLECTED_TAG, _now())
            else:
                client.delete_run(run.run_id)
                _erase(client, uri, run.run_id)


def _refuse_left(what: str, left: Collection[object]) -> None:
    """Raise where something is left: of a bucket whose key may not delete, MLflow says nothing."""
    if left:
        raise InfrastructureError(
            f"{len(left)} files of {what} are still there after MLflow deleted them; give the key by which it reaches "
            "its artifacts the right to delete (S3: s3:DeleteObject)"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _erase(client: MlflowClient, uri: str, run_id: str) -> None:
    """Delete the rows of a deleted run, as `mlflow gc` does, which would also delete what people put aside."""
    if urlsplit(uri).scheme in ("http", "https", "databricks"):
        return
    store = client._tracking_client.store
    if hasattr(store, "_hard_delete_run"):
        store._hard_delete_run(run_id)


def _run(one: Run) -> PastRun:
    tags = one.data.tags
    return PastRun(
        run_id=one.info.run_id,
        name=one.info.run_name or one.info.run_id,
        parent=tags.get("mlflow.parentRunId"),
        version=tags.get("version", ""),
        ended_s=None if one.info.end_time is None else one.info.end_time / 1000,
        artifacts=one.info.artifact_uri,
        gone=COLLECTED_TAG in tags,
    )


def _every(page: Any) -> Iterator[Any]:
    """Yield what all pages of an answer hold."""
    token = None
    while True:
        found = page(token)
        yield from found
        token = found.token
        if not token:
            return


def _as_logged(version: VersionFacts) -> list[str]:
    logged = version.tags.get(LOGGED_TAG)
    return [f"models:/{logged}"] if logged else []


def _repository(uri: str, source: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(source, tracking_uri=uri)


def _walk(uri: str, source: str) -> Iterator[ArtifactFile]:
    if urlsplit(source).scheme in ("", "file"):
        from mlflow.utils.file_utils import local_file_uri_to_path

        top = Path(local_file_uri_to_path(source))
        for parent, _, names in os.walk(top):
            for name in names:
                path = Path(parent, name)
                found = path.lstat()
                yield ArtifactFile(
                    path.relative_to(top).as_posix(), found.st_size, (found.st_dev, found.st_ino), found.st_nlink
                )
        return
    repository, folders = _repository(uri, source), [None]
    while folders:
        for entry in repository.list_artifacts(folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                yield ArtifactFile(entry.path, int(entry.file_size or 0), None, 1)
