"""The page of a run: it holds what was measured and its own pictures, and asks nobody."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.extras import make_extras
from segmill.data.loading.origins import read_origins
from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.evaluation import report
from segmill.evaluation.job import EvaluateJob
from segmill.evaluation.report_job import ReportJob, report_on_ray
from segmill.evaluation.scoring import read_counts, write_counts
from segmill.evaluation.shell import evaluate_on_ray
from segmill.metrics.intervals import Interval
from segmill.reports import evaluation_page
from segmill.reports.pictures import WRONG, overlay, palette
from tests.reports.pages import run_facts


class Pictures(HTMLParser):
    """Collects the pictures of a page by their description, decoded; ``loaded``: what a browser would fetch."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.found: dict[str, np.ndarray] = {}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {key: value or "" for key, value in attrs}
        self.loaded += [said[key] for key in ("src", "srcset") if key in said]
        if tag == "img":
            picture = Image.open(BytesIO(base64.b64decode(said["src"].partition("base64,")[2])))
            self.found[said["alt"]] = np.asarray(picture.convert("RGB"))


def text_of(page: Path) -> str:
    """Return what a page says, without its tags and style."""
    body = re.sub(r"<style>.*?</style>", " ", page.read_text(), flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def near(picture: np.ndarray, wanted: np.ndarray) -> bool:
    """Tell whether a JPEG shows ``wanted``: what it loses is little on the whole."""
    return picture.shape == wanted.shape and np.abs(picture.astype(int) - wanted.astype(int)).mean() < 8


@pytest.fixture(scope="module")
def trained(judging: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble/ whose members say how they were trained, and the augmented/ they were trained with."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(judging / "ensemble", root / "ensemble")
    for path in root.glob("ensemble/members/*/member.json"):
        params = {"train": {"seed": 5, "epochs": 9, "batch_size": 4}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"params": params}))
    shares = {"copy_paste": 0.1, "oversample": 0.5, "rare_below": 0.15}
    (root / "augmented").mkdir()
    made = make_extras(judging / "packed", root / "augmented" / "extra", **shares, seed=0, mirror=True)
    replace(settle_policy("driving"), extra=made).write(root / "augmented" / "recipe.json")
    return root


def of_run(judging: Path, trained: Path, reports_dir: Path, **own: Any) -> ReportJob:
    """Return the job of the page in ``reports_dir``, which no run but a made-up one belongs to."""
    facts = run_facts(
        trained=dict.fromkeys(("small", "other"), 54.0), member_links=dict.fromkeys(("small", "other"), "#")
    )
    plain: dict[str, Any] = {
        "reports_dir": reports_dir, "ensemble_dir": trained / "ensemble", "packed_dir": judging / "packed",
        "augmented_dir": trained / "augmented", "run": facts, "predictions": None,
    }  # fmt: skip
    return ReportJob(**plain | own)


