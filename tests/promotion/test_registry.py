"""The registry with a real MLflow: a version loads elsewhere, predicts the same, and holds no pickle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from registering import NAME, Registered

from segmill import tracking
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.sealed import sealed_rows
from segmill.ensembling.predict import Ensemble
from segmill.errors import InputError, SegmillError
from segmill.metrics.counts import confusion_counts
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.weights import Weights
from segmill.promotion import registry, versions
from segmill.promotion.registered import score_registered
from segmill.promotion.score_job import ScoreJob
from segmill.promotion.signing import ensemble_digest

# What somebody without this project's code would run; it prints one JSON object.
CONSUMER = """
import json, sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/segmill-street@champion")
images = np.load(sys.argv[1])
maps = model.predict(images)
mixed = model.predict([images[0], images[1, :33, :40], images[0, :, :, :1]])
both = model.predict(images, params={"probabilities": True})
probs = both["probabilities"]
listed = model.predict([images[1, :33, :40]], {"probabilities": True})
try:
    model.predict(images / 255)
except Exception as error:
    refusal = str(error)
np.save(sys.argv[2], maps)
import segmill
print(json.dumps({
    "maps": [str(maps.dtype), maps.shape],
    "mixed": [one.shape for one in mixed],
    "crop": bool((mixed[0] == maps[0]).mean() > 0.999),
    "both": [bool((both["classes"] == maps).all()), str(probs.dtype), probs.shape],
    "sum": float(np.abs(probs.sum(axis=1) - 1).max()),
    "listed": [listed["classes"][0].shape, listed["probabilities"][0].shape],
    "refusal": refusal,
    "code": segmill.__file__,
    "signature": model.metadata.signature.to_dict(),
}))
"""


@pytest.mark.long
@pytest.mark.slow
def test_loads_and_predicts_in_a_process_that_knows_nothing(
    registered: Registered, judging: Path, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    run = subprocess.run(
        [sys.executable, "-P", "-c", CONSUMER, str(tmp_path / "images.npy"), str(tmp_path / "maps.npy")],
        env=os.environ | {"MLFLOW_TRACKING_URI": registered.uri},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["maps"] == ["uint8", [2, 50, 70]]
    assert said["mixed"] == [[50, 70], [33, 40], [50, 70]] and said["crop"]
    assert said["both"] == [True, "float32", [2, 5, 50, 70]] and said["sum"] < 1e-5
    assert said["listed"] == [[33, 40], [5, 33, 40]]
    assert "not scaled to 0..1" in said["refusal"]
    assert said["code"].startswith(str(registered.artifacts)), "the model must bring its own code"
    assert '"shape": [-1, -1, -1, 3]' in said["signature"]["inputs"]
    assert json.loads(said["signature"]["params"])[0]["name"] == "probabilities"
    expected = Ensemble.load(judging / "ensemble").predict(images)
    assert (np.load(tmp_path / "maps.npy") == expected).mean() > 0.999


AUX_CONSUMER = """
import sys, mlflow.pyfunc, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
images = np.load(sys.argv[2])
answer = model.predict(images, params={"aux": True})
both = model.predict(images, params={"aux": True, "probabilities": True})
assert sorted(answer) == ["aux", "classes"] and sorted(both) == ["aux", "classes", "probabilities"]
assert (answer["classes"] == model.predict(images)).all() and (both["classes"] == answer["classes"]).all()
np.savez(sys.argv[3], **{f"{name}:{head}": one for name, heads in answer["aux"].items() for head, one in heads.items()})
"""


@pytest.mark.slow
@pytest.mark.long
def test_the_served_model_answers_the_auxiliary_heads_that_were_kept(tmp_path: Path) -> None:
    spec = MemberSpec("rich", "mobilenetv2_050", "fpn", 3, heads=("presence", "boundary"))
    save_member(
        tmp_path / "ensemble" / "members" / "rich", build(spec), spec, weights=Weights("none", None, None), params={},
        data_version="v1", metrics={}, curves=[], keep_heads=True,
    )  # fmt: skip
    classes = [{"id": index, "name": name, "color": "#000000"} for index, name in enumerate("abc")]
    facts = {"format": 1, "classes": classes, "ignore_id": 255, "weights": {"rich": 1.0}, "flips": False}
    (tmp_path / "ensemble" / "ensemble.json").write_text(json.dumps(facts))
    registry.save_model(tmp_path / "model", tmp_path / "ensemble")
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    arguments = [str(tmp_path / name) for name in ("model", "images.npy", "said.npz")]
    run = subprocess.run(
        [sys.executable, "-P", "-c", AUX_CONSUMER, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    expected = Ensemble.load(tmp_path / "ensemble").predict_aux(images)["rich"]
    with np.load(tmp_path / "said.npz") as said:
        assert set(said.files) == {"rich:presence", "rich:boundary"}
        for head, values in expected.items():
            assert said[f"rich:{head}"].shape == values.shape == ((2, 3) if head == "presence" else (2, 1, 50, 70))
            np.testing.assert_allclose(said[f"rich:{head}"], values, atol=0.02)


def test_holds_no_pickle_and_no_path_of_this_machine(registered: Registered, judging: Path) -> None:
    files = registered.files
    assert {"MLmodel", "served.py", "ensemble.json", "weights.safetensors"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc")]
    model = next(path for path in files if path.name == "MLmodel").read_text()
    assert str(judging) not in model and os.path.dirname(registry.__file__) not in model
    requirements = next(path for path in files if path.name == "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements) and any(line.startswith("torch==") for line in requirements)
    with zipfile.ZipFile(next(path for path in files if path.name == registry.CODE)) as code:
        names = code.namelist()
    assert "segmill/ensembling/predict.py" in names and not [name for name in names if name.endswith(".pyc")]
    assert len(files) < 30, "a store is asked for each"


def test_the_same_ensemble_is_registered_once(registered: Registered, judging: Path, tmp_path: Path) -> None:
    key = registered.key
    again = registry.register(registered.uri, registered.run_id, str(judging / "ensemble"), NAME, key=key)
    assert again == registered.version == "1"
    digest = ensemble_digest(judging / "ensemble")
    assert registry.find_version(registered.uri, NAME, digest) == "1"
    assert registry.find_version(registered.uri, NAME, "0" * 64) is None
    changed = tmp_path / "ensemble"
    shutil.copytree(judging / "ensemble", changed)
    facts = json.loads((changed / "ensemble.json").read_text())
    (changed / "ensemble.json").write_text(json.dumps(facts | {"flips": True}))
    assert registry.register(registered.uri, registered.run_id, changed, NAME, key=key) == "2"
    assert len(list(registered.artifacts.rglob("MLmodel"))) == 2, "one must not lie over the other"


def test_a_version_is_a_logged_model_of_its_run_with_its_metrics(registered: Registered) -> None:
    """So versions are compared on MLflow's pages."""
    uri, run_id = registered.uri, registered.run_id
    logged = registry.logged_model(uri, NAME, registered.version)
    tracking.log_metrics(uri, run_id, {"test/miou": 0.5, "test/iou/car": None}, model=logged)
    with tracking.reaching(uri) as client:
        model = client.get_logged_model(logged)
        run = client.get_run(run_id)
        version = client.get_model_version(NAME, registered.version)
    assert (model.status, model.source_run_id, model.model_type) == ("READY", run_id, "segmentation")
    assert {metric.key: metric.value for metric in model.metrics} == {"test/miou": 0.5}
    assert run.data.metrics["test/miou"] == 0.5
    assert logged in [output.model_id for output in run.outputs.model_outputs]
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": "1"}]
    assert model.tags["data_version"] == "v1" and version.source == model.artifact_location


