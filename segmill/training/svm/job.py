"""The job of fitting a classical member: all it takes, as plain values. What its record says is made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill.data.loading.policy import Policy
from segmill.svm_settings import SvmSettings

if TYPE_CHECKING:
    from segmill.data.splitting.shares import SplitShares


@dataclass(frozen=True, kw_only=True)
class SvmJob:
    """Fit the classical member ``name``.

    Args:
        settings: of the member.
        packed_dir: the packed splits; train is learned from as it is there, val chooses families and smoothing.
        policy: the augmentation of the run, for the record: an SVM learns from samples as they are packed.
        split, data_version: how the splits were made and of which data, for the record.
        out_dir: the member folder to write, a temporary one that the caller renames.
        progress_path: the JSON that says how it goes. curves_path: the curve's one row, timings included.
    """

    name: str
    settings: SvmSettings
    packed_dir: Path
    policy: Policy
    split: SplitShares
    data_version: str
    out_dir: Path
    progress_path: Path
    curves_path: Path

    def record(self) -> dict[str, Any]:
        """Return what member.json keeps under ``params``."""
        policy = self.policy
        return {
            "train": {},
            "member": {"kind": "svm", **asdict(self.settings)},
            "split": asdict(self.split),
            "augment": {
                "recipe": policy.title, "recipe_sha256": policy.sha256, "extra_samples": policy.extra,
            },
        }  # fmt: skip
