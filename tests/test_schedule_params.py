"""The block `schedule` of params.yaml: faults are sentences with the key, and no address is in it."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill.errors import InputError
from segmill.params import Params, parse_params
from segmill.workspace import template


def parsed(schedule: Any) -> Params:
    values = YAML(typ="safe").load(template("params.yaml").read_text())
    return parse_params(values | {"schedule": schedule}, "params.yaml")


def test_without_the_block_nothing_is_scheduled() -> None:
    values = YAML(typ="safe").load(template("params.yaml").read_text())
    params = parse_params(values, "params.yaml")
    assert "schedule" not in params.model_fields_set, "so `segmill status` asks no server"
    assert params.schedule.cron is None and params.schedule.interval_minutes is None
    assert "schedule" in parsed({}).model_fields_set


def test_a_schedule_has_a_rhythm_and_a_time_zone() -> None:
    schedule = parsed({"cron": "0 2 * * 1-5", "timezone": "Europe/Berlin", "source": "git@host:set.git@main"}).schedule
    assert (schedule.cron, schedule.timezone, schedule.source) == (
        "0 2 * * 1-5",
        "Europe/Berlin",
        "git@host:set.git@main",
    )
    assert parsed({"interval_minutes": 30, "alarms": [{"url_env": "SINK"}]}).schedule.alarms[0].events is None


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"crn": "0 2 * * *"}, "unknown key schedule.crn; did you mean 'cron'?"),
        ({"timezone": "Europe/Berln"}, "unknown time zone Europe/Berln; did you mean 'Europe/Berlin'?"),
        ({"cron": "0 2 * * *", "interval_minutes": 5}, "cron and interval_minutes are both set; keep one"),
        ({"interval_minutes": 0}, "schedule.interval_minutes is 0"),
        ({"max_hours": -1}, "schedule.max_hours is -1"),
        ({"alarms": [{"url_env": "SINK", "events": ["fail"]}]}, "unknown event fail; did you mean 'failed'?"),
    ],
)
def test_a_fault_names_its_key(schedule: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        parsed(schedule)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "schedule",
    [
        {"source": "https://me:hunter2@example.org/set.git"},
        {"alarms": [{"url_env": "https://hooks.example.org/hunter2"}]},
    ],
)
def test_a_secret_is_refused_and_not_repeated(schedule: Any) -> None:
    with pytest.raises(InputError) as error:
        parsed(schedule)
    assert "hunter2" not in str(error.value)
