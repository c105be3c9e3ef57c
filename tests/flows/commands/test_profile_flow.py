from __future__ import annotations

import json
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.commands.cli import app
from flows.commands.profile import _data, profile, show
from segmill.data.loading.policy import read_policy
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.training.measure.profile_job import ProfileResult
from segmill.workspace import Workspace
from tasks.stage import run


def test_what_cannot_be_profiled_is_a_sentence(workspace: Workspace) -> None:
    set_params(workspace.params, ["members.shades={kind: svm}", "prepare.size_px=null"])
    params, console = read_params(workspace.params), Console(quiet=True)
    with pytest.raises(InputError, match=r"there is no member 'lite0-unit'; did you mean 'lite0-unet'\?"):
        profile(workspace, params, "lite0-unit", console)
    done = CliRunner().invoke(app, ["profile", "lite0-unit", "--workspace", str(workspace.root)])
    assert isinstance(done.exception, InputError) and "did you mean 'lite0-unet'?" in str(done.exception)
    with pytest.raises(InputError, match="shades is an svm: it is fitted once, without steps; name a network"):
        profile(workspace, params, "shades", console)


def test_the_module_is_light() -> None:
    code = (
        "import sys, flows.commands.profile; print([name for name in ('torch', 'ray', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.long
def test_a_member_is_profiled_before_and_after_prepare(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], joined: None
) -> None:
    set_params(workspace.params, ["prepare.size_px=null", "train.batch_size=4"])
    name = "resnet18-linknet"
    with pytest.raises(InputError, match=r"nothing is prepared yet and prepare\.size_px is null"):
        profile(workspace, read_params(workspace.params), name, Console(quiet=True))
    set_params(workspace.params, ["prepare.size_px=[64, 96]"])
    profile(workspace, read_params(workspace.params), name, Console(width=120), steps=1)
    said = capsys.readouterr().out
    assert "resnet18-linknet:" in said and "a step of 4 images of 64 x 96 px" in said and "waiting for data" in said
    assert "nothing is prepared yet" in said
    set_params(workspace.params, ["augment.recipe=[{HorizontalFlip: {p: 0.5}}]"])
    for stage in ("fingerprint", "validate", "prepare"):
        run(workspace, stage, read_params(workspace.params))
    done = CliRunner().invoke(app, ["profile", name, "--steps", "1", "--json", "-w", str(workspace.root)])
    facts = json.loads(done.stdout)
    assert not facts["made_up"] and facts["images_s"] > 0 and facts["step_flop"] > 1e9
    assert sum(facts["kinds"].values()) == pytest.approx(1)
    show(ProfileResult(**facts), Console(width=120))
    said = capsys.readouterr().out
    assert facts["advice"] in said and "nothing is prepared yet" not in said
    run(workspace, "augment", read_params(workspace.params))
    settled = read_policy(workspace.augmented / "recipe.json")
    assert _data(workspace, read_params(workspace.params)).policy == settled