def test_a_registration_that_was_cut_short_leaves_one_logged_model(
    registered: Registered, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(judging / "ensemble", tmp_path / "ensemble")
    (tmp_path / "ensemble" / "note.txt").write_text("another digest")
    digest = ensemble_digest(tmp_path / "ensemble")

    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(registry, "_make_sure_of", ends)
        registry.register(registered.uri, registered.run_id, tmp_path / "ensemble", NAME, key=registered.key)
    version = registry.register(registered.uri, registered.run_id, tmp_path / "ensemble", NAME, key=registered.key)
    with tracking.reaching(registered.uri) as client:
        experiment = client.get_run(registered.run_id).info.experiment_id
        (one,) = client.search_logged_models([experiment], f"tags.`{registry.DIGEST_TAG}` = '{digest}'")
    assert one.model_id == registry.logged_model(registered.uri, NAME, version)
    versions.fetch_verified(registered.uri, NAME, version, registered.trusted, to=tmp_path / "copy")


def test_aliases_move(registered: Registered) -> None:
    champion = registry.aliased(registered.uri, NAME, registry.CHAMPION)
    assert champion is not None
    assert (champion.version, champion.run_id) == (registered.version, registered.run_id)
    assert champion.tags["data_version"] == "v1"
    assert json.loads(champion.tags["classes"])[0] == "road"
    assert registry.aliased(registered.uri, NAME, registry.CHALLENGER) is None
    assert registry.aliased(registered.uri, "segmill-nothing", registry.CHAMPION) is None
    registry.set_alias(registered.uri, NAME, registry.CHALLENGER, registered.version)
    challenger = registry.aliased(registered.uri, NAME, registry.CHALLENGER)
    assert challenger is not None and challenger.version == registered.version
    registry.drop_alias(registered.uri, NAME, registry.CHALLENGER, "77")
    assert registry.aliased(registered.uri, NAME, registry.CHALLENGER) == challenger, "77 does not carry it"
    registry.drop_alias(registered.uri, NAME, registry.CHALLENGER, registered.version)
    registry.drop_alias(registered.uri, NAME, registry.CHALLENGER, registered.version)
    assert registry.aliased(registered.uri, NAME, registry.CHALLENGER) is None


def scoring(registered: Registered, version: str, packed_dir: Path) -> ScoreJob:
    return ScoreJob(
        uri=registered.uri, model_name=NAME, version=version, trusted=registered.trusted, packed_dir=packed_dir
    )


@pytest.mark.long
def test_a_registered_version_counts_as_its_ensemble_does(registered: Registered, judging: Path) -> None:
    (counts,) = score_registered(scoring(registered, registered.version, judging / "packed"))
    test = PackedSplit(judging / "packed" / "test")
    maps = Ensemble.load(judging / "ensemble").predict([test.image(i) for i in range(len(test))])
    expected = np.stack([confusion_counts(test.mask(i), ids, 5, 255) for i, ids in enumerate(maps)])
    assert counts.shape == expected.shape == (len(test), 5, 5)
    assert np.abs(counts - expected).sum() <= 0.002 * expected.sum()


@pytest.mark.slow
@pytest.mark.long
def test_what_a_version_predicts_is_kept_image_by_image(registered: Registered, judging: Path, tmp_path: Path) -> None:
    path, test = tmp_path / "new" / "predictions.npz", PackedSplit(judging / "packed" / "test")
    job = replace(scoring(registered, registered.version, judging / "packed"), predictions_path=path)
    (counts,) = score_registered(job)
    with np.load(path, allow_pickle=False) as kept:
        assert kept.files == [str(index) for index in range(len(test))]
        again = [confusion_counts(test.mask(index), kept[str(index)], 5, 255) for index in range(len(test))]
    np.testing.assert_array_equal(np.stack(again), counts)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.long
def test_predictions_of_sealed_groups_are_never_written(registered: Registered, judging: Path, tmp_path: Path) -> None:
    test = PackedSplit(judging / "packed" / "test")
    sealed = (test.groups[0],)
    job = replace(
        scoring(registered, registered.version, judging / "packed"),
        sealed=sealed,
        predictions_path=tmp_path / "all.npz",
    )
    (everything,), hidden_N = score_registered(job), sealed_rows(test.groups, sealed)
    shown = np.flatnonzero(~hidden_N)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as kept:
        assert kept.files == [str(number) for number in range(len(shown))]
        again = [confusion_counts(test.mask(index), kept[str(n)], 5, 255) for n, index in enumerate(shown)]
    np.testing.assert_array_equal(np.stack(again), everything[shown])
    (hidden,) = score_registered(replace(job, part="sealed", predictions_path=tmp_path / "sealed.npz"))
    assert hidden.shape == (hidden_N.sum(), 5, 5)
    assert np.abs(hidden - everything[hidden_N]).sum() <= 8 * len(hidden)
    with np.load(tmp_path / "sealed.npz", allow_pickle=False) as kept:
        assert kept.files == []
    (shown_alone,) = score_registered(replace(job, part="open", predictions_path=None))
    assert len(shown_alone) == len(shown) and np.abs(shown_alone - everything[shown]).sum() <= 8 * len(shown)


def test_a_version_of_other_classes_is_not_compared(registered: Registered, judging: Path, tmp_path: Path) -> None:
    shutil.copytree(judging / "packed", tmp_path / "packed")
    facts = json.loads((tmp_path / "packed" / "pack.json").read_text())
    facts["class_names"][0] = "motorway"
    (tmp_path / "packed" / "pack.json").write_text(json.dumps(facts))
    said = rf"Version {registered.version} of {NAME} can't be compared: it knows the class 'road'.*former_classes: "
    with pytest.raises(InputError, match=said):
        score_registered(scoring(registered, registered.version, tmp_path / "packed"))


@pytest.mark.long
@pytest.mark.slow
def test_a_version_of_other_classes_is_compared_as_dataset_yaml_says(
    registered: Registered, judging: Path, tmp_path: Path
) -> None:
    """Sky and road change places, and a class comes whose pixels were not labelled; masks and images stay."""
    (before,) = score_registered(scoring(registered, registered.version, judging / "packed"))
    shutil.copytree(judging / "packed", tmp_path / "packed")
    facts = json.loads((tmp_path / "packed" / "pack.json").read_text())
    road, sky, *rest = facts["class_names"]
    facts["class_names"] = [sky, road, *rest, "kerb"]
    (tmp_path / "packed" / "pack.json").write_text(json.dumps(facts))
    job = replace(
        scoring(registered, registered.version, tmp_path / "packed"),
        former_classes={"": ("kerb",)},
        predictions_path=tmp_path / "predictions.npz",
    )
    (counts,) = score_registered(job)
    assert counts.shape == (len(before), 6, 6) and not counts[:, 5].any() and not counts[:, :, 5].any()
    np.testing.assert_array_equal(counts[:, :5, :5], before[:, :, [1, 0, 2, 3, 4]])
    assert not (tmp_path / "predictions.npz").exists(), "its ids are of another class map"


def test_a_version_whose_files_are_gone_says_so(registered: Registered, judging: Path) -> None:
    with tracking.reaching(registered.uri) as client:
        tags = client.get_model_version(NAME, registered.version).tags
        lost = str(client.create_model_version(NAME, str(registered.artifacts / "gone"), tags=tags).version)
    versions.tag_version(registered.uri, NAME, lost, registered.key, "0" * 64)
    with pytest.raises(SegmillError, match=rf"version {lost} of {NAME} can't be fetched: .*No such file"):
        score_registered(scoring(registered, lost, judging / "packed"))
    with pytest.raises(InputError, match=f"{NAME} has no version 99"):
        versions.fetch_verified(registered.uri, NAME, "99", registered.trusted, to=judging / "unused")


def test_a_folder_that_is_no_ensemble(registered: Registered, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the ensemble stage first"):
        registry.register(registered.uri, registered.run_id, tmp_path, NAME, key=registered.key)


def test_the_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
        return ensemble_digest(folder)

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="12", b=""), digest(ab="12")}) == 4
