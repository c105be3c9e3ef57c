"""The block `schedule` of params.yaml: when the retraining runs by itself, where, and who hears of it."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from pydantic import Field, field_validator, model_validator

from segmill.errors import near_miss
from segmill.params_block import Block

ALARMS = ("failed", "late", "promoted", "refused", "approval_wanted")


class AlarmParams(Block):
    """One HTTP address that Prefect's server calls."""

    url_env: str = Field(
        description="Name of the environment variable that holds the address; `segmill deploy` reads it."
    )
    events: tuple[str, ...] | None = Field(
        None, description="Events that are sent: failed, late, promoted, refused, approval_wanted; null sends all."
    )

    @field_validator("url_env")
    @classmethod
    def is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(
                "this is not the name of an environment variable; put the address, which is often a secret, into a "
                "variable such as SEGMILL_ALARM_URL and write that name here"
            )
        return name

    @field_validator("events")
    @classmethod
    def are_known(cls, events: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for event in events or ():
            if event not in ALARMS:
                raise ValueError(f"unknown event {event}{near_miss(event, ALARMS)} (allowed: {', '.join(ALARMS)})")
        return events


class ScheduleParams(Block):
    """What `segmill deploy` makes of the workspace at a Prefect server."""

    cron: str | None = Field(None, description="When it runs, as five fields of cron, such as '0 2 * * *'.")
    interval_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Minutes between two runs, in place of cron."
    )
    timezone: str = Field("UTC", description="Time zone of cron, such as Europe/Berlin.")
    pool: str = Field("segmill", description="Prefect work pool that runs it; made as a process pool where it is not.")
    source: str | None = Field(
        None,
        description=(
            "GIT_URL[@BRANCH] that each run clones into an empty folder; null runs in the workspace's own folder."
        ),
    )
    on_data: bool = Field(True, description="Run when `segmill data add` has made a new data version.")
    on_drift: bool = Field(True, description="Run when somebody posts the event segmill.drift of the model.")
    max_hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Hours after which a run is stopped as failed; null lets it run."
    )
    alarms: tuple[AlarmParams, ...] = Field(
        (), description="Addresses that hear of failures and verdicts, each a block."
    )

    @field_validator("timezone")
    @classmethod
    def is_known(cls, name: str) -> str:
        known = available_timezones()
        if name not in known:
            raise ValueError(
                f"unknown time zone {name}{near_miss(name, sorted(known))}; write one such as Europe/Berlin"
            )
        return name

    @field_validator("source")
    @classmethod
    def holds_no_password(cls, source: str | None) -> str | None:
        if source and "://" in source and urlsplit(source).password:
            raise ValueError("it holds a password; set SEGMILL_GIT_USER and SEGMILL_GIT_PASSWORD where the worker runs")
        return source

    @model_validator(mode="after")
    def has_one_rhythm(self) -> ScheduleParams:
        if self.cron and self.interval_minutes:
            raise ValueError("cron and interval_minutes are both set; keep one")
        return self
