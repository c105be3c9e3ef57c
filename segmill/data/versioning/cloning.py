"""A clone of a git repository that runs work in: made, brought up to date, and known by its own git configuration."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from segmill.data.versioning.repository import COMMITS_RUNS, config_value, git, git_head, identity
from segmill.errors import InfrastructureError, InputError
from segmill.passwords import without_password, without_passwords

SOURCE, BRANCH = "segmill.source", "segmill.branch"  # keys of the clone's own git configuration
USER_VARIABLE, PASSWORD_VARIABLE = "SEGMILL_GIT_USER", "SEGMILL_GIT_PASSWORD"
_HELPER = (
    f'!f() {{ test "$1" = get && echo "username=${{{USER_VARIABLE}:-git}}" && '
    f'echo "password=${PASSWORD_VARIABLE}"; }}; f'
)
_SPLIT = re.compile(r"(?s)(?P<url>(?:\w+://[^/]*/|[^/:]+:(?!//)|(?![^/]*:)).*)@(?P<ref>[^@:\s]+)")
_password: list[str] = []  # taken out of the environment, which every process that is started would inherit


@dataclass(frozen=True)
class GitSource:
    """A git repository to work for. ``branch``: where results are pushed; None is the one that its HEAD names."""

    url: str
    branch: str | None = None

    def __str__(self) -> str:
        return f"{without_password(self.url)}{f'@{self.branch}' if self.branch else ''}"


def parse_source(text: str) -> GitSource:
    """Read ``GIT_URL[@BRANCH]``; a folder of this machine becomes absolute.

    Raises InputError where the address holds a password, or a user who may be a token.
    """
    found = None if Path(text).is_dir() else _SPLIT.fullmatch(text)
    url, branch = (found["url"], found["ref"]) if found else (text, None)
    if re.match(r"https?://[^/]*@|\w+://[^/@]*:[^/]*@", url):
        raise InputError(
            f"the address of the source {without_password(url)} holds a user or password, which git would write down",
            f"leave it out, and set {USER_VARIABLE} and {PASSWORD_VARIABLE}",
        )
    local = "://" not in url and (":" not in url.partition("/")[0])
    return GitSource(str(Path(url).resolve()) if local else url, branch)


def source_of(root: Path) -> GitSource | None:
    """Return what the clone at ``root`` works for; None where it is no clone that ``begin_clone`` made."""
    url = config_value(root, SOURCE)
    return GitSource(url, config_value(root, BRANCH)) if url else None


def refuse_other_folder(source: GitSource, folder: Path) -> None:
    """Raise InputError where ``folder`` is neither empty nor a clone of ``source``, or is one of another branch."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or (".git" not in names and names - {".segmill"}):
        raise InputError(f"{folder} holds something else already", "name an empty or a new folder with --workspace")
    if ".git" not in names or (not names - {".git", ".segmill"} and git_head(folder) is None):
        return
    known = source_of(folder)
    if known is None:
        raise InputError(
            f"{folder} is a git repository of its own", "run without --source there, or name an empty folder"
        )
    if known.url != source.url or source.branch not in (None, known.branch):
        raise InputError(f"{folder} is a clone of {known}, not of {source}", "name another folder with --workspace")


