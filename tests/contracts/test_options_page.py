"""docs/options.md names every key of params.yaml, with the default and the sentence that the code has."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from segmill import params
from segmill.keep_params import KeepParams
from segmill.notify_params import NotifyParams, WebhookParams
from segmill.schedule_params import AlarmParams, ScheduleParams
from segmill.serving_params import LimitParams, ServingParams, WindowParams
from segmill.train_settings import TrainSettings

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
BLOCKS = {
    "train": TrainSettings,
    "members.NAME, a network": params.NetworkParams,
    "members.NAME, kind: svm": params.SvmParams,
    "data": params.DataParams,
    "split": params.SplitParams,
    "prepare": params.PrepareParams,
    "augment": params.AugmentParams,
    "ensemble": params.EnsembleParams,
    "evaluate": params.EvaluateParams,
    "anomaly": params.AnomalyParams,
    "promotion": params.PromotionParams,
    "promotion.guards": params.GuardParams,
    "ray": params.RayParams,
    "mlflow": params.MlflowParams,
    "prefect": params.PrefectParams,
    "notify": NotifyParams,
    "notify.webhooks": WebhookParams,
    "keep": KeepParams,
    "git": params.GitParams,
    "schedule": ScheduleParams,
    "schedule.alarms": AlarmParams,
    "serving": ServingParams,
    "serving.windows": WindowParams,
    "serving.limits": LimitParams,
}


def rows(title: str) -> dict[str, tuple[str, str]]:
    """Return key -> (default, sentence) of the table under ``title``."""
    section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): (row[1].strip(" `"), row[2].strip()) for row in cells}


def as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, BaseModel):
        return as_yaml({key: as_yaml(one) for key, one in value})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    return str(value)


def test_every_block_has_its_table() -> None:
    titles = [line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert titles == list(BLOCKS)
    shown = {name.partition(".")[0] for name in titles}
    assert {title.partition(",")[0] for title in shown} == set(params.Params.model_fields)


@pytest.mark.parametrize("title", BLOCKS)
def test_the_table_says_what_the_code_does(title: str) -> None:
    block: Any = BLOCKS[title]
    if block is TrainSettings:
        defaults = asdict(TrainSettings())
        wanted = {key: (as_yaml(defaults[key]), sentence) for key, sentence in params.train_keys().items()}
    else:
        wanted = {
            key: ("required" if field.is_required() else as_yaml(field.default), field.description)
            for key, field in block.model_fields.items()
            if key != "kind"
        }
    assert rows(title) == wanted


def test_options_without_a_proven_gain_are_marked_experimental_with_the_ablations_figure() -> None:
    marked = {}
    for marks in re.findall(r"experimental: (.*?)(?: \||$)", PAGE.read_text(), re.MULTILINE):
        marked |= dict(mark.rsplit(" ", 1) for mark in marks.split("; "))
    table = (PAGE.parent / "ablation.md").read_text()
    measured = [line.strip("| ").split(" | ") for line in table.splitlines() if line.count(" | ") == 5]
    gains = {row[0]: row[4] for row in measured if re.fullmatch(r"[+-]\d+\.\d", row[4])}
    # What was taken away from the base (its figure says that it is needed) or is no option of its own.
    others = {
        "base",
        "loss: cross-entropy alone",
        "no class weights",
        "random weights at the start",
        "SVM member, alone",
    }
    assert marked == {name: gain for name, gain in gains.items() if float(gain) < 1 and name not in others}
