"""The dvc.yaml of the time when evaluate wrote the whole folder reports: refused with what to do, and replaced."""

from __future__ import annotations

import pytest

from segmill.errors import InputError
from segmill.former_pipeline import refuse_former_pipeline, replace_former_pipeline
from segmill.workspace import Workspace, template
from tasks.stage import bring_up_to_date, survey

OUTS = "      - reports/metrics.json\n      - reports/counts.npz\n      - reports/examples.npz\n"


@pytest.fixture
def former(workspace: Workspace) -> Workspace:
    """A workspace with the dvc.yaml of that time, and what a run left."""
    before, evaluate, after = template("dvc.yaml").read_text().partition("  evaluate:\n")
    after = after.replace("- data/packed\n", "- data/packed\n      - data/augmented\n").replace(
        OUTS, "      - reports\n"
    )
    workspace.pipeline.write_text(before + evaluate + after)
    (workspace.reports / "figures").mkdir(parents=True)
    (workspace.reports / "figures" / "example-00-image.png").touch()
    workspace.page.write_text("the last report")
    return workspace


def test_it_is_refused_with_one_sentence_and_replaced_on_request(former: Workspace) -> None:
    for look in (lambda: survey(former), lambda: bring_up_to_date(former, "fingerprint")):
        with pytest.raises(InputError, match=r"^dvc.yaml is that of an earlier release; run `segmill doctor --fix`"):
            look()
    (line,) = replace_former_pipeline(former)
    assert "stages are those of this release" in line
    assert former.pipeline.read_bytes() == template("dvc.yaml").read_bytes()
    assert [path.name for path in former.reports.iterdir()] == ["index.html"], "its pictures are in the next one"
    bring_up_to_date(former, "fingerprint")
    assert replace_former_pipeline(former) == []


@pytest.mark.parametrize("out", ["- reports", "- reports/:", "- reports:\n          cache: true"])
def test_one_with_changes_by_hand_says_what_to_list(workspace: Workspace, out: str) -> None:
    text = workspace.pipeline.read_text().replace("outs:\n" + OUTS, f"desc: ours\n    outs:\n      {out}\n")
    workspace.pipeline.write_text(text)
    for look in (refuse_former_pipeline, replace_former_pipeline):
        with pytest.raises(InputError, match=r"lists the folder reports .*; list reports/metrics\.json, "):
            look(workspace)
    assert workspace.pipeline.read_text() == text
