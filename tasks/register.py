"""Step register: log what was measured and put the ensemble into MLflow's registry as `challenger`. Idempotent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segmill import tracking
from segmill.anomaly.detector import load_detector
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.data.packing.sealed import open_part
from segmill.data.schema.manifest import read_dataset_info
from segmill.data.versioning.cloning import source_of
from segmill.data.versioning.history import log_path
from segmill.data.versioning.publishing import publish
from segmill.data.versioning.repository import commit_contents, commits_runs, git_commit
from segmill.monitoring import usual
from segmill.monitoring.statistics import EMBEDDING
from segmill.params import Params
from segmill.params_text import yaml_without_passwords
from segmill.promotion import lease, registry
from segmill.promotion.golden import Golden
from segmill.promotion.keys import TRUSTED, signing_key
from segmill.workspace import Workspace
from tasks.stage import Outcome, recorded_stages
from tasks.version import packed_version

GOLDEN = 2  # images that a version is checked with before it serves
USUAL = 1000  # images of whose statistics the service's are compared with
PIPELINE_FILES = "pipeline"  # the folder of a run's artifacts with params.yaml, dvc.yaml and dvc.lock


@dataclass(frozen=True)
class RunInputs:
    """What a run was begun with, kept from its beginning: the files may be edited while it trains.

    ``model``: the registered model's name; ``params_yaml`` and ``pipeline_yaml``: the text of params.yaml and
    dvc.yaml; ``data_records``: what git has of the data, by path; ``git_commit``: where the workspace stood.
    """

    model: str
    params_yaml: str
    pipeline_yaml: str
    data_records: dict[str, bytes]
    git_commit: str


@dataclass(frozen=True)
class Registered:
    """A version of the registered model.

    ``git_commit``: what the run was made from, as ``git_commit`` names it. ``missing``: the members of params.yaml
    that failed in this run and are not in it, and why.
    """

    model: str
    version: str
    git_commit: str = "none"
    missing: dict[str, str] = field(default_factory=dict)


def missing_sentences(missing: Mapping[str, str]) -> list[str]:
    """Say of each member that failed that it is not in the ensemble, and why."""
    return [f"Member {name} failed and is not in the ensemble: {why}." for name, why in missing.items()]


def run_inputs(workspace: Workspace, params: Params, params_yaml: str) -> RunInputs:
    """Return what to keep of the workspace when a run begins; the data are there already."""
    record, log = f"{params.data.path}.dvc", log_path(workspace.root / params.data.path)
    return RunInputs(
        model=model_name(workspace, params),
        params_yaml=params_yaml,
        pipeline_yaml=workspace.pipeline.read_text(),
        data_records={
            str(path.relative_to(workspace.root)): path.read_bytes()
            for path in (workspace.root / record, log)
            if path.is_file()
        },
        git_commit=git_commit(workspace.root),
    )


def register(
    workspace: Workspace, params: Params, run: tracking.Run, outcomes: list[Outcome], inputs: RunInputs
) -> Registered:
    """Commit the run's inputs; log metrics and the pipeline's files; register the ensemble as challenger.

    What is recorded is what ran: the data version that the packed splits were made from, and the files as they were
    when the run began. An ensemble with the same bytes keeps its version.

    Raises InfrastructureError where MLflow does not answer, LeaseLost where another run took over the lease of this
    one; in a clone of a source, to which outs and commits are sent first, as ``publish``.
    """
    metrics = json.loads(workspace.metrics.read_text())
    model = inputs.model
    lock = recorded_stages(workspace)
    lineage = _lineage(workspace, params, inputs, lock) | {
        "git_commit": _commit(workspace, params, inputs, lock, outcomes)
    }
    lease.refuse_lost_of(model)
    version = registry.register(
        run.uri,
        run.id,
        workspace.ensemble,
        model,
        key=signing_key(),
        tags={**lineage, "test_miou": str(metrics["ensemble"]["miou"])},
        golden=_golden(workspace, params),
        files={usual.FILE: _usual_images(workspace)},
    )
    registry.set_alias(run.uri, model, registry.CHALLENGER, version)
    for name, run_id in run.members.items():
        _log_member(workspace, run.uri, run_id, name, metrics["members"][name], lineage["data_version"])
    stages = {f"stage.{outcome.stage}": f"{outcome.state}: {outcome.why}" for outcome in outcomes}
    tracking.set_tags(run.uri, run.id, {**lineage, "model": model, "version": version, **stages})
    tracking.log_params(
        run.uri,
        run.id,
        params.model_dump(exclude={"members", "mlflow", "prefect", "ray", "git", "schedule", "keep", "serving"}),
    )
    logged = registry.logged_model(run.uri, model, version)
    tracking.log_metrics(run.uri, run.id, _flat(metrics["ensemble"]), model=logged)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "params.yaml": yaml_without_passwords(inputs.params_yaml).encode(),
            "dvc.yaml": inputs.pipeline_yaml.encode(),
            "dvc.lock": lock,
        }
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tracking.log_artifacts(run.uri, run.id, Path(folder), PIPELINE_FILES)
    return Registered(model, version, lineage["git_commit"])


def model_name(workspace: Workspace, params: Params) -> str:
    """Return ``segmill-`` and the data set's name: of the registered model and of the experiment."""
    return f"segmill-{read_dataset_info(workspace.root / params.data.path).name}"


