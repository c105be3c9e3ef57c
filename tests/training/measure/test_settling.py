from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.display import member_line
from segmill import progress
from segmill.data.packing.packed import PackInfo
from segmill.models.members import MemberSpec
from segmill.training.clock import Rank
from segmill.training.measure.compiling import Speeds
from segmill.training.measure.settling import FILE, settle
from segmill.training.settings import Settings, run_folder
from tests.training.conftest import SETTINGS, SIDE_PX, tiny_module

SPEC = MemberSpec("tiny", "none", "none", 2)


def arguments(root: Path, **own: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "run_dir": str(root),
        "progress_path": str(root / "progress.json"),
        "inputs_hash": "0",
        "batch_size": 4,
        "crop_size": None,
        "compile": "off",
        "cpus_per_worker": 1,
        "gpus_per_worker": 0,
        "params": {"train": {"batch_size": "auto", "seed": 3}, "member": {}},
        **own,
    }


def settled(args: dict[str, Any], samples: int = 1000) -> tuple[dict[str, Any], Settings]:
    size_px, cpu = (SIDE_PX, SIDE_PX), torch.device("cpu")
    packed = PackInfo("tiny", ("a", "b"), ("#000", "#fff"), 255, size_px, (0.5,), (0.2,), (1, 1), {"train": samples})
    return settle(args, tiny_module(), SPEC, SETTINGS, packed=packed, rank=Rank(), device=cpu)


def test_what_is_said_is_left_alone(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    assert settled(args) == (args, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_the_batch_size_found_stays_with_the_run_and_in_the_record(tmp_path: Path) -> None:
    args = arguments(tmp_path, batch_size="auto")
    first, settings = settled(args)
    assert first["batch_size"] == 64 and settings == SETTINGS  # tiny images fit any machine
    assert first["params"]["train"] == {"batch_size": 64, "seed": 3, "compile": "off"}
    assert args["params"]["train"]["batch_size"] == "auto"
    said = progress.read(tmp_path / "progress.json")
    assert said is not None and member_line(said) == "looking for the largest batch that fits"
    kept = run_folder(args) / FILE
    kept.write_text(json.dumps({"batch_size": 16, "compile": "off"}))
    again, _ = settled(args)
    assert again["batch_size"] == 16


def test_no_batch_is_larger_than_the_split(tmp_path: Path) -> None:
    assert settled(arguments(tmp_path, batch_size="auto"), samples=37)[0]["batch_size"] == 32
    assert settled(arguments(tmp_path / "other", batch_size="auto"), samples=1)[0]["batch_size"] == 2


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
    args, settings = settled(arguments(tmp_path, compile=wish))
    said = progress.read(tmp_path / "progress.json")
    assert said is not None and member_line(said) == "measuring whether torch.compile pays"
    assert args["compile"] == settings.compile == args["params"]["train"]["compile"] == chosen
    if not speeds.works:
        assert "member tiny is not compiled: torch.compile fails here (no C++ compiler)" in caplog.text
