"""Jobs for tests: one call that takes any key of a network, of its training or of the job itself."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from segmill.data.loading.policy import Policy
from segmill.data.splitting.shares import SplitShares
from segmill.train_settings import NetworkSettings, TrainSettings
from segmill.training.job import TrainData, TrainJob, Workers

FLIP = Policy("own", None, [{"HorizontalFlip": {"p": 0.5}}], "")


def network(**own: Any) -> NetworkSettings:
    plain: dict[str, Any] = {
        "backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 1e-3, "decoder_width": 1.0,
        "attention": "none", "context": "none", "aux_heads": {}, "head_weights": "fixed", "keep_heads": False,
        "deep_supervision": 0.0,
    }  # fmt: skip
    return NetworkSettings(**{**plain, **own})


def train_job(root: Path, packed_dir: Path = Path("packed"), **own: Any) -> TrainJob:
    """Return a job that keeps all it makes in ``root``; each of ``own`` goes to the part that has such a field."""

    def parts(kind: type) -> dict[str, Any]:
        return {field.name: own.pop(field.name) for field in fields(kind) if field.name in own}

    built = network(**parts(NetworkSettings))
    train = TrainSettings(**parts(TrainSettings))
    data = {"packed_dir": packed_dir, "extra_dir": None, "policy": FLIP, "size_px": None, **parts(TrainData)}
    workers = Workers(**parts(Workers))
    places: dict[str, Any] = {
        "name": "a",
        "split": SplitShares(0.2, 0.2, 0),
        "data_version": "v1",
        "out_dir": root / "member",
        "runs_dir": root / "runs",
        "progress_path": root / "progress.json",
        "curves_path": root / "curves.csv",
        "failure_path": root / "failed.npz",
        "inputs_hash": "0123",
    }
    return TrainJob(network=built, train=train, data=TrainData(**data), workers=workers, **{**places, **own})
