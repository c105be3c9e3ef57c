"""What is recorded: the losses and val mIoU of short trainings, and hashes of the arrays that the data stages make."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from segmill.data.ingest.builtin import write_street
from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.extras import make_extras
from segmill.data.loading.origins import read_origins
from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.resizing import Resizing
from segmill.data.packing.shards import Preparation
from segmill.data.schema.manifest import read_manifest
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.models import backbones, networks
from segmill.params import Params, parse_params
from segmill.training.clock import Rank
from segmill.training.job import Start, TrainData, TrainJob, Workers
from segmill.training.svm.fitting import fit_svm
from segmill.training.svm.job import SvmJob
from segmill.training.train import Callbacks, save, train
from tests.golden.recipes import COMMON, FILE, RECIPES, SMALL, START, SVM

STREET_PX = (64, 96)
SHARES = SplitShares(0.25, 0.25, 0)
# Not the files' hashes, and not what a later form of the manifest may add.
MANIFEST_COLUMNS = ("class_pixels", "group", "height", "id", "split", "width")
RECORDED = ("manifest", "stretch", "fit", "tile", "grey", "extras", "medical", "driving", "surveillance")


def make_street(folder: Path) -> Path:
    """Write the built-in street scenes, validate and pack them; return the folder with manifest and packed splits."""
    write_street(folder / "raw", count=30, size=STREET_PX, seed=0)
    validate_dataset(folder / "raw", folder / "manifest.parquet", shares=SHARES, jobs=1)
    pack(folder / "raw", folder / "manifest.parquet", folder / "packed", train=Preparation(Resizing((64, 64))))
    return folder


def train_recipe(recipe: str, street: Path, folder: Path) -> dict[str, list[float | None]]:
    """Train one of RECIPES on the packed street scenes on one thread; return ``loss`` of each step and
    ``val_miou`` of each epoch.

    ``folder`` takes the member. The recipe that begins with START trains that member first.
    """
    member = COMMON | RECIPES[recipe]
    start = None
    if member["weights"] == START:
        train_recipe("plain", street, folder / "start")
        start, member["weights"] = folder / "start" / "member", "none"
    if member["weights"] == FILE:
        member["weights"] = f"file:{_write_weights(folder / 'weights.safetensors')}"
    params = _params(member)
    losses: list[float | None] = []
    job = TrainJob(
        name="golden",
        network=params.network_of("golden"),
        train=params.training_of("golden"),
        data=TrainData(
            packed_dir=street / "packed",
            extra_dir=None,
            policy=settle_policy("driving"),
            size_px=params.prepare.size_px,
        ),
        split=SHARES,
        data_version="golden",
        start=Start(start, "start") if start else None,
        workers=Workers(),
        out_dir=folder / "member",
        runs_dir=folder / "runs",
        progress_path=folder / "progress.json",
        curves_path=folder / "curves.csv",
        failure_path=folder / "failed.npz",
        inputs_hash="golden",
    )
    callbacks = Callbacks(on_step=lambda step: losses.append(float(step.loss)))
    with _one_thread():
        trained = train(job, rank=Rank(), device=torch.device("cpu"), resume_from=None, callbacks=callbacks)
        save(trained)
    return {"loss": losses, "val_miou": [row["val_miou"] for row in trained.training.curves]}


def fit_classical(street: Path, folder: Path) -> dict[str, list[float | None]]:
    """Fit the classical member SVM on the packed street scenes; return its one ``loss`` and ``val_miou``."""
    folder.mkdir(parents=True, exist_ok=True)
    job = SvmJob(
        name="golden",
        settings=_params(SVM).svm_of("golden"),
        packed_dir=street / "packed",
        policy=settle_policy("driving"),
        split=SHARES,
        data_version="golden",
        out_dir=folder / "member",
        progress_path=folder / "progress.json",
        curves_path=folder / "curves.csv",
    )
    with _one_thread():
        metrics = fit_svm(job)
    return {"loss": [metrics["held_out_log_loss"]], "val_miou": [metrics["val_miou"]]}


def stage_hashes(street: Path, folder: Path) -> dict[str, str]:
    """Return a hash for each of RECORDED: what validate, prepare and augment make of the street scenes, decoded."""
    raw, manifest = street / "raw", street / "manifest.parquet"
    table = read_manifest(manifest)
    found = {"manifest": _hash(repr(table.select(MANIFEST_COLUMNS).to_pylist()).encode())}
    found["stretch"] = _packed_hash(street / "packed")
    ways = {
        "fit": Preparation(Resizing((64, 64), "fit", border_crop_px=(4, 2, 6, 10))),
        "tile": Preparation(Resizing((48, 48), "tile", overlap_px=16)),
        "grey": Preparation(Resizing((48, 80)), grayscale=True, clahe=2.0),
    }
    for name, how in ways.items():
        pack(raw, manifest, folder / name, train=how)
        found[name] = _packed_hash(folder / name)
    made = make_extras(
        street / "packed", folder / "extra", copy_paste=0.4, oversample=0.4, rare_below=0.08, seed=2, mirror=True
    )
    origins = [tuple(origin) for origin in read_origins(folder / "extra")]
    found["extras"] = _hash(repr((sorted(made.items()), origins)).encode(), *_samples(folder / "extra"))
    train = PackedSplit(street / "packed" / "train")
    for preset in ("medical", "driving", "surveillance"):
        augmenter = Augmenter(settle_policy(preset).transforms, (48, 64), 5, ignore_id=255)
        pixels = [
            array.tobytes()
            for index in range(8)
            for epoch in range(2)
            for array in augmenter(train.image(index), train.mask(index), epoch=epoch, sample=train.ids[index])
        ]
        found[preset] = _hash(*pixels)
    return found


def _params(member: dict[str, Any]) -> Params:
    blocks: dict[str, Any] = {name: {} for name in ("data", "split", "augment", "train", "ensemble", "evaluate")}
    return parse_params(blocks | {"prepare": {"size_px": [64, 64]}, "members": {"golden": member}}, "golden")


def _write_weights(path: Path) -> Path:
    """Write random weights of SMALL's encoder, always the same."""
    torch.manual_seed(11)
    encoder = networks.assemble(backbones.encoder_name(SMALL), "fpn", num_classes=2).encoder
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(encoder.state_dict(), path)
    return path


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out alike whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _packed_hash(folder: Path) -> str:
    return _hash(*(part for split in ("train", "val", "test") for part in _samples(folder / split)))


def _samples(folder: Path) -> Iterator[bytes]:
    split = PackedSplit(folder)
    for index in range(len(split)):
        yield repr((split.ids[index], split.groups[index], split.mask(index).shape)).encode()
        yield split.image(index).tobytes()
        yield split.mask(index).tobytes()


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
