"""The code that counts for a stage is the code that its computation runs; a reason stands beside each other module."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import segmill
from segmill.fingerprint import fingerprints, reached_modules
from tasks.inputs import COMPUTATIONS

SOURCE = Path(segmill.__file__).parent
NETWORK, SVM = "finetune-network", "finetune-svm"

# Modules that a computation reaches, and of which no function ran in the golden run below: why each counts.
SETTINGS, ERRORS = "values alone", "what is raised"
MACHINE = "batch_size: auto and compile: auto alone"
SAVING = "in a module with loading: a member that is saved"
TRAINING = "in a module with the network: a member that trains"
REASONS: dict[str, dict[str, str]] = {
    "validate": {
        "errors": ERRORS,
        "data.schema.mask_values": "in the processes that open the files",
        "data.storage.images": "in the processes that open the files",
    },
    "prepare": {"errors": ERRORS, "data.packing.packed": "the layout of a packed split: values alone"},
    "augment": {
        "errors": ERRORS,
        "data.loading.presets": SETTINGS,
        "data.loading.augmentation": "recipes that params.yaml writes out, which are tried",
    },
    NETWORK: {
        "errors": ERRORS,
        "train_settings": SETTINGS,
        "training.settings": SETTINGS,
        "cluster.memory": MACHINE,
        "training.measure.batch_size": MACHINE,
        "training.measure.compiling": MACHINE,
        "user_cache": MACHINE,
        "training.measure.rehearsal": MACHINE,
        "training.checkpoint": "a training that resumes",
        "training.warm_start": "a training that begins with the champion",
    },
    SVM: {
        "errors": ERRORS,
        "svm_settings": SETTINGS,
        "cluster.memory": "a fit that the memory does not hold",
        "models.precision": SAVING,
    },
    "ensemble": {
        "errors": ERRORS,
        "ensembling.job": SETTINGS,
        "anomaly.policy": SETTINGS,
        "anomaly.features": "a network that votes",
        "anomaly.watching": "a network that votes",
        "files": SAVING,
        "models.curves": SAVING,
        "models.weights": SAVING,
        "models.gradient_checkpointing": TRAINING,
    },
    "evaluate": {
        "errors": ERRORS,
        "anomaly.policy": SETTINGS,
        "anomaly.features": "a detector that goes by features",
        "anomaly.watching": "a detector that goes by a network's logits or features",
        "files": SAVING,
        "models.curves": SAVING,
        "models.weights": SAVING,
        "models.gradient_checkpointing": TRAINING,
    },
}

# Modules that a computation's code must hold, by their beginning, and those it must not.
HOLDS = {
    "validate": ("data.validation.checks", "data.validation.leaks", "data.splitting.splits", "data.storage.images"),
    "prepare": ("data.packing.pack", "data.packing.shards", "data.packing.resizing", "enhancement"),
    "augment": ("data.loading.augmentation", "data.loading.extras", "data.loading.pasting"),
    NETWORK: ("training.loop", "training.losses", "training.muon", "models.networks", "data.loading.batches"),
    SVM: ("training.svm.fitting", "training.svm.pixels", "models.svm.features", "models.svm.member"),
    "ensemble": ("ensembling.select", "ensembling.predict", "models.members", "models.svm.member", "metrics.counts"),
    "evaluate": (
        "evaluation.scoring",
        "data.packing.sealed",
        "ensembling.predict",
        "models.members",
        "models.svm.member",
        "metrics.scores",
    ),
    "shards": ("data.packing.shards", "data.packing.resizing", "data.storage.images", "enhancement"),
}
# What watches, starts, records or shows a run: no result depends on it.
AROUND = (
    "alongside", "cluster.connection", "cluster.resources", "cluster.waiting", "cluster.work", "data.ingest",
    "data.versioning", "progress", "promotion", "tracking", "training.distributed", "tuning", "workspace",
)  # fmt: skip
LACKS = {
    "validate": ("models", "training", "data.packing", "reports"),
    "prepare": ("data.packing.sealed", "models", "training", "data.loading", "data.validation", "reports"),
    "augment": ("data.packing.sealed", "models", "training", "data.validation", "data.storage.images", "reports"),
    NETWORK: (
        "data.packing.sealed",
        "data.loading.presets",
        "models.svm",
        "training.svm",
        "data.storage",
        "data.packing.pack.",
        "data.validation",
        "ensembling",
        "reports",
    ),
    SVM: (
        "data.packing.sealed",
        "training.losses",
        "training.loop",
        "training.muon",
        "models.networks",
        "data.loading.augmentation",
        "data.loading.batches",
        "data.loading.presets",
        "data.storage",
        "reports",
    ),
    "ensemble": ("data.packing.sealed", "training", "data.loading", "data.storage", "evaluation", "reports"),
    "evaluate": (
        "training",
        "data.storage",
        "data.validation",
        "data.packing.shards",
        "data.loading",
        "reports",
    ),
    "shards": ("data.packing.sealed", "models", "training", "data.loading", "data.packing.pack."),
}


@pytest.fixture(scope="module")
def code() -> dict[str, list[str]]:
    """Return, by computation, the modules and files that its code holds, without ``segmill.`` before them."""
    return {name: [one.removeprefix("segmill.").removeprefix("segmill/") for one in reached_modules(text)]
            for name, text in fingerprints(COMPUTATIONS).items()}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_a_computation_holds_what_it_must_and_lacks_what_it_must_not(code: dict[str, list[str]], name: str) -> None:
    held = [f"{one}." for one in code[name]]
    assert [one for one in HOLDS[name] if f"{one}." not in held] == []
    assert [one for one in held if one.startswith((*AROUND, *LACKS[name]))] == []


@contextmanager
def modules_that_run() -> Iterator[set[str]]:
    """Collect the modules of which a function runs inside the block, in this process."""
    files: set[str] = set()
    before = sys.getprofile()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_flags & 1:  # optimised: a function, no module and no class body
            files.add(frame.f_code.co_filename)

    ran: set[str] = set()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
        paths = [Path(file) for file in files if file.startswith(f"{SOURCE}{os.sep}") and file.endswith(".py")]
        inside = [path.relative_to(SOURCE) for path in paths]
        ran |= {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in inside}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the modules that run in one small golden run of each computation: street scenes through all stages.

    The network has every part that a decoder can have, and every loss; muon moves its weights.
    """
    import timm
    import torch

    from segmill.anomaly.policy import AnomalyPolicy
    from segmill.data.ingest.builtin import write_street
    from segmill.data.loading.extras import make_extras
    from segmill.data.loading.policy import Policy, read_policy
    from segmill.data.loading.recipes import settle_policy
    from segmill.data.packing.pack import pack
    from segmill.data.packing.packed import read_pack
    from segmill.data.packing.resizing import Resizing
    from segmill.data.packing.shards import Preparation
    from segmill.data.splitting.shares import SplitShares
    from segmill.data.validation.checks import validate_dataset
    from segmill.ensembling.job import EnsembleJob
    from segmill.ensembling.select import build_ensemble
    from segmill.evaluation.scoring import evaluate
    from segmill.svm_settings import SvmSettings
    from segmill.train_settings import NetworkSettings, TrainSettings
    from segmill.training.clock import Rank
    from segmill.training.job import TrainData, TrainJob, Workers
    from segmill.training.svm.fitting import fit_svm
    from segmill.training.svm.job import SvmJob
    from segmill.training.train import Callbacks, save, train

    root = tmp_path_factory.mktemp("golden")
    start = f"file:{root / 'encoder.pth'}"
    torch.save(timm.create_model("test_efficientnet").state_dict(), root / "encoder.pth")
    raw, manifest, packed, augmented = (root / name for name in ("raw", "manifest.parquet", "packed", "augmented"))
    shares = SplitShares(0.15, 0.15, 0)
    write_street(raw, count=60, size=(64, 64), seed=0)
    for name in [one for text in fingerprints(COMPUTATIONS).values() for one in reached_modules(text)]:
        if "/" not in name:
            importlib.import_module(name)  # what runs at import proves nothing

    def augment() -> None:
        augmented.mkdir()
        policy = settle_policy("driving")
        shares_of_train = {"copy_paste": 0.2, "oversample": 0.2, "rare_below": 0.3}
        made = make_extras(packed, augmented / "extra", **shares_of_train, seed=0, mirror=True, jobs=1)
        assert min(made.values()) > 0
        replace(policy, extra=made).write(augmented / "recipe.json")

    def finetune_network() -> None:
        data = TrainData(
            packed_dir=packed,
            extra_dir=augmented / "extra",
            policy=read_policy(augmented / "recipe.json"),
            size_px=(64, 64),
        )
        network = NetworkSettings(
            backbone="test_efficientnet", decoder="unet", weights=start, lr=0.003, decoder_width=0.25, attention="se",
            context="nonlocal", aux_heads={"boundary": 0.2, "distance": 0.2, "presence": 0.2}, deep_supervision=0.3,
            head_weights="learned", keep_heads=False,
        )  # fmt: skip
        losses = dict.fromkeys(("ce", "focal", "dice", "tversky", "lovasz", "boundary"), 1.0)
        settings = TrainSettings(
            epochs=2, batch_size=8, optimizer="muon", loss=losses, ema_decay=0.9, freeze_epochs=1,
            gradient_checkpointing=True, precision="fp32",
        )  # fmt: skip
        job = TrainJob(
            name="net", network=network, train=settings, data=data, split=shares, data_version="", workers=Workers(),
            out_dir=root / "net", runs_dir=root, progress_path=root / "p", curves_path=root / "c", failure_path=None,
            inputs_hash="",
        )  # fmt: skip
        save(train(job, rank=Rank(0, 1), device=torch.device("cpu"), resume_from=None, callbacks=Callbacks()))

    def finetune_svm() -> None:
        fit_svm(SvmJob(
            name="svm", settings=SvmSettings(features=("colour", "spatial", "cnn"), backbone="test_efficientnet",
                                             pixels=1000, components=10, weights=start, gamma="auto", c=1.0, seed=0,
                                             max_minutes=None),
            packed_dir=packed, policy=Policy("none", 1, [], ""), split=shares, data_version="",
            out_dir=root / "svm", progress_path=root / "p", curves_path=root / "c",
        ))  # fmt: skip

    how = Preparation(Resizing((64, 64)), grayscale=False, clahe=1.0)
    members = {name: root / name for name in ("net", "svm")}
    ensemble, reports = root / "ensemble", root / "reports"
    steps: Mapping[str, Callable[[], object]] = {
        "validate": lambda: validate_dataset(raw, manifest, shares=SplitShares(0.15, 0.15, 0), jobs=1),
        "prepare": lambda: pack(
            raw, manifest, packed, train=how, calibration=["street_s0003", "street_s0004"], by="group", jobs=1
        ),
        "augment": augment,
        NETWORK: finetune_network,
        SVM: finetune_svm,
        "ensemble": lambda: build_ensemble(
            EnsembleJob(
                member_dirs=members,
                packed_dir=packed,
                out_dir=ensemble,
                tta_hflip=True,
                anomaly=AnomalyPolicy(0.1, by="group"),
            )
        ),
        "evaluate": lambda: evaluate(ensemble, packed, reports, examples=1),
    }
    found: dict[str, set[str]] = {}
    for name, step in steps.items():
        with modules_that_run() as found[name]:
            step()
    assert read_pack(packed).samples["train"] > 0 and (reports / "metrics.json").is_file()
    return found


