"""Step version: pull the data, or add what is new as a version, and push it. A side effect, never cached."""

from __future__ import annotations

from segmill.data.versioning.versions import DataVersion, bring_data
from segmill.params import Params
from segmill.workspace import Workspace


def version(workspace: Workspace, params: Params) -> DataVersion:
    """Make the labelled set and its recorded version agree.

    Raises:
        InputError: there is no data, or what no version can hold.
        InfrastructureError: the remote did not answer.
    """
    return bring_data(workspace.root, params.data.path, params.data.remote)
