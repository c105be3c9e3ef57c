"""A workspace after some nights: data that grow, a member a night, versions registered, judged and with passports."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.numpy import load_file, save_file

from segmill import tracking
from segmill.data.versioning.dvc_adapter import repository
from segmill.data.versioning.repository import commit_files, git_commit
from segmill.ensembling.predict import Ensemble
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.weights import Weights
from segmill.params import Params, read_params
from segmill.params_change import set_params
from segmill.promotion import passport, registry, signing
from segmill.promotion.golden import Golden
from segmill.promotion.keys import signing_key, trusted_keys
from segmill.promotion.ledger import Ledger, workspace_ledger
from segmill.promotion.moves import waits
from segmill.promotion.rows import Entry, LedgerRow
from segmill.promotion.signers import ensure_signer
from segmill.promotion.versions import verified_copy
from segmill.retention.plan import DAY_S
from segmill.workspace import Workspace
from tasks.collect import Collected, collect
from tasks.inputs import write_settings
from tasks.register import model_name
from tasks.stage import bring_up_to_date
from tasks.version import version as bring_version
from tests.promotion.test_passport import made

ACTIONS = ("promote", "refuse", "promote", "promote", "refuse", "await")  # of versions 1 to 6
LATER_S = 30 * DAY_S
STAGES = ("validate", "prepare", "augment", "finetune@net", "ensemble", "evaluate")
CLASSES = [{"id": number, "name": name, "color": "#000000"} for number, name in enumerate("abcde")]


@dataclass
class Nights:
    """The workspace, and what its nights were: version -> data version."""

    workspace: Workspace
    data: dict[str, str] = field(default_factory=dict)

    @property
    def params(self) -> Params:
        return read_params(self.workspace.params)

    @property
    def uri(self) -> str:
        return tracking.address(self.workspace.root, self.params.mlflow.tracking_uri)

    @property
    def model(self) -> str:
        return model_name(self.workspace, self.params)

    @property
    def ledger(self) -> Ledger:
        return workspace_ledger(self.workspace.root)

    def prepare(self) -> None:
        """Leave one tiny member in params.yaml, and sign from here on."""
        yaml = YAML()
        params = yaml.load(self.workspace.params)
        net = {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003}
        yaml.dump({**params, "members": {"net": net}}, self.workspace.params)
        set_params(self.workspace.params, ["prepare.size_px=[32, 32]"])
        ensure_signer(self.workspace.root)

    def night(self, number: int, action: str, *, data: bool, member_of: str | None = None) -> LedgerRow:
        """Do what a night does, with outs that nothing computed: real members, but untrained, and text for pixels.

        Args:
            number: another one gives another member.
            action: the row that the ledger gets.
            data: an image is added before.
            member_of: the data version that the member says it was trained on; None: the one of this night.
        """
        if data:
            add_image(self.workspace, number)
        params = self.params
        found = bring_version(self.workspace, params)
        bring_up_to_date(self.workspace, "fingerprint", params)
        for stage in STAGES:
            write_settings(self.workspace, params, stage)
        write_pixels(self.workspace, found.md5)
        write_member(self.workspace.member("net"), number, member_of or found.md5)
        write_ensemble(self.workspace)
        for name in ("metrics.json", "counts.npz", "examples.npz"):
            self.workspace.reports.mkdir(exist_ok=True)
            (self.workspace.reports / name).write_text(f'{{"night": {number}, "what": "{name}"}}')
        with repository(self.workspace.root) as repo:
            for stage in STAGES:
                repo.stage(stage).record()
            repo._repo.push(run_cache=True)
        commit_files(self.workspace.root, f"night {number}")
        return self._register(found.md5, action)

    def _register(self, data_version: str, action: str) -> LedgerRow:
        root, model = self.workspace.root, self.model
        artifacts = (root / "mlartifacts").as_uri()
        with tracking.open_run(
            self.uri, model, f"data {data_version[:8]}", ["net"], self.workspace.unsent, artifacts=artifacts
        ) as run:
            tags = {"data_version": data_version, "git_commit": git_commit(root), "test_miou": "0.2"}
            number = registry.register(
                self.uri, run.id, self.workspace.ensemble, model, key=signing_key(), tags=tags,
                golden=golden(self.workspace.ensemble),
            )  # fmt: skip
            registry.set_alias(self.uri, model, registry.CHALLENGER, number)
            tracking.set_tags(self.uri, run.id, {"model": model, "version": number})
            with tempfile.TemporaryDirectory() as folder:
                shutil.copyfile(root / "dvc.lock", Path(folder) / "dvc.lock")
                tracking.log_artifacts(self.uri, run.id, Path(folder), "pipeline")
            row = self.judge(number, action)
            self._issue(number, run.id, row, data_version)
        self.data[number] = data_version
        return row

    def judge(self, number: str, action: str) -> LedgerRow:
        """Append a verdict, and move MLflow's alias as the ledger says."""
        from tasks.promote import mirrored

        decision = {"promote": "PASS", "await": "PASS"}.get(action, "FAIL")
        facts = waits("one", 7) if action == "await" else {}
        entry = Entry(action=action, version=number, decision=decision, reasons=["a reason"], facts=facts)
        with mirrored(self.workspace, self.params, self.uri, self.ledger, self.model):
            return self.ledger.append(self.ledger.begin(self.model), entry)

    def _issue(self, number: str, run_id: str, row: LedgerRow, data_version: str) -> None:
        known = registry.read_version(self.uri, self.model, number)
        with tempfile.TemporaryDirectory() as name:
            folder, page = Path(name), Path(name) / "page.html"
            page.write_text(f"<p>the report of version {number}")
            ledger = passport.VerdictRow(number=row.number, hash=row.hash)
            own = made(
                model=self.model, version=number, run_id=run_id, registered_by=known.run_id,
                ensemble_sha256=known.tags[registry.DIGEST_TAG], manifest_sha256=passport.manifest_of(known.tags),
                report_sha256=hashlib.sha256(page.read_bytes()).hexdigest(),
                data=made().data.model_copy(update={"version": data_version}),
                verdict=made().verdict.model_copy(
                    update={"ledger": ledger, "reasons": row.reasons, "facts": row.facts, "decision": row.decision}
                ),
            )  # fmt: skip
            passport.issue(own, page, signing_key(), folder)
            passport.store(self.uri, folder, model=self.model, version=number)