@pytest.mark.slow  # the golden run is traced line by line: minutes
@pytest.mark.parametrize("name", [name for name in COMPUTATIONS if name != "shards"])
def test_every_module_that_counts_ran_or_has_its_reason(
    code: dict[str, list[str]], ran: dict[str, set[str]], name: str
) -> None:
    modules = {one for one in code[name] if "/" not in one}
    assert modules - ran[name] == set(REASONS[name])
    assert ran[name] <= modules, "what ran counts"


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., set[str]]:
    """Change files of a copy of the real source, each by a function of its text; say whose code changed."""
    program = (
        "import json, sys; from segmill.fingerprint import fingerprints; "
        "print(json.dumps(fingerprints(json.loads(sys.argv[1]))))"
    )

    def fingerprints_of_copy() -> dict[str, str]:
        command = [sys.executable, "-c", program, json.dumps(COMPUTATIONS)]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def change(edit: Callable[[str], str], *names: str) -> set[str]:
        if not (tmp_path / "segmill").exists():
            shutil.copytree(SOURCE, tmp_path / "segmill", ignore=shutil.ignore_patterns("__pycache__"))
        before = fingerprints_of_copy()
        for name in names:
            path = tmp_path / "segmill" / name
            text = path.read_text()
            path.write_text(edit(text))
            assert path.read_text() != text, name
        after = fingerprints_of_copy()
        return {name for name in before if before[name] != after[name]}

    return change


