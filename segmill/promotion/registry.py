"""MLflow's registry: ensembles as versions that load anywhere, aliases that say which one serves."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import segmill
from segmill.ensembling.predict import read_ensemble
from segmill.errors import InputError
from segmill.promotion import signing
from segmill.promotion.golden import Golden, write_golden
from segmill.promotion.keys import SignatureError, SigningKey
from segmill.promotion.signing import ensemble_digest
from segmill.promotion.versions import SIGNATURE_TAG, collected, files_are_there, put, signed_by, tag_version
from segmill.tracking import reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

CHAMPION = "champion"
CHALLENGER = "challenger"
DIGEST_TAG = "ensemble_sha256"
CLASSES_TAG = "classes"
CODE = "code.zip"  # of a version: this package
LOGGED_TAG = "logged_model"  # of a version: the id of MLflow's logged model that it is
VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: where MLflow's pages read which versions it is
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
    uri: str,
    run_id: str,
    ensemble_dir: Path | str,
    model_name: str,
    *,
    key: SigningKey,
    tags: Mapping[str, str] | None = None,
    golden: Golden = (),
    files: Mapping[str, bytes] | None = None,
) -> str:
    """Register an ensemble folder, signed, and return its version; the same folder content is registered once.

    The model holds the ensemble folder, the package's code, MLflow's signature of inputs and outputs, a bill of
    materials, golden predictions, and the signed manifest of all its files; no file of it is a pickle, and no path of
    this machine is written into it. A version whose registration was cut short before it was tagged as signed is tagged
    by the next call, and one whose files `segmill gc` deleted gets them again. More than eight parameters: each is a
    fact of its own about the version.

    Args:
        uri: tracking and registry URI.
        run_id: the run that the model came from: it is a logged model of this run.
        ensemble_dir: the ensemble folder.
        model_name: made where there is none.
        key: signs the folder and the version.
        tags: facts about the version, besides its digest and classes.
        golden: images HWC uint8 with the ids_HW uint8 that the ensemble predicts of them, for ``preflight``.
        files: more files of the version, by their names.

    Raises:
        InputError: the folder is no ensemble.
        SignatureError: the ensemble is registered already, as a version that is not signed.
        InfrastructureError: the registry does not answer.
    """
    from segmill.promotion import sbom  # 0.4 s, which who only asks the registry need not wait

    ensemble_dir = Path(ensemble_dir).resolve()
    facts = read_ensemble(ensemble_dir)
    digest = ensemble_digest(ensemble_dir)
    found = find_version(uri, model_name, digest)
    if found and collected(read_version(uri, model_name, found).tags) is None:
        _make_sure_it_is_signed(uri, model_name, found, digest, key)
        return found
    own_tags = {DIGEST_TAG: digest, CLASSES_TAG: json.dumps([entry["name"] for entry in facts["classes"]])}
    with reaching(uri) as client, tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        save_model(model_dir, ensemble_dir)
        write_golden(model_dir, golden)
        for name, content in (files or {}).items():
            (model_dir / name).write_bytes(content)
        (model_dir / sbom.FILE).write_text(sbom.bill_of_materials(model_name, digest, REQUIREMENTS))
        manifest_sha256 = signing.sign_folder(model_dir, key, model=model_name)
        if found:
            put(uri, model_name, found, model_dir)
            tag_version(uri, model_name, found, key, manifest_sha256)
            files_are_there(uri, model_name, found)
            return found
        logged = _logged_model(client, run_id, model_name, digest)
        client.log_model_artifacts(logged.model_id, str(model_dir))
        client.finalize_logged_model(logged.model_id, "READY")
        _make_sure_of(client, model_name)
        own_tags[LOGGED_TAG] = logged.model_id
        made = client.create_model_version(
            model_name, logged.artifact_location, run_id, tags={**(tags or {}), **own_tags}, model_id=logged.model_id
        )
        client.set_logged_model_tags(logged.model_id, {**(tags or {}), VERSIONS_TAG: _link(model_name, made.version)})
    tag_version(uri, model_name, str(made.version), key, manifest_sha256)
    return str(made.version)


def save_model(model_dir: Path, ensemble_dir: Path) -> None:
    """Write an ensemble as an MLflow model folder that loads anywhere."""
    import mlflow.pyfunc
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        str(model_dir),
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"ensemble": str(ensemble_dir)},
        signature=_signature(),
        input_example=np.zeros((1, 32, 32, 3), np.uint8),
        pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in REQUIREMENTS],
    )
    _write_code(model_dir / CODE)
    # MLflow notes where code and ensemble came from on this machine; loading needs only what is inside.
    model = Model.load(str(model_dir))
    flavor = model.flavors["python_function"]
    flavor[mlflow.pyfunc.CODE] = CODE
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(model_dir / "MLmodel"))


def _write_code(path: Path) -> None:
    """Write this package as one file that Python imports from: a store is asked once for each file of a version."""
    package = Path(segmill.__file__).parent
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                name = zipfile.ZipInfo(file.relative_to(package.parent).as_posix())  # with no time: bytes repeat
                archive.writestr(name, file.read_bytes(), zipfile.ZIP_DEFLATED)


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
            # A server with users refuses those who are no administrators to look for an alias of a missing model.
            if error.error_code == "PERMISSION_DENIED" and not _is_there(client, model_name):
                return None
            raise
    return Version(str(found.version), str(found.run_id), dict(found.tags))


def _is_there(client: MlflowClient, model_name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(model_name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def version_called(uri: str, model_name: str, called: str) -> str:
    """Return the number of the version that ``called`` names: its number itself, or an alias.

    Raises InputError where no version has that alias; whether there is one of that number is not asked.
    """
    if called.isdigit():
        return called
    if found := aliased(uri, model_name, called):
        return found.version
    raise InputError(f"{model_name} has no version called {called}", "`segmill status` shows what there is")


def read_version(uri: str, model_name: str, version: str) -> Version:
    """Return a version by its number; InputError where there is none."""
    from mlflow.exceptions import MlflowException

    with reaching(uri) as client:
        try:
            found = client.get_model_version(model_name, version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise InputError(
                    f"{model_name} has no version {version}", "MLflow's page of the model lists them"
                ) from None
            raise
    return Version(str(found.version), str(found.run_id), dict(found.tags))


def known_classes(uri: str, model_name: str, version: str) -> tuple[str, ...]:
    """Return the names of a version's classes, in the order of its ids. InputError where there is no such version."""
    return tuple(json.loads(read_version(uri, model_name, version).tags[CLASSES_TAG]))