def fetch_clone(source: GitSource, folder: Path) -> str:
    """Make ``folder`` a clone of ``source`` where it is none, fetch, and return the branch's newest commit.

    The clone's files and its own commits stay as they are.

    Raises:
        InputError: ``folder`` is something else; or the source has no such branch.
        InfrastructureError: the source does not answer.
    """
    refuse_other_folder(source, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").is_dir():
        git(folder, "init", "-q")
    for lock in (folder / ".git").rglob("*.lock"):  # of a process that was killed: only one works here at a time
        lock.unlink()
    branch = _branch(source, folder)
    settings = {SOURCE: source.url, BRANCH: branch, COMMITS_RUNS: "true", "remote.origin.url": source.url}
    for key, value in settings.items():
        git(folder, "config", key, value)
    exclude = folder / ".git" / "info" / "exclude"
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_text("/.segmill/\n")
    fetch(folder)
    return newest(folder)


def newest(root: Path) -> str:
    """Return the branch's newest commit, as the clone last saw the source."""
    return git(root, "rev-parse", upstream(config_value(root, BRANCH)))


def upstream(branch: str | None) -> str:
    """Return the name of the branch as it was last seen in the source."""
    return f"refs/remotes/origin/{branch}"


def fetch(root: Path) -> None:
    """Fetch the branch of the clone at ``root``. InfrastructureError where the source does not answer."""
    branch = config_value(root, BRANCH)
    talk(root, "fetch", "-q", "--force", "--tags", "origin", f"+refs/heads/{branch}:{upstream(branch)}")


def set_to(root: Path, commit: str) -> str:
    """Make branch and files those of ``commit``; return what was set aside, for a sentence; "" where nothing was.

    Changes of tracked files that no commit has are kept in git's stash.
    """
    said = ""
    if git_head(root) and (changed := git(root, "diff", "--name-only", "HEAD")):
        git(root, *identity(root), "stash", "push", "-q", "-m", f"segmill: before {commit[:12]}")
        said = ", ".join(changed.splitlines())
    git(root, "symbolic-ref", "HEAD", f"refs/heads/{config_value(root, BRANCH)}")
    git(root, "reset", "-q", "--hard", commit)
    return said


def talk(root: Path, *arguments: str) -> str:
    """Run a git command that talks to the source; InfrastructureError with what git says where it fails."""
    try:
        return git(root, *arguments, environment=_environment())
    except InputError as fault:
        source = source_of(root) or "the source"
        raise InfrastructureError(
            f"{source} does not answer: {without_passwords(fault.what)}; check its address, and its credentials in "
            f"{USER_VARIABLE} and {PASSWORD_VARIABLE}, or those of ssh"
        ) from None


def _branch(source: GitSource, folder: Path) -> str:
    """Return the branch to work for, as the source has it."""
    known = config_value(folder, BRANCH)
    if known and source.branch in (None, known):
        return known
    git(folder, "config", SOURCE, source.url)
    said = talk(folder, "ls-remote", "--symref", source.url, "HEAD", "refs/heads/*")
    names = re.findall(r"(?m)\trefs/heads/(\S+)$", said)
    head = re.search(r"(?m)^ref: refs/heads/(\S+)\tHEAD$", said)
    branch = source.branch or (head[1] if head else None)
    if branch not in names:
        wanted = f"no branch {branch}" if branch else "no commit"
        raise InputError(
            f"{without_password(source.url)} has {wanted}",
            f"name one of {', '.join(sorted(names))}: results are pushed to it"
            if names
            else f"push a workspace first: `git push {quote(without_password(source.url))} main`",
        )
    return str(branch)


def _environment() -> dict[str, str]:
    """Return what git is given to talk to a source: no questions, no endless wait, the password and no helper that
    would write it down."""
    if PASSWORD_VARIABLE in os.environ:
        _password[:] = [os.environ.pop(PASSWORD_VARIABLE)]
    own = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}  # may hold a password
    own |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if not {"GIT_SSH", "GIT_SSH_COMMAND"} & os.environ.keys():
        own["GIT_SSH_COMMAND"] = "ssh -o BatchMode=yes -o ConnectTimeout=20"
    settings = [("http.lowSpeedLimit", "1"), ("http.lowSpeedTime", "60")]
    if _password:
        own[PASSWORD_VARIABLE] = _password[0]
        settings += [("credential.helper", ""), ("credential.helper", _HELPER)]
    count = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
    for number, (key, value) in enumerate(settings, start=count):
        own |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return own | {"GIT_CONFIG_COUNT": str(count + len(settings))}
