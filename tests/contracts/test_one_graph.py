"""dvc.yaml, tasks/ and the flow say the same thing."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import tasks
from segmill.params import Params, read_params
from segmill.workspace import Workspace, template
from tasks.inputs import all_settings, settings_path
from tasks.stage import STAGES

SIDE_EFFECTS = ("version", "register", "promote", "report")
NOT_STEPS = (
    "__init__",
    "stage",
    "inputs",
    "adoption",
    "changes",
    "collect",
    "comparable",
    "judging",
    "known",
    "passport",
    "prefect_history",
    "training_costs",
    "verify",
)


def pipeline() -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(template("dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def test_stages_of_dvc_are_the_modules_in_tasks() -> None:
    modules = {path.stem for path in Path(str(tasks.__file__)).parent.glob("*.py")}
    assert modules == {*STAGES, *SIDE_EFFECTS, *NOT_STEPS}
    assert tuple(pipeline()) == STAGES


@pytest.mark.parametrize("name", [*STAGES, *SIDE_EFFECTS])
def test_each_module_has_the_function_of_its_name(name: str) -> None:
    function = getattr(importlib.import_module(f"tasks.{name}"), name)
    assert list(inspect.signature(function).parameters)[:2] == ["workspace", "params"]


def test_the_flow_runs_the_stages_in_an_order_the_graph_allows(workspace: Workspace) -> None:
    from flows.retrain import steps
    from segmill.data.versioning.dvc_adapter import repository

    order = steps(read_params(workspace.params))
    with repository(workspace.root) as repo:
        edges = [(up, name) for name, ups in repo.upstream().items() for up in ups]
    stages = [step for step in order if step not in SIDE_EFFECTS]
    assert {name for edge in edges for name in edge} == set(stages)
    assert [(before, after) for before, after in edges if order.index(before) >= order.index(after)] == []
    assert [order[0], *order[-3:]] == list(SIDE_EFFECTS)


def test_every_stage_depends_on_its_own_code() -> None:
    for name, stage in pipeline().items():
        if name != "fingerprint":
            assert f".segmill/code/{name}{'/${key}' if name == 'finetune' else ''}" in stage["deps"]


def test_every_command_is_the_stage_of_its_name() -> None:
    for name, stage in pipeline().items():
        assert re.fullmatch(rf"segmill stage {name}(@\$\{{key\}})?", stage["cmd"])


def test_every_stage_depends_on_its_own_settings_which_the_stage_fingerprint_writes(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    for stage in all_settings(params):
        name, _, member = stage.partition("@")
        (listed,) = pipeline()[name]["params"]
        (path,) = (key.replace("${key}", member) for key in listed)
        assert workspace.root / path == settings_path(workspace, stage) and settings_path(workspace, stage).is_file()
    assert [name for name, stage in pipeline().items() if "params" not in stage] == ["fingerprint"]


def test_params_that_change_a_result_are_settings_of_a_stage(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    assert "anomaly" not in str(all_settings(params)), "records of releases without it stay as they are"
    apart = params.model_copy(update={"split": params.split.model_copy(update={"calibration": ("a",)})})
    settings = all_settings(apart)
    tracked = {block for values in settings.values() for block in values}
    where_things_run = {"promotion", "ray", "mlflow", "prefect", "notify", "git", "schedule", "keep", "serving"}
    assert tracked == set(Params.model_fields) - where_things_run
    assert [values["data"] for values in settings.values() if "data" in values] == [{"accept": []}]
