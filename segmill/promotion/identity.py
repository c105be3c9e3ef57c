"""Who acts, as the environment says: git's user, the CI job, the system's user and host. A claim, proven by nothing."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from segmill.data.versioning.repository import git_user
from segmill.passwords import without_password

# The variable that a CI system sets, and those that say which job it is and who began it.
# docs.github.com/actions/reference/variables-reference, docs.gitlab.com/ci/variables/predefined_variables,
# www.jenkins.io/doc/book/pipeline/jenkinsfile/#using-environment-variables (BUILD_USER_ID: its plugin build-user-vars)
_CI = {
    "GitHub Actions": ("GITHUB_ACTIONS", "GITHUB_ACTOR", "GITHUB_REPOSITORY", "GITHUB_WORKFLOW", "GITHUB_RUN_ID"),
    "GitLab CI": ("GITLAB_CI", "GITLAB_USER_LOGIN", "CI_JOB_URL"),
    "Jenkins": ("JENKINS_URL", "BUILD_USER_ID", "BUILD_URL"),
}


def actor(root: Path | None = None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return who acts: ``git`` (name and mail), ``user``, ``host`` and ``ci``, each where it is known.

    Whoever can run a command can set all of them: only a row's signature shows which key was used.

    Args:
        root: the workspace whose git configuration names the user; None asks the configuration of the user alone.
        environment: variables of the process.
    """
    said = {"git": git_user(root), "user": _user(), "host": socket.gethostname(), "ci": _job(environment)}
    return {key: value for key, value in said.items() if value}


def _job(environment: Mapping[str, str]) -> str:
    for system, (mark, *names) in _CI.items():
        if environment.get(mark):
            said = [f"{name}={without_password(environment[name])}" for name in names if environment.get(name)]
            return " ".join([system, *said])
    return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())
