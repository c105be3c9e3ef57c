"""MLflow's registry: ensembles as versions that load anywhere, aliases that say which one serves."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import segmill
from segmill.ensembling.predict import read_ensemble
from segmill.files import replacing
from segmill.tracking import reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

CHAMPION = "champion"
CHALLENGER = "challenger"
DIGEST_TAG = "ensemble_sha256"
CLASSES_TAG = "classes"
# What the served code imports, directly or through the members.
REQUIREMENTS = (
    "mlflow",
    "numpy",
    "safetensors",
    "segmentation-models-pytorch",
    "timm",
    "torch",
    "torchvision",
)


@dataclass(frozen=True)
class Version:
    """A registered version: its number, the run it came from, its tags."""

    version: str
    run_id: str
    tags: dict[str, str]


def register(
    uri: str, run_id: str, ensemble_dir: Path | str, model_name: str, *, tags: Mapping[str, str] | None = None
) -> str:
    """Register an ensemble folder and return its version; the same folder content is registered once.

    The model holds the ensemble folder, the package's code and a signature; no file of it is a pickle, and no
    path of this machine is written into it.

    Args:
        uri: tracking and registry URI.
        run_id: the run whose artifacts the model is stored among.
        ensemble_dir: the ensemble folder.
        model_name: made where there is none.
        tags: facts about the version, besides its digest and classes.

    Raises:
        InputError: the folder is no ensemble.
        InfrastructureError: the registry does not answer.
    """
    ensemble_dir = Path(ensemble_dir).resolve()
    facts = read_ensemble(ensemble_dir)
    digest = ensemble_digest(ensemble_dir)
    found = find_version(uri, model_name, digest)
    if found:
        return found
    own_tags = {DIGEST_TAG: digest, CLASSES_TAG: json.dumps([entry["name"] for entry in facts["classes"]])}
    with reaching(uri) as client, tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        save_model(model_dir, ensemble_dir)
        # Named by content: a run that registers two ensembles must not write one over the other.
        stored_as = f"model-{digest[:12]}"
        client.log_artifacts(run_id, str(model_dir), stored_as)
        _make_sure_of(client, model_name)
        source = f"{client.get_run(run_id).info.artifact_uri}/{stored_as}"
        made = client.create_model_version(model_name, source, run_id, tags={**(tags or {}), **own_tags})
        return str(made.version)


def save_model(model_dir: Path, ensemble_dir: Path) -> None:
    """Write an ensemble as an MLflow model folder that loads anywhere."""
    import mlflow.pyfunc
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        str(model_dir),
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"ensemble": str(ensemble_dir)},
        code_paths=[str(Path(segmill.__file__).parent)],
        signature=_signature(),
        input_example=np.zeros((1, 32, 32, 3), np.uint8),
        pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in REQUIREMENTS],
    )
    # MLflow notes where code and ensemble came from on this machine; loading needs only what is inside.
    model = Model.load(str(model_dir))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(model_dir / "MLmodel"))


def ensemble_digest(ensemble_dir: Path) -> str:
    """Return the sha256 over every file's relative path and content, in order of path."""
    digest = hashlib.sha256()
    for path in sorted(path for path in ensemble_dir.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(ensemble_dir).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def find_version(uri: str, model_name: str, digest: str) -> str | None:
    """Return the newest version whose ensemble has this digest, or None."""
    with reaching(uri) as client:
        found = client.search_model_versions(f"name='{model_name}' and tags.`{DIGEST_TAG}`='{digest}'")
    return max((str(version.version) for version in found), key=int, default=None)


def aliased(uri: str, model_name: str, alias: str) -> Version | None:
    """Return the version that carries an alias, such as ``champion``; None where none does."""
    from mlflow.exceptions import MlflowException

    with reaching(uri) as client:
        try:
            found = client.get_model_version_by_alias(model_name, alias)
        except MlflowException as error:
            # MLflow reports a missing alias as INVALID_PARAMETER_VALUE, a missing model as RESOURCE_DOES_NOT_EXIST.
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                return None
            raise
    return Version(str(found.version), str(found.run_id), dict(found.tags))


def run_of(uri: str, model_name: str, version: str) -> str:
    """Return the id of the run that a version came from."""
    with reaching(uri) as client:
        return str(client.get_model_version(model_name, version).run_id)


def set_alias(uri: str, model_name: str, alias: str, version: str) -> None:
    """Move an alias to a version, from wherever it was."""
    with reaching(uri) as client:
        client.set_registered_model_alias(model_name, alias, version)


def drop_alias(uri: str, model_name: str, alias: str, version: str) -> None:
    """Take an alias from the version; nothing where another version carries it, or none does."""
    if (found := aliased(uri, model_name, alias)) and found.version == version:
        with reaching(uri) as client:
            client.delete_registered_model_alias(model_name, alias)


def describe_version(uri: str, model_name: str, version: str, markdown: str, tags: Mapping[str, str]) -> None:
    """Put text on the version's page, and facts to search by; an existing tag is replaced."""
    with reaching(uri) as client:
        client.update_model_version(model_name, version, description=markdown)
        for key, value in tags.items():
            client.set_model_version_tag(model_name, version, key, value)


def fetch_member(uri: str, model_name: str, version: str, member: str, to: Path) -> bool:
    """Copy the folder of one member of a registered version to ``to``; False where it has no such member.

    Raises InfrastructureError where the registry does not answer.
    """
    import mlflow.artifacts

    with reaching(uri) as client, tempfile.TemporaryDirectory() as folder:
        members = f"{client.get_model_version_download_uri(model_name, version)}/artifacts/ensemble/members"
        found = mlflow.artifacts.list_artifacts(artifact_uri=members, tracking_uri=uri)
        if member not in [Path(entry.path).name for entry in found]:
            return False
        fetched = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{members}/{member}", dst_path=folder, tracking_uri=uri
        )
        with replacing(to) as draft:
            shutil.copytree(fetched, draft)
    return True


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1))]),
        params=ParamSchema([ParamSpec(name, DataType.boolean, False) for name in ("probabilities", "aux")]),
    )
    # MLflow holds a tensor signature against a list and refuses it, though images of different sizes can only
    # come as a list. This key of the MLmodel file says that the model checks its input itself, which it does.
    signature._is_signature_from_type_hint = True
    return signature


def _make_sure_of(client: MlflowClient, model_name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
