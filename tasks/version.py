"""Step version: pull the data, or add what is new as a version, and push it. A side effect, never cached."""

from __future__ import annotations

from segmill.data.versioning.versions import DataVersion, bring_data
from segmill.params import Params
from segmill.workspace import Workspace
from tasks.stage import recorded_md5


def version(workspace: Workspace, params: Params) -> DataVersion:
    """Make the labelled set and its recorded version agree.

    Raises:
        InputError: there is no data, or what no version can hold.
        InfrastructureError: the remote did not answer.
    """
    return bring_data(workspace.root, params.data.path, params.data.remote)


def packed_version(workspace: Workspace, params: Params) -> str:
    """Return the data version that the packed splits were made from; "" where they never were.

    That is what members come from, whatever was added to the set since.
    """
    return recorded_md5(workspace, "prepare", dependency=params.data.path)