def a_statement_more(text: str) -> str:
    return f"{text}\nEDITION = 2\n"


def test_what_watches_starts_records_or_shows_a_run_retrains_nothing(changed: Callable[..., set[str]]) -> None:
    around = (
        "tracking.py", "progress.py", "workspace.py", "params.py", "promotion/registry.py",
        "promotion/ledger.py", "training/distributed/launch.py", "training/distributed/worker.py",
        "cluster/connection.py", "cluster/waiting.py", "cluster/work.py", "data/versioning/versions.py",
        "data/validation/issues_page.py",
        "reports/checks_page.py", "reports/audit_page.py", "reports/checks.html.jinja", "evaluation/report.py",
        "reports/evaluation_page.py", "reports/evaluation.html.jinja", "reports/run_facts.py",
    )  # fmt: skip
    assert changed(a_statement_more, *around) == set()
    assert changed(lambda text: text.replace("lower ", "reduce "), "training/train.py", "models/members.py") == set()


def test_scoring_counts_for_evaluate_alone_and_a_loss_for_networks_alone(changed: Callable[..., set[str]]) -> None:
    assert changed(a_statement_more, "evaluation/scoring.py") == {"evaluate"}
    assert changed(a_statement_more, "training/losses.py", "training/muon.py") == {NETWORK}
    assert changed(a_statement_more, "training/svm/pixels.py") == {SVM}
    assert changed(a_statement_more, "models/decoders.py") == {NETWORK, "ensemble", "evaluate"}