@pytest.fixture(scope="module")
def scored(judging: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage evaluate leaves."""
    out_dir = tmp_path_factory.mktemp("reports")
    evaluate_on_ray(
        EvaluateJob(ensemble_dir=trained / "ensemble", packed_dir=judging / "packed", out_dir=out_dir, overlays=3)
    )
    return out_dir


@pytest.fixture(scope="module")
def page(judging: Path, trained: Path, scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("page")
    shutil.copytree(scored, out_dir, dirs_exist_ok=True)
    report_on_ray(of_run(judging, trained, out_dir))
    return out_dir


def test_what_is_measured_and_the_page_are_files_of_their_own(scored: Path, page: Path) -> None:
    measured = {"metrics.json", "counts.npz", "examples.npz"}
    assert {path.name for path in scored.iterdir()} == measured
    assert {path.name for path in page.iterdir()} == measured | {"index.html", "overview.png"}


def test_the_page_holds_its_pictures_and_loads_nothing(page: Path) -> None:
    pictures = Pictures(page / "index.html")
    kinds = [name.partition(" of ")[0] for name in pictures.found if " of street" in name][:12]
    assert kinds == ["image", "target", "prediction", "errors"] * 3
    assert [name for name in pictures.found if "by epoch" in name] == [
        "Training loss of each member by epoch", "mIoU on val, % of each member by epoch",
    ]  # fmt: skip
    assert all(re.match(r"data:image/(jpeg|png);base64,", link) for link in pictures.loaded)
    text = (page / "index.html").read_text()
    assert "@import" not in text and "url(" not in text and "<script" not in text and "<link" not in text


def test_the_overview_puts_worst_typical_and_best_under_one_another(page: Path) -> None:
    overview = np.asarray(Image.open(page / "overview.png"))
    example = next(one for name, one in Pictures(page / "index.html").found.items() if name.startswith("image of "))
    height, width = example.shape[:2]
    assert overview.shape == (3 * (height + 4) - 4, 4 * (width + 4) - 4, 3)
    assert near(example, overview[:height, :width])


def test_the_figures_are_shown_with_their_intervals(judging: Path, trained: Path, scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path, dirs_exist_ok=True)
    counts = read_counts(tmp_path / "counts.npz")
    for groups in (5, 2):
        write_counts(
            tmp_path / "counts.npz", replace(counts, groups=[f"g{place % groups}" for place in range(len(counts.ids))])
        )
        found = report_on_ray(of_run(judging, trained, tmp_path))
        metrics = json.loads((tmp_path / "metrics.json").read_text())["ensemble"]
        text = text_of(tmp_path / "index.html")
        assert set(found) == {"miou", "mdice", "accuracy"}
        for key, title in (("miou", "mIoU"), ("mdice", "mean Dice"), ("accuracy", "pixel accuracy")):
            one = found[key]
            assert isinstance(one, Interval) and one.estimate == pytest.approx(metrics[key])
            shown = f"95 % interval {100 * one.low:.1f} to {100 * one.high:.1f}"
            if groups == 2:
                shown = "2 groups: too few for an interval"
            assert f"ensemble {title}, % {100 * metrics[key]:.1f} {shown}; best member" in text


@pytest.fixture
def two_predictions(judging: Path, tmp_path: Path) -> tuple[Path, Path]:
    """What two versions predict: the first is right, the second too but for a corner of the fourth image."""
    samples, paths = PackedSplit(judging / "packed" / "test"), (tmp_path / "own.npz", tmp_path / "rival.npz")
    right = {str(index): samples.mask(index).copy() for index in range(len(samples))}
    np.savez(paths[0], **right)
    right["3"][:32, :32] = (right["3"][:32, :32] + 1) % 5
    np.savez(paths[1], **right)
    return paths


def test_two_versions_are_shown_side_by_side_where_they_differ_most(
    judging: Path, trained: Path, scored: Path, tmp_path: Path, two_predictions: tuple[Path, Path]
) -> None:
    out_dir = tmp_path / "reports"
    shutil.copytree(scored, out_dir)
    report_on_ray(of_run(judging, trained, out_dir, predictions=two_predictions))
    samples, info = PackedSplit(judging / "packed" / "test"), read_pack(judging / "packed")
    pictures = {name: one for name, one in Pictures(out_dir / "index.html").found.items()
                if name.endswith(f", {samples.ids[3]}")}  # fmt: skip
    assert [name.partition(":")[0].partition(",")[0] for name in pictures] == [
        "image", "target", "former champion (version 1)", "version 2",
    ]  # fmt: skip
    labelled = samples.mask(3) != 255
    text = text_of(out_dir / "index.html")
    assert f"{samples.ids[3]} {100 * labelled[:32, :32].sum() / labelled.sum():.1f} % of its pixels differ" in text
    assert text.count("of its pixels differ") == 1, "elsewhere both say the same"
    with np.load(two_predictions[1]) as rival:
        wanted = overlay(samples.image(3), rival["3"], palette(info.colors), 255)
    assert near(list(pictures.values())[2], wanted) and not near(list(pictures.values())[3], wanted)
    report_on_ray(of_run(judging, trained, out_dir, predictions=(two_predictions[0],) * 2))
    assert "Nowhere: both predict the same class" in text_of(out_dir / "index.html")


def test_the_figures_on_the_page_are_those_measured(page: Path) -> None:
    metrics = json.loads((page / "metrics.json").read_text())
    text = text_of(page / "index.html")
    assert f"ensemble mIoU, % {100 * metrics['ensemble']['miou']:.1f}" in text
    for name in metrics["classes"]:
        row = [metrics["ensemble"], *metrics["members"].values()]
        shown = " ".join("-" if one["iou"][name] is None else f"{100 * one['iou'][name]:.1f}" for one in row)
        assert re.search(rf"{name} [\d.]+ {shown} ", text), name
    assert "random initialisation" in text


def test_names_are_escaped_and_large_pictures_shrunk(
    judging: Path, trained: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, out_dir = tmp_path / "packed", tmp_path / "reports"
    shutil.copytree(judging / "packed", packed)
    shutil.copytree(scored, out_dir)
    facts = json.loads((packed / "pack.json").read_text())
    (packed / "pack.json").write_text(json.dumps(facts | {"name": "<b>&"}))
    monkeypatch.setattr(evaluation_page, "PICTURE_PX", 32)
    report_on_ray(of_run(judging, trained, out_dir, packed_dir=packed))
    text = (out_dir / "index.html").read_text()
    assert "<h1><bdi>&lt;b&gt;&amp;</bdi></h1>" in text and "<b>&<" not in text
    shapes = {one.shape for name, one in Pictures(out_dir / "index.html").found.items() if name.startswith("image of ")}
    assert shapes == {(32, 32, 3)}


def test_the_contact_sheet_shows_samples_as_training_saw_them(page: Path, judging: Path, trained: Path) -> None:
    """Three train samples, and the first extra ones of each kind, as packed and in three epochs of the seven."""
    split = PackedSplit(judging / "packed" / "train", trained / "augmented" / "extra")
    origins = list(read_origins(trained / "augmented" / "extra"))
    kinds = [[origin for origin in origins if origin.kind == kind][:3] for kind in ("copy_paste", "balance")]
    assert min(map(len, kinds)) > 1
    text, found = text_of(page / "index.html"), Pictures(page / "index.html").found
    last = len(split) - len(origins) - 1
    drawn = {split.ids[index]: index for index in (0, round(last / 2), last)}
    for origin in (*kinds[0], *kinds[1]):
        drawn[origin.describe(read_pack(judging / "packed").class_names)] = split.ids.index(origin.id)
    shown = ("as packed", "epoch 0", "epoch 3", "epoch 6")
    assert {f"{title}, {one}" for title in drawn for one in shown} <= set(found)
    assert len([name for name in found if name.endswith(shown)]) == 4 * len(drawn)
    augment = Augmenter(settle_policy("driving").transforms, None, 5, ignore_id=255)
    for title in (list(drawn)[1], list(drawn)[-1]):
        index, packed, seen = drawn[title], found[f"{title}, as packed"], found[f"{title}, epoch 3"]
        height = split.shape(index)[0]
        wanted, mask = augment(split.image(index), split.mask(index), epoch=3, sample=split.ids[index])
        colors = palette(read_pack(judging / "packed").colors)
        assert near(packed[:height], split.image(index)) and near(seen[:height], wanted)
        assert near(seen[height:], overlay(wanted, mask, colors, 255))
    boxed = found[f"{list(drawn)[3]}, as packed"]
    assert (np.abs(boxed.astype(int) - WRONG).sum(axis=2) < 60).any()
    assert f"{last + 1} train samples and {len(origins)} extra ones" in text and "recipe driving@2" in text


def test_confusion_is_in_shares_of_the_row() -> None:
    counts = np.array([[[6, 2], [0, 0]]])
    assert report._confusion_rows(counts) == [[0.75, 0.25], [None, None]]


def test_what_ray_runs_says_how_many_images_are_scored(judging: Path, trained: Path, tmp_path: Path) -> None:
    note = tmp_path / "evaluate.count.json"
    job = EvaluateJob(
        ensemble_dir=trained / "ensemble", packed_dir=judging / "packed", out_dir=tmp_path / "reports", overlays=3,
        progress_path=note,
    )  # fmt: skip
    metrics = evaluate_on_ray(job)
    assert json.loads(note.read_text()) == {"done": metrics["samples"], "total": metrics["samples"]}
    assert json.loads((tmp_path / "reports" / "metrics.json").read_text()) == metrics


def test_svms_alone_show_no_epochs_of_training(
    page: Path, judging: Path, trained: Path, scored: Path, tmp_path: Path
) -> None:
    out_dir, ensemble = tmp_path / "reports", tmp_path / "ensemble"
    shutil.copytree(scored, out_dir)
    shutil.copytree(trained / "ensemble", ensemble)
    for path in ensemble.glob("members/*/member.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "svm"}))
    report_on_ray(of_run(judging, trained, out_dir, ensemble_dir=ensemble))
    assert "What training saw" in text_of(page / "index.html")
    text = text_of(out_dir / "index.html")
    assert "What training saw" not in text and "Examples, worst first" in text


def test_no_picture_and_no_figure_is_of_a_sealed_group(judging: Path, trained: Path, tmp_path: Path) -> None:
    test = PackedSplit(judging / "packed" / "test")
    sealed = (test.groups[0],)
    shown = [index for index, group in enumerate(test.groups) if group not in sealed]
    hidden = [index for index, group in enumerate(test.groups) if group in sealed]
    evaluate_on_ray(
        EvaluateJob(
            ensemble_dir=trained / "ensemble", packed_dir=judging / "packed", out_dir=tmp_path, overlays=99,
            sealed=sealed,
        )
    )  # fmt: skip
    for name in ("own", "rival"):  # as ScoreJob keeps them: by number among the open images
        ids = {str(n): np.full(test.mask(index).shape, name == "own", np.uint8) for n, index in enumerate(shown)}
        np.savez(tmp_path / f"{name}.npz", allow_pickle=False, **ids)
    predictions = (tmp_path / "own.npz", tmp_path / "rival.npz")
    report_on_ray(of_run(judging, trained, tmp_path, sealed=sealed, predictions=predictions))
    said = text_of(tmp_path / "index.html")
    assert "sealed groups that are not shown: 1" in said
    assert all(test.ids[index] in said for index in shown)
    named = said + " ".join(Pictures(tmp_path / "index.html").found)
    assert not [test.ids[index] for index in hidden if test.ids[index] in named]
