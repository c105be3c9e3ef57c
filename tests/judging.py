"""What judging starts from, made once for all of its tests: packed scenes and two real, untrained members."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.ensembling.job import EnsembleJob
from segmill.ensembling.select import build_ensemble
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.weights import Weights

MEMBERS = {"small": ("mobilenetv2_050", "fpn"), "other": ("resnet18", "fpn")}
CURVES = [{"epoch": 1, "loss": 1.5, "val_miou": None}, {"epoch": 2, "loss": 1.0, "val_miou": 0.2}]


@pytest.fixture(scope="session")
def judging(tmp_path_factory: pytest.TempPathFactory, street: Path) -> Path:
    """A folder with packed/, members/NAME/ and ensemble/. Read only: copy what you change."""
    root = tmp_path_factory.getbasetemp() / "judging"
    if not root.exists():
        root.mkdir()
        validate_dataset(street, root / "manifest.parquet", shares=SplitShares(0.25, 0.4, 0))
        info = pack(street, root / "manifest.parquet", root / "packed")
        for seed, (name, (backbone, decoder)) in enumerate(MEMBERS.items()):
            torch.manual_seed(seed)
            spec = MemberSpec(name, backbone, decoder, info.num_classes, mean=info.mean, std=info.std)
            save_member(
                root / "members" / name,
                build(spec),
                spec,
                weights=Weights("none", None, None),
                params={},
                data_version="v1",
                metrics={"val_miou": 0.2, "epochs": 7},
                curves=CURVES,
            )
        folders = {name: root / "members" / name for name in MEMBERS}
        job = EnsembleJob(member_dirs=folders, packed_dir=root / "packed", out_dir=root / "ensemble", tta_hflip=False)
        build_ensemble(job)
    return root


# Widths of images in px. Where it changes, a batch ends: the test images without those of group g2 are five batches.
VARIED = {"test": (64, 64, 32, 64, 48, 48, 32, 32, 64), "val": (32, 64, 64)}


@pytest.fixture(scope="session")
def varied(judging: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed splits test and val of many batches, two images a group: g0, g1, ... Read only."""
    folder = tmp_path_factory.mktemp("varied")
    shutil.copyfile(judging / "packed" / "pack.json", folder / "pack.json")
    source = PackedSplit(judging / "packed" / "test")
    for split, widths in VARIED.items():
        with SplitWriter(folder / split) as writer:
            for number, width in enumerate(widths):
                image, mask = source.image(number % len(source)), source.mask(number % len(source))
                writer.add(Sample(f"s{number}", f"g{number // 2}", image[:, :width], mask[:, :width]))
    return folder
