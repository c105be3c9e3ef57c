from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import train_job

from segmill.data.loading.policy import Policy
from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.packed import PackInfo
from segmill.models.members import MemberSpec
from segmill.training.clock import Rank
from segmill.training.job import TrainJob
from segmill.training.measure.compiling import Speeds
from segmill.training.measure.settling import FILE, settle
from segmill.training.settings import Settings
from tests.training.conftest import SETTINGS, SIDE_PX, tiny_module

SPEC = MemberSpec("tiny", "none", "none", 2)


def a_job(root: Path, **own: Any) -> TrainJob:
    return train_job(root, **{"name": "tiny", "batch_size": 4, **own})


def settled(job: TrainJob, samples: int = 1000, on_state: Callable[[str], None] = print) -> tuple[TrainJob, Settings]:
    size_px, cpu = (SIDE_PX, SIDE_PX), torch.device("cpu")
    packed = PackInfo("tiny", ("a", "b"), ("#000", "#fff"), 255, size_px, (0.5,), (0.2,), (1, 1), {"train": samples})
    settings = replace(SETTINGS, batch_size=job.train.batch_size, compile=job.train.compile)
    return settle(job, tiny_module(), SPEC, settings, packed=packed, rank=Rank(), device=cpu, on_state=on_state)


def test_what_is_said_is_left_alone(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    assert settled(job) == (job, replace(SETTINGS, batch_size=4))
    assert not list(tmp_path.iterdir())


def test_the_batch_size_found_stays_with_the_run_and_in_the_record(tmp_path: Path) -> None:
    job = a_job(tmp_path, batch_size="auto", seed=3)
    states: list[str] = []
    first, settings = settled(job, on_state=states.append)
    assert first == replace(job, train=replace(job.train, batch_size=64))  # tiny images fit any machine
    assert settings == replace(SETTINGS, batch_size=64)
    assert first.record()["train"]["batch_size"] == 64 and job.record()["train"]["batch_size"] == "auto"
    assert states == ["looking for the largest batch that fits"]
    kept = job.run_folder / FILE
    kept.write_text(json.dumps({"batch_size": 16, "compile": "off"}))
    again, _ = settled(job)
    assert again.train.batch_size == 16


def test_no_batch_is_larger_than_the_split(tmp_path: Path) -> None:
    assert settled(a_job(tmp_path, batch_size="auto"), samples=37)[0].train.batch_size == 32
    assert settled(a_job(tmp_path / "other", batch_size="auto"), samples=1)[0].train.batch_size == 2


def test_the_samples_that_augment_adds_are_steps_too(tmp_path: Path) -> None:
    job = a_job(tmp_path, batch_size="auto", extra_dir=tmp_path / "extra", policy=_with_extra(30))
    assert settled(job, samples=37)[0].train.batch_size == 64


def _with_extra(count: int) -> Policy:
    return replace(settle_policy("none"), extra={"copy_paste": count, "balance": 0})


@pytest.mark.parametrize(
    ("wish", "speeds", "chosen"),
    [
        ("auto", Speeds(1.0, 0.5, 10.0), "on"),
        ("auto", Speeds(1.0, 0.5, 10_000.0), "off"),
        ("on", Speeds(1.0, 0.5, 10_000.0), "on"),
        ("on", Speeds(1.0, reason="no C++ compiler"), "off"),
    ],
)
def test_compiling_is_chosen_by_what_was_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wish: str,
    speeds: Speeds,
    chosen: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("segmill.training.measure.settling.measure", lambda *_: speeds)
    states: list[str] = []
    job, settings = settled(a_job(tmp_path, compile=wish), on_state=states.append)
    assert states == ["measuring whether torch.compile pays"]
    assert job.train.compile == settings.compile == job.record()["train"]["compile"] == chosen
    if not speeds.works:
        assert "member tiny is not compiled: torch.compile fails here (no C++ compiler)" in caplog.text