def _lineage(workspace: Workspace, params: Params, inputs: RunInputs, lock: bytes) -> dict[str, str]:
    """Return the tags that lead from a version back to all it was made from."""
    import hashlib
    from importlib.metadata import version

    code = b"".join(path.read_bytes() for path in sorted(path for path in workspace.code.rglob("*") if path.is_file()))
    return {
        "data_version": packed_version(workspace, params),
        # Of what is uploaded: a hash of the text with its password would let others try passwords.
        "params_sha256": hashlib.sha256(yaml_without_passwords(inputs.params_yaml).encode()).hexdigest(),
        "code_sha256": hashlib.sha256(code).hexdigest(),
        "dvc_lock_sha256": hashlib.sha256(lock).hexdigest(),
        "segmill_version": version("segmill"),
    }


def _commit(workspace: Workspace, params: Params, inputs: RunInputs, lock: bytes, outcomes: list[Outcome]) -> str:
    """Commit what the run was made from, where that is wanted; return the commit, with ``-dirty`` where there is none.

    None is made where somebody committed since the run began: a commit of older contents would undo that.
    """
    wanted = commits_runs(workspace.root) if params.git.commit is None else params.git.commit
    if not wanted or inputs.git_commit == "none":
        return inputs.git_commit
    ignored = [folder / ".gitignore" for folder in (workspace.root, workspace.packed.parent, workspace.ensemble.parent,
                                                    workspace.members)]  # fmt: skip
    also = [*ignored, workspace.root / TRUSTED]
    contents = {
        "params.yaml": inputs.params_yaml.encode(),
        "dvc.yaml": inputs.pipeline_yaml.encode(),
        "dvc.lock": lock,
        **inputs.data_records,
        **{str(path.relative_to(workspace.root)): path.read_bytes() for path in also if path.is_file()},
    }
    ran = [f"{one.stage}: {one.state} ({one.why})" for one in outcomes if one.state != "fresh"]
    title = f"retrain {inputs.model} on data {packed_version(workspace, params)[:8]}"
    onto = inputs.git_commit.removesuffix("-dirty")
    commit = commit_contents(workspace.root, contents, "\n".join([title, "", *ran]), onto=onto) or inputs.git_commit
    return publish(workspace.root) if source_of(workspace.root) else commit


def _golden(workspace: Workspace, params: Params) -> Golden:
    """Return a few small test images with what the evaluate stage predicted of them; none of a sealed group."""
    samples = open_part(PackedSplit(workspace.packed / "test"), params.split.sealed)
    with np.load(workspace.reports / "examples.npz", allow_pickle=False) as kept:
        smallest = sorted(kept.files, key=lambda index: (kept[index].size, int(index)))
        return [(samples.image(int(index)), kept[index]) for index in smallest[:GOLDEN]]


def _usual_images(workspace: Workspace) -> bytes:
    """Return the statistics of images that the version learned from, as the service will see such images.

    Images of train count where they are packed as they came, else those of val: resized ones differ in size and
    sharpness. Confidence and embeddings are those of the calibration images.
    """
    info, val = read_pack(workspace.packed), PackedSplit(workspace.packed / "val")
    as_it_came = not (info.grayscale or info.clahe) and (info.size is None or val.sizes() == [info.size])
    samples = PackedSplit(workspace.packed / "train") if as_it_came else val
    chosen = sorted({round(number) for number in np.linspace(0, len(samples) - 1, min(len(samples), USUAL))})
    groups = samples.groups
    images = (usual.KnownImage(samples.image(index), samples.mask(index), groups[index]) for index in chosen)
    found = usual.usual_images(images, info.class_names)
    detector = load_detector(workspace.ensemble)
    if detector and detector.group_N is not None and detector.confidence_N is not None:
        held_out = {"confidence": detector.confidence_N}
        if detector.embedding_NE is not None:
            held_out |= {f"{EMBEDDING}{number}": its for number, its in enumerate(detector.embedding_NE.T, 1)}
        found = usual.with_held_out(found, held_out, detector.group_N)
    return found.content()


def _log_member(
    workspace: Workspace, uri: str, run_id: str, name: str, scores: dict[str, Any], data_version: str
) -> None:
    """Log what the member folder knows, besides its curve, which is logged as it grows.

    ``data_version``: the run's. A member of an earlier run may be of another one whose training data are the same.
    """
    facts = json.loads((workspace.member(name) / "member.json").read_text())
    tracking.log_params(uri, run_id, facts["params"] | {"encoder_weights": facts["encoder_weights"]})
    trained = json.loads((workspace.member(name) / "metrics.json").read_text())
    lengths = {key: trained[key] for key in ("steps", "steps_per_epoch") if key in trained}
    tracking.log_metrics(uri, run_id, _flat(scores) | lengths)
    tags = {"data_version": data_version, "trained_on_data_version": facts["data_version"], "member": name}
    tracking.set_tags(uri, run_id, tags)


def _flat(scores: dict[str, Any]) -> dict[str, float | None]:
    """Return miou, mdice, accuracy and per-class IoU and Dice under names such as ``test/iou/car``."""
    flat: dict[str, float | None] = {f"test/{key}": scores[key] for key in ("miou", "mdice", "accuracy")}
    for kind in ("iou", "dice"):
        flat |= {f"test/{kind}/{label}": value for label, value in scores[kind].items()}
    return flat
