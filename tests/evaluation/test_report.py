"""The page: it holds what was measured, names only files that lie beside it, and asks nobody."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

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
from segmill.evaluation.report import evaluate_and_report
from segmill.evaluation.shell import evaluate_on_ray
from segmill.reports import evaluation_page
from segmill.reports.pictures import WRONG, overlay, palette


class Links(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if key in ("src", "srcset", "href") and value]


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


@pytest.fixture(scope="module")
def page(judging: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("reports")
    job = EvaluateJob(
        ensemble_dir=trained / "ensemble",
        packed_dir=judging / "packed",
        augmented_dir=trained / "augmented",
        out_dir=out_dir,
        overlays=3,
    )
    evaluate_and_report(job)
    return out_dir


def test_every_link_is_a_file_beside_the_page(page: Path) -> None:
    links = Links()
    text = (page / "index.html").read_text()
    links.feed(text)
    training = [link for link in links.found if "/training-" in link]
    assert len(links.found) == 3 * 4 + 2 * 2 + len(training)
    assert all((page / link).is_file() for link in links.found)
    assert "http" not in text and "@import" not in text and "<script" not in text
    shown = {Path(link).name for link in links.found}
    assert {path.name for path in (page / "figures").iterdir()} == shown | {"overview.png"}


def test_the_overview_puts_worst_typical_and_best_under_one_another(page: Path) -> None:
    overview = np.asarray(Image.open(page / "figures" / "overview.png"))
    example = np.asarray(Image.open(page / "figures" / "example-00-image.png"))
    height, width = example.shape[:2]
    assert overview.shape == (3 * (height + 4) - 4, 4 * (width + 4) - 4, 3)
    assert (overview[:height, :width] == example).all()


def test_the_figures_on_the_page_are_those_measured(page: Path) -> None:
    metrics = json.loads((page / "metrics.json").read_text())
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (page / "index.html").read_text()))
    assert f"ensemble mIoU, % {100 * metrics['ensemble']['miou']:.1f}" in text
    for name in metrics["classes"]:
        row = [metrics["ensemble"], *metrics["members"].values()]
        shown = " ".join("-" if one["iou"][name] is None else f"{100 * one['iou'][name]:.1f}" for one in row)
        assert re.search(rf"{name} [\d.]+ {shown} ", text), name
    assert "data version v1" in text and "random initialisation" in text


def test_names_are_escaped_and_large_pictures_shrunk(
    page: Path, judging: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, out_dir = tmp_path / "packed", tmp_path / "reports"
    shutil.copytree(judging / "packed", packed)
    shutil.copytree(page, out_dir)
    facts = json.loads((packed / "pack.json").read_text())
    (packed / "pack.json").write_text(json.dumps(facts | {"name": "<b>&"}))
    monkeypatch.setattr(evaluation_page, "PICTURE_PX", 32)
    report.write_report(out_dir, trained / "ensemble", packed, trained / "augmented")
    text = (out_dir / "index.html").read_text()
    assert "<h1><bdi>&lt;b&gt;&amp;</bdi></h1>" in text and "<b>&<" not in text
    assert {Image.open(path).size for path in (out_dir / "figures").glob("example-*.png")} == {(32, 32)}


def test_the_contact_sheet_shows_samples_as_training_saw_them(page: Path, judging: Path, trained: Path) -> None:
    """Three train samples, and the first extra ones of each kind, as packed and in three epochs of the seven."""
    split = PackedSplit(judging / "packed" / "train", trained / "augmented" / "extra")
    origins = list(read_origins(trained / "augmented" / "extra"))
    kinds = [[origin for origin in origins if origin.kind == kind][:3] for kind in ("copy_paste", "balance")]
    assert min(map(len, kinds)) > 1
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (page / "index.html").read_text())))
    last = len(split) - len(origins) - 1
    drawn = [0, round(last / 2), last]
    for origin in (*kinds[0], *kinds[1]):
        drawn.append(split.ids.index(origin.id))
        assert origin.describe(read_pack(judging / "packed").class_names) in text
    named = {path.name for path in page.glob("figures/training-*.png")}
    assert named == {f"training-{index}-{epoch}.png" for index in drawn for epoch in ("packed", 0, 3, 6)}
    augment = Augmenter(settle_policy("driving").transforms, None, 5, ignore_id=255)
    for index in (drawn[1], drawn[-1]):
        packed, seen = (
            np.asarray(Image.open(page / "figures" / f"training-{index}-{shown}.png")) for shown in ("packed", 3)
        )
        height = split.shape(index)[0]
        np.testing.assert_array_equal(packed[:height], split.image(index))
        wanted, mask = augment(split.image(index), split.mask(index), epoch=3, sample=split.ids[index])
        np.testing.assert_array_equal(seen[:height], wanted)
        colors = palette(read_pack(judging / "packed").colors)
        np.testing.assert_array_equal(seen[height:], overlay(wanted, mask, colors, 255))
    paste = split.ids.index(kinds[0][0].id)
    boxed = np.asarray(Image.open(page / "figures" / f"training-{paste}-packed.png"))
    assert (boxed == WRONG).all(axis=2).any()
    assert f"{last + 1} train samples and {len(origins)} extra ones" in text and "recipe driving@2" in text


def test_confusion_is_in_shares_of_the_row() -> None:
    counts = np.array([[[6, 2], [0, 0]]])
    assert report._confusion_rows(counts) == [[0.75, 0.25], [None, None]]


def test_what_ray_runs_says_how_many_images_are_scored(judging: Path, trained: Path, tmp_path: Path) -> None:
    note = tmp_path / "evaluate.count.json"
    job = EvaluateJob(
        ensemble_dir=trained / "ensemble", packed_dir=judging / "packed", augmented_dir=trained / "augmented",
        out_dir=tmp_path / "reports", overlays=3, progress_path=note,
    )  # fmt: skip
    metrics = evaluate_on_ray(job)
    assert json.loads(note.read_text()) == {"done": metrics["samples"], "total": metrics["samples"]}
    assert json.loads((tmp_path / "reports" / "metrics.json").read_text()) == metrics


def test_svms_alone_show_no_epochs_of_training(page: Path, judging: Path, trained: Path, tmp_path: Path) -> None:
    out_dir, ensemble = tmp_path / "reports", tmp_path / "ensemble"
    shutil.copytree(page, out_dir)
    shutil.copytree(trained / "ensemble", ensemble)
    for path in ensemble.glob("members/*/member.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "svm"}))
    report.write_report(out_dir, ensemble, judging / "packed", trained / "augmented")
    text = (out_dir / "index.html").read_text()
    assert "figures/training-" in (page / "index.html").read_text()
    assert "figures/training-" not in text and "figures/example-" in text