def golden(ensemble: Path) -> Golden:
    """Return a black image with what the ensemble predicts of it."""
    image_HWC = np.zeros((64, 64, 3), np.uint8)
    return [(image_HWC, Ensemble.load(ensemble).predict(image_HWC[None])[0])]


def add_image(workspace: Workspace, number: int) -> None:
    """Put another image with its mask into the labelled set, in a group of one that is there."""
    raw = workspace.root / "data" / "raw"
    first = min((raw / "images").rglob("*.*"))
    mask = next((raw / "masks").rglob(f"{first.stem}.png"))
    pixels = np.random.default_rng(number).integers(0, 256, np.asarray(Image.open(first)).shape, dtype=np.uint8)
    name = f"{first.stem.rpartition('_f')[0]}_f9{number:02}.png"
    Image.fromarray(pixels).save(first.with_name(name))
    shutil.copyfile(mask, mask.with_name(name))


def write_pixels(workspace: Workspace, data_version: str) -> None:
    """Write something as the outs of validate, prepare and augment that changes with the data version alone."""
    for path in (workspace.manifest, workspace.packed / "train" / "images.bin", workspace.augmented / "recipe.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(f"{path.name} of {data_version if path.name != 'recipe.json' else 'all'}\n" * 100)


_first: dict[str, Any] = {}


def write_member(folder: Path, number: int, data_version: str) -> None:
    """Write a real, untrained member whose weights are other ones for every ``number``."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    spec = MemberSpec("net", "mobilenetv3_small_050", "fpn", len(CLASSES), decoder_width=0.25)
    save_member(
        folder, _first.setdefault("net", build(spec)), spec, weights=Weights("none", None, None), params={},
        data_version=data_version, metrics={"val_miou": 0.2}, curves=[{"epoch": 1, "loss": 1.5, "val_miou": None}],
    )  # fmt: skip
    weights = load_file(folder / "weights.safetensors")
    name = max(weights, key=lambda one: weights[one].size)
    weights[name] = weights[name] + np.float32(number) / 100
    (folder / "weights.safetensors").unlink()
    save_file(weights, folder / "weights.safetensors")


def write_ensemble(workspace: Workspace) -> None:
    """Write the ensemble of the one member."""
    shutil.rmtree(workspace.ensemble, ignore_errors=True)
    shutil.copytree(workspace.member("net"), workspace.ensemble / "members" / "net")
    facts = {"format": 1, "classes": CLASSES, "ignore_id": 255, "weights": {"net": 1.0}, "flips": False}
    (workspace.ensemble / "ensemble.json").write_text(json.dumps(facts))


@pytest.fixture(scope="session")
def made_nights(tmp_path_factory: pytest.TempPathFactory, street: Path) -> Iterator[tuple[Nights, Path]]:
    """A workspace after six nights, with new data every second one, and a copy of its folder. MLflow keeps paths."""
    from flows.commands.start import create

    folder = tmp_path_factory.mktemp("nights")
    nights = Nights(create(folder / "workspace", street))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # the database's file is replaced between tests
        nights.prepare()
        for number, action in enumerate(ACTIONS, 1):
            nights.night(number, action, data=number % 2 == 0)
        copy_whole(nights.workspace.root, folder / "copy")
        yield nights, folder / "copy"


@pytest.fixture
def nights(made_nights: tuple[Nights, Path]) -> Nights:
    """The workspace as it was after the last night, at the path where MLflow knows its files."""
    return as_made(made_nights)


def as_made(made_nights: tuple[Nights, Path]) -> Nights:
    """Bring the workspace back as it was after the last night."""
    nights, copy = made_nights
    shutil.rmtree(nights.workspace.root)
    copy_whole(copy, nights.workspace.root)
    return Nights(nights.workspace, dict(nights.data))


def copy_whole(folder: Path, to: Path) -> None:
    """Copy a folder with its times, its links, and the hard links among its files."""
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True)


def later(nights: Nights, *, dry_run: bool = False) -> Collected:
    """Collect as if it were a month later."""
    return collect(nights.workspace, nights.params, dry_run=dry_run, now_s=time.time() + LATER_S)


def keeping(nights: Nights, **keep: Any) -> Nights:
    """Set keys of the block `keep`."""
    set_params(nights.workspace.params, [f"keep.{key}={value}" for key, value in keep.items()])
    return nights


def loads(nights: Nights, version: str) -> dict[str, Any]:
    """Let a version predict from a verified copy; it raises where it can't."""
    with verified_copy(nights.uri, nights.model, version, trusted_keys(nights.workspace.root)) as folder:
        ids_BHW = Ensemble.load(folder / signing.ENSEMBLE).predict(np.zeros((1, 64, 64, 3), np.uint8))
        assert ids_BHW.shape == (1, 64, 64)
    return {}
