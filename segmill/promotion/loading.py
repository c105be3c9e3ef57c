"""``segmill.load``: a registered version in this process, from a private copy that was verified."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from segmill import tracking
from segmill.errors import InputError
from segmill.params import read_params
from segmill.promotion import registry
from segmill.promotion.keys import TRUSTED, trusted_keys
from segmill.promotion.versions import fetch_verified
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

URI = re.compile(r"models:/(?P<model>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def load(model_uri: str, *, tracking_uri: str | None = None, workspace: Path | str | None = None) -> PyFuncModel:
    """Load a registered version as ``mlflow.pyfunc.load_model`` does, but only where it is what a trusted key signed.

    MLflow runs a model's own code when it loads it, from wherever it is stored; here a private copy is verified first,
    and that copy is loaded. It predicts with the ``segmill`` of this process.

    Args:
        model_uri: ``models:/NAME@champion`` or ``models:/NAME/3``.
        tracking_uri: of MLflow. None: MLFLOW_TRACKING_URI, else the workspace's, else what MLflow itself is set to.
        workspace: whose ``trusted_keys`` are believed. None: the current folder's where it has such a file, else
            those of SEGMILL_TRUSTED_KEYS or of the user's configuration.

    Returns:
        The pyfunc model: ``predict`` takes B x H x W x C uint8, or a list of images, and returns class ids.

    Raises:
        InputError: the URI is none of these forms, or there is no such version.
        SignatureError: it is not signed, not by a trusted key, or not what was signed.
        InfrastructureError: MLflow does not answer.
    """
    import mlflow.pyfunc

    asked = URI.fullmatch(model_uri)
    if asked is None:
        raise InputError(f"{model_uri!r} names no registered version", "write models:/NAME@champion or models:/NAME/3")
    root = Path(workspace) if workspace is not None else Path.cwd() if Path(TRUSTED).is_file() else None
    uri, model = tracking_uri or _address(root), asked["model"]
    version = registry.version_called(uri, model, asked["version"] or asked["alias"])
    top = tempfile.mkdtemp(prefix="segmill-version-")
    try:
        loaded = mlflow.pyfunc.load_model(str(fetch_verified(uri, model, version, trusted_keys(root), to=Path(top))))
    except BaseException:
        shutil.rmtree(top, ignore_errors=True)
        raise
    weakref.finalize(loaded, shutil.rmtree, top, ignore_errors=True)  # its code may read files until then
    return loaded


def _address(root: Path | None) -> str:
    import mlflow

    if root is not None and Workspace(root).params.is_file():
        return tracking.address(root.resolve(), read_params(Workspace(root).params).mlflow.tracking_uri)
    return str(mlflow.get_tracking_uri())
