"""The job of training a network member: all it takes, as plain values. What a member's record says is made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill.train_settings import NetworkSettings, TrainSettings

if TYPE_CHECKING:
    from segmill.data.loading.policy import Policy
    from segmill.data.splitting.shares import SplitShares


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What training reads.

    ``packed_dir``: the packed splits. ``extra_dir``: a packed folder of extra train samples, or None. ``size_px``:
    height and width of the packed train images; None where each keeps its own.
    """

    packed_dir: Path
    extra_dir: Path | None
    policy: Policy
    size_px: tuple[int, int] | None

    def record(self) -> dict[str, Any]:
        """Return what member.json keeps of the augmentation; a training without extra samples records none."""
        made = {kind: count if self.extra_dir else 0 for kind, count in self.policy.extra.items()}
        return {"recipe": self.policy.title, "recipe_sha256": self.policy.sha256, "extra_samples": made}


@dataclass(frozen=True)
class Start:
    """A member folder to begin with, and what it is called in the record: ``champion:MODEL/VERSION``."""

    folder: Path
    source: str


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What a training runs on: ``count`` ranks, each with ``cpus``, ``gpus`` and ``loader_workers`` processes."""

    count: int = 1
    cpus: float = 1
    gpus: float = 0
    loader_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train the network member ``name``. All paths are absolute and, on a cluster, the same on every node.

    Args:
        network, train: its settings. ``own_keys``: those of ``train`` that the member's own block sets, in its order.
        data: what it learns from; ``split``, ``data_version``: how the splits were made and of which data.
        start: the member whose weights it begins with, where that is the same network; None for ``network.weights``.
        workers: what it runs on.
        out_dir: the member folder to write, a temporary one that the caller renames.
        runs_dir: where run folders are, see ``run_folder``.
        progress_path: the JSON that says how it goes. curves_path: the CSV that grows with each epoch, timings
            included. failure_path: the .npz for the batch whose loss is not finite; None keeps none.
        inputs_hash: of everything that decides the result: a run of the same hash resumes from its last checkpoint.
    """

    name: str
    network: NetworkSettings
    train: TrainSettings
    own_keys: tuple[str, ...] = ()
    data: TrainData
    split: SplitShares
    data_version: str
    start: Start | None = None
    workers: Workers
    out_dir: Path
    runs_dir: Path
    progress_path: Path
    curves_path: Path
    failure_path: Path | None
    inputs_hash: str

    @property
    def run_folder(self) -> Path:
        """Where the member's checkpoints are while it trains."""
        return self.runs_dir / f"{self.name}-{self.inputs_hash}"

    def record(self) -> dict[str, Any]:
        """Return what member.json keeps under ``params``."""
        train = asdict(self.train)
        own = {key: train[key] for key in self.own_keys}
        return {
            "train": train,
            "member": {"kind": "network", **asdict(self.network), **own},
            "split": asdict(self.split),
            "augment": self.data.record(),
        }