def run_of(uri: str, model_name: str, version: str) -> str:
    """Return the id of the run that a version came from."""
    with reaching(uri) as client:
        return str(client.get_model_version(model_name, version).run_id)


def logged_model(uri: str, model_name: str, version: str) -> str | None:
    """Return the id of MLflow's logged model that a version is, which has its metrics; None for one of before."""
    with reaching(uri) as client:
        tag: str | None = client.get_model_version(model_name, version).tags.get(LOGGED_TAG)
    return tag


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


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1))]),
        params=ParamSchema(
            [
                *(ParamSpec(name, DataType.boolean, False) for name in ("probabilities", "aux", "anomaly")),
                ParamSpec("anomaly_value", DataType.string, ""),
            ]
        ),
    )
    # MLflow holds a tensor signature against a list and refuses it, though images of different sizes can only
    # come as a list. This key of the MLmodel file says that the model checks its input itself, which it does.
    signature._is_signature_from_type_hint = True
    return signature


def _logged_model(client: MlflowClient, run_id: str, model_name: str, digest: str) -> LoggedModel:
    """Return the run's logged model for an ensemble: what a registration that was cut short made, else a new one."""
    from mlflow.entities import LoggedModelOutput

    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"tags.`{DIGEST_TAG}` = '{digest}'")
    for logged in found:
        if logged.source_run_id == run_id and VERSIONS_TAG not in logged.tags:
            return logged
    name = re.sub(r"[/:.%\"']", "-", model_name)  # what MLflow refuses in it
    made = client.create_logged_model(experiment, name, run_id, tags={DIGEST_TAG: digest}, model_type="segmentation")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    return made


def _link(model_name: str, version: str) -> str:
    return json.dumps([{"name": model_name, "version": str(version)}])


def _make_sure_it_is_signed(uri: str, model_name: str, version: str, digest: str, key: SigningKey) -> None:
    """Tag a version whose folder we signed and whose registration ended before the tag; refuse one that nobody did."""
    with reaching(uri) as client:
        tags = client.get_model_version(model_name, version).tags
    if SIGNATURE_TAG in tags:
        return  # whether it is believed is asked when it is loaded
    manifest = signed_by(uri, model_name, version, key)
    if manifest is None or manifest.ensemble_sha256 != digest:
        raise SignatureError(
            f"version {version} of {model_name} holds this ensemble and is not signed; `segmill signing sign "
            f"{version}` signs it as it is now, if you know where it comes from"
        )
    tag_version(uri, model_name, version, key, manifest.sha256)


def _make_sure_of(client: MlflowClient, model_name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
