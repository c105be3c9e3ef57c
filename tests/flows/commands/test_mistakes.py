"""Mistakes that people make: one sentence, the right culprit, the right exit code, and nothing is harmed."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from terminal import BIN, terminal

from segmill.workspace import Workspace

pytestmark = pytest.mark.slow


def nothing(workspace: Workspace) -> None:
    pass


def edit(name: str, old: str, new: str) -> Callable[[Workspace], None]:
    def change(workspace: Workspace) -> None:
        path = workspace.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def keep_one_group(workspace: Workspace) -> None:
    raw = workspace.root / "data/raw"
    edit("data/raw/dataset.yaml", "^(?P<group>.+)_f\\d+$", "(?P<group>street)")(workspace)
    info = raw / "dataset.yaml"
    begin, _, end = info.read_text().partition("splits:\n")
    info.write_text(begin + "".join(line for line in end.splitlines(keepends=True) if not line.startswith("  ")))
    (raw / "splits.csv").write_text("group,split\nstreet,train\n")


def lose(name: str) -> Callable[[Workspace], None]:
    return lambda workspace: (workspace.root / name).unlink()


@dataclass(frozen=True)
class Mistake:
    """``prepare`` makes it, or ``command`` is it. ``said`` is how the sentence begins, ``fix`` is in it.

    There ``{root}`` is the workspace and ``{quoted}`` the same for a shell.
    """

    said: str
    command: tuple[str, ...] = ("retrain",)
    prepare: Callable[[Workspace], None] = nothing
    fix: str = ""
    code: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


RETRAIN_SET = ("retrain", "--set")
MISTAKES = {
    "a typo in params.yaml": Mistake(
        "params.yaml: unknown key train.epoch; did you mean 'epochs'?",
        prepare=edit("params.yaml", "epochs: 20", "epoch: 20"),
    ),
    "a typo in --set": Mistake(
        "--set: unknown key train.epoch; did you mean 'epochs'?", (*RETRAIN_SET, "train.epoch=3")
    ),
    "no value for --set": Mistake("--set train.epochs: write it as key=value", (*RETRAIN_SET, "train.epochs")),
    "an unknown backbone": Mistake(
        "member lite0-unet: unknown backbone resnt18; did you mean 'resnet18'?",
        (*RETRAIN_SET, "members.lite0-unet.backbone=resnt18"),
    ),
    "an unknown decoder": Mistake(
        "member lite0-unet: unknown decoder unett; did you mean 'unet'?",
        (*RETRAIN_SET, "members.lite0-unet.decoder=unett"),
    ),
    "a decoder that its backbone does not suit": Mistake(
        "member lite0-unet: ", (*RETRAIN_SET, "members.lite0-unet.backbone=vit_tiny_patch16_224"), fix="dpt"
    ),
    "weights that are not there": Mistake(
        "member resnet18-linknet: weights file:/no/weights.pth: there is no file /no/weights.pth",
        (*RETRAIN_SET, "members.resnet18-linknet.weights=file:/no/weights.pth"),
    ),
    "a stage that dvc.yaml lost": Mistake(
        "dvc.yaml lacks the stage ensemble; ",
        (*RETRAIN_SET, "train.epochs=3"),
        edit("dvc.yaml", "  ensemble:\n", "  gathering:\n"),
        "`git -C {quoted} checkout HEAD -- dvc.yaml`",
    ),
    "an edge that dvc.yaml lost": Mistake(
        "dvc.yaml lacks the dependency data/augmented of finetune; ",
        prepare=edit("dvc.yaml", "        - data/augmented\n", ""),
        fix="`git -C {quoted} checkout HEAD -- dvc.yaml`",
    ),
    "params.yaml deleted": Mistake(
        "{root} has lost its params.yaml; `git -C {quoted} checkout HEAD -- params.yaml`", prepare=lose("params.yaml")
    ),
    "one group": Mistake(
        "{root}/data/raw: no group falls into val and test (groups in all: 1); each split takes whole groups, so add ",
        ("validate",),
        keep_one_group,
    ),
    "a Ray that is not there": Mistake(
        "no Ray cluster at 127.0.0.1:9 (",
        (*RETRAIN_SET, "members.lite0-unet.lr=0.5"),
        fix="start one with `ray start --head`",
        code=4,
        environment={"RAY_ADDRESS": "127.0.0.1:9"},
    ),
    "no workspace": Mistake("/ is not a workspace: it has no params.yaml; make one with", ("status", "-w", "/")),
}  # fmt: skip


def content(folder: Path) -> dict[str, str]:
    """Return a hash per file, but for what a run notes of itself, and git's and DVC's stores of what was committed."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    own = {path: path.relative_to(folder) for path in files}
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in own.items()
        if name.parts[0] not in (".segmill", ".git", ".dvc")
    }


def run(folder: Path, command: tuple[str, ...], environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """Return the exit code and the lines on stderr."""
    whole = [str(BIN / "segmill"), *command]
    done = subprocess.run(whole, cwd=folder, capture_output=True, text=True, env=terminal(environment), timeout=120)
    return done.returncode, done.stderr.splitlines()


# Each makes a run that ends soon, and starts what an unknown backbone does.
LIKE_OTHERS = (
    "no value for --set",
    "an unknown decoder",
    "a decoder that its backbone does not suit",
    "weights that are not there",
    "an edge that dvc.yaml lost",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LIKE_OTHERS else []) for name in MISTAKES]
)
def test_a_mistake_is_one_sentence_and_harms_nothing(name: str, workspace: Workspace, servers: dict[str, str]) -> None:
    mistake, folder = MISTAKES[name], workspace.root.with_name("my workspace")
    workspace.root.rename(folder)
    workspace = Workspace(folder)
    workspace.scratch.mkdir(exist_ok=True)
    mistake.prepare(workspace)
    before = content(folder)
    code, said = run(folder, mistake.command, {**servers, **mistake.environment})
    (sentence,) = said
    assert code == mistake.code
    assert sentence.startswith("error " + mistake.said.format(root=folder, quoted=f"'{folder}'"))
    assert mistake.fix.format(quoted=f"'{folder}'") in sentence
    after = content(folder)
    if mistake.command[0] == "validate":
        after.pop("dvc.lock")  # the stage before it ran
    assert after == before
