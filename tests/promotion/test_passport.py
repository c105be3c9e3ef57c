"""A passport is written, signed, stored beside the version and found again; one that was changed is not believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from registering import NAME, Registered

from segmill.errors import InputError
from segmill.promotion import passport, registry, versions
from segmill.promotion.keys import SignatureError, TrustedKeys

GROUPS = ["a", "a", "b", "c"]
COUNTS = np.array([[[90, 10, 0], [5, 95 - image, 0], [0, 0, 0]] for image in range(4)])
ROWS = {
    "id": ["one", "two", "three"],
    "group": ["a", "a", "b"],
    "split": ["test", "test", "train"],
    "image_sha256": ["1" * 64, "2" * 64, "3" * 64],
    "mask_sha256": ["4" * 64, "5" * 64, "6" * 64],
}


def made(**own: Any) -> passport.Passport:
    """Return a passport of version 1; each of ``own`` replaces a part of it."""
    scores = passport.measure(COUNTS, GROUPS, ["road", "sky", "none"])
    row = passport.VerdictRow(number=1, hash="")
    plain: dict[str, Any] = {
        "model": NAME, "version": "1", "issued": "2026-11-29T08:00:00+00:00", "run_id": "run", "registered_by": "run",
        "manifest_sha256": "a" * 64, "ensemble_sha256": "b" * 64, "report_sha256": "c" * 64,
        "data": passport.Data(
            version="d" * 32, classes=["road", "sky", "none"], split={"val": 0.1, "test": 0.2, "seed": 0},
            splits=passport.split_parts(pa.table(ROWS)), accept=["near_duplicate"],
            findings=[passport.Finding(kind="near_duplicate", severity="error", files=2, accepted=True, leak=True)],
        ),
        "recipe": passport.Recipe(
            settings={"prepare": {"size_px": None}}, git_commit="e" * 40,
            **passport.code_hashes({"prepare": "segmill.errors 34\nsegmill.files 12\n"}),
        ),
        "weights": {"net": passport.WeightsOrigin(source="champion:segmill-street/7", sha256="f" * 64)},
        "warm_started_from": ["segmill-street/7"],
        "figures": passport.Figures(confidence=0.95, images=4, groups=3, ensemble=scores, members={"net": scores}),
        "verdict": passport.RecordedVerdict(
            decision="PASS", reasons=["It is better."], facts={"gain": 0.1}, compared_with=None, policy={}, ledger=row
        ),
        "environment": passport.Environment(python="3.11.7", platform="Linux", device="CPU", packages={"torch": "2"}),
    }  # fmt: skip
    return passport.Passport(**plain | own)


@pytest.fixture
def papers(registered: Registered, tmp_path: Path) -> Path:
    """A folder with a signed passport and its report."""
    folder, report = tmp_path / "papers", tmp_path / "index.html"
    folder.mkdir()
    report.write_text("<p>the report")
    passport.issue(made(), report, registered.key, folder)
    return folder


def test_what_is_written_is_read_again_and_signed(papers: Path, registered: Registered) -> None:
    content = (papers / passport.JSON).read_bytes()
    assert passport.parse(content) == made()
    assert passport.signer(papers, registered.trusted) == registered.key.public
    assert (papers / passport.HTML).read_text() == "<p>the report"
    figure = json.loads(content)["figures"]["ensemble"]["iou"]
    assert figure["none"] == {"value": None, "low": None, "high": None}
    assert 0 < figure["sky"]["low"] < figure["sky"]["value"] < figure["sky"]["high"] < 1


def test_a_changed_passport_a_foreign_key_and_another_purpose_are_not_believed(
    papers: Path, registered: Registered
) -> None:
    content = papers / passport.JSON
    with pytest.raises(SignatureError, match="does not list"):
        passport.signer(papers, TrustedKeys((), "trusted_keys"))
    (papers / passport.SIGNATURE).write_text(
        json.dumps({"key": registered.key.public.id, "signature": registered.key.sign(content.read_bytes())})
    )
    with pytest.raises(SignatureError, match="was changed"):
        passport.signer(papers, registered.trusted)
    passport.issue(made(), papers / passport.HTML, registered.key, papers)
    content.write_text(content.read_text().replace('"value": 0.', '"value": 0.9', 1))
    with pytest.raises(SignatureError, match="was changed"):
        passport.signer(papers, registered.trusted)
    (papers / passport.SIGNATURE).write_text("no JSON")
    with pytest.raises(SignatureError, match="can't be read"):
        passport.signer(papers, registered.trusted)
    (papers / passport.SIGNATURE).unlink()
    with pytest.raises(SignatureError, match="not signed"):
        passport.signer(papers, registered.trusted)


def test_what_is_no_passport_of_this_format_is_refused_in_a_sentence() -> None:
    plain = made().model_dump(mode="json")
    with pytest.raises(InputError, match="format 2, which this segmill does not read; upgrade it"):
        passport.parse(json.dumps({**plain, "format": 2}).encode())
    with pytest.raises(InputError, match=r"can't be read: figures\.images is not"):
        passport.parse(json.dumps({**plain, "figures": {**plain["figures"], "images": "many"}}).encode())
    with pytest.raises(InputError, match="can't be read: opinion is not"):
        passport.parse(json.dumps({**plain, "opinion": 1}).encode())
    with pytest.raises(InputError, match="can't be read: JSON is not"):
        passport.parse(b"{")


def test_a_split_is_known_by_its_ids_and_contents_in_any_order() -> None:
    parts = passport.split_parts(pa.table(ROWS))
    assert {name: (part.samples, part.groups) for name, part in parts.items()} == {"test": (2, 1), "train": (1, 1)}
    turned = pa.table({name: values[::-1] for name, values in ROWS.items()})
    assert passport.split_parts(turned) == parts
    for column in ("id", "image_sha256", "mask_sha256"):
        changed = passport.split_parts(pa.table({**ROWS, column: ["another", *ROWS[column][1:]]}))
        assert changed["test"] != parts["test"] and changed["train"] == parts["train"]


def test_few_groups_have_figures_without_intervals() -> None:
    scores = passport.measure(COUNTS, ["a", "a", "b", "b"], ["road", "sky", "none"])
    assert scores.miou.value is not None and scores.miou.low is None and scores.iou["road"].high is None


def test_it_is_stored_in_the_version_and_found_by_the_registry_alone(
    papers: Path, registered: Registered, tmp_path: Path
) -> None:
    to = tmp_path / "found"
    to.mkdir()
    assert not passport.fetch(registered.uri, to, model=NAME, version="1")
    passport.store(registered.uri, papers, model=NAME, version="1")
    assert passport.fetch(registered.uri, to, model=NAME, version="1")
    assert {path.name: path.read_bytes() for path in to.iterdir()} == {
        path.name: path.read_bytes() for path in papers.iterdir()
    }
    fetched = versions.fetch_verified(registered.uri, NAME, "1", registered.trusted, to=tmp_path / "version")
    assert (fetched / passport.FOLDER / passport.JSON).is_file(), "it is no reason to refuse the version"
    known = registry.read_version(registered.uri, NAME, "1")
    assert passport.manifest_of(known.tags) == versions.check_signed(registered.uri, NAME, "1", registered.trusted)
    later = made(issued="2026-11-30T08:00:00+00:00")
    passport.issue(later, papers / passport.HTML, registered.key, papers)
    passport.store(registered.uri, papers, model=NAME, version="1")
    assert passport.fetch(registered.uri, to, model=NAME, version="1")
    assert passport.parse((to / passport.JSON).read_bytes()) == later, "the last one replaces it"
    (registered.folder / passport.FOLDER / "served.py").write_text("print()")
    with pytest.raises(SignatureError, match=r"passport/served\.py was added"):
        versions.fetch_verified(registered.uri, NAME, "1", registered.trusted, to=tmp_path / "another")
    (registered.folder / passport.FOLDER / "served.py").unlink()


def test_its_page_in_mlflow_is_that_of_the_version_s_files(registered: Registered) -> None:
    address = passport.page(registered.uri, model=NAME, version="1")
    assert address.startswith("http://127.0.0.1:5000/#/experiments/1/")
    assert f"/models/{registry.logged_model(registered.uri, NAME, '1')}/artifacts?" in address


def test_an_unknown_version_is_named(registered: Registered) -> None:
    with pytest.raises(InputError, match=f"{NAME} has no version 9"):
        registry.read_version(registered.uri, NAME, "9")


def test_origins_and_warm_starts_come_from_the_members(judging: Path) -> None:
    found = passport.read_origins(judging / "ensemble", ["small", "other", "absent"])
    assert found == dict.fromkeys(("small", "other"), passport.WeightsOrigin(source="none", sha256=None))
    assert passport.champions_begun_with(found) == []
    assert passport.champions_begun_with(made().weights) == ["segmill-street/7"]
