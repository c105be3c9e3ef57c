"""`segmill predict` of whole sources on a real Ray: each image once, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scoring import ScoringSite
from terminal import BIN, run, run_json, terminal

from flows.score import _finish, _planned
from segmill.data.versioning.versions import bring_data
from segmill.errors import InputError
from segmill.params import read_params
from segmill.promotion import registry
from segmill.serving.batch.shell import cut_parts, make_scorer

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[3] / "docs" / "json.md"


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a table by path; each path has one."""
    every = pq.read_table(folder / "scores.parquet").to_pylist()
    assert len({row["path"] for row in every}) == len(every)
    return {row["path"]: row for row in every}


def written(folder: Path) -> dict[str, int]:
    """Return when each mask was written."""
    masks = folder / "masks"
    return {path.relative_to(masks).as_posix(): path.stat().st_mtime_ns for path in masks.rglob("*.png")}


def test_a_folder_is_scored_once_and_what_cant_be_read_is_said(
    scoring: ScoringSite, images: Path, tmp_path: Path, servers: dict[str, str]
) -> None:
    (images / "torn.png").write_bytes(next(images.rglob("*.png")).read_bytes()[:200])
    command = ("segmill", "predict", str(images), "--to", str(tmp_path / "out"))
    said = run(scoring.workspace, *command, code=1, servers=servers)
    assert re.search(r"13 images by version 1 of segmill-\w+: 12 predicted, 0 known before", said)
    assert "1 of 13 images have no mask (torn.png: its pixels can't be decoded" in said
    folder = tmp_path / "out" / "version-1"
    found = rows(folder)
    assert {path for path, row in found.items() if row["status"] != "ok"} == {"torn.png"}
    for path in sorted(images.rglob("*.png"))[:3]:
        ids_HW = np.asarray(Image.open(folder / "masks" / path.relative_to(images)))
        assert (ids_HW == scoring.expected(path)).mean() > 0.999
    masks = written(folder)
    (images / "torn.png").unlink()
    said_json = run_json(scoring.workspace, *command)
    (line,) = re.findall(r"^\| `predict` \| .*; of a folder.*?: (.*) \|$", DOCS.read_text(), re.MULTILINE)
    assert set(said_json) == set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", line)))
    assert (said_json["predicted"], said_json["known"], said_json["workers"]) == (0, 12, 0)
    assert written(folder) == masks and len(rows(folder)) == 12
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "masks", "run.json", "scores.parquet"]


@pytest.fixture
def many(images: Path, tmp_path: Path) -> Path:
    """A folder of 48 larger images, which take a second or so for each part."""
    folder = tmp_path / "many"
    for number in range(48):
        source = Image.open(sorted(images.rglob("*.png"))[number % 12])
        place = folder / str(number % 5) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        source.rotate(90 * (number // 12)).resize((640, 512)).save(place)
    return folder


@contextmanager
def predicting(scoring: ScoringSite, *arguments: str, log: Path) -> Iterator[psutil.Popen]:
    """Run `segmill predict` with a Ray and a Prefect server of its own while the block runs."""
    with log.open("w") as out:
        process = psutil.Popen(
            [BIN / "segmill", "predict", *arguments], cwd=scoring.workspace.root, stdout=out, stderr=out, env=terminal()
        )
    try:
        yield process
    finally:
        if process.is_running():
            process.kill()
            process.wait()


def until_parts(process: psutil.Popen, folder: Path, count: int, log: Path) -> None:
    until = time.monotonic() + 180
    while len(list((folder / ".parts").glob("[!.]*.parquet"))) < count:
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.02)


def a_worker(process: psutil.Popen) -> int:
    """Return the id of a process that predicts."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in process.children(recursive=True):
            try:
                if "PoolWorker.do" in " ".join(child.cmdline()):
                    return int(child.pid)
            except psutil.Error:
                continue
    raise AssertionError("no worker was seen")


@pytest.mark.long
def test_what_fails_is_said_with_json(scoring: ScoringSite) -> None:
    done = subprocess.run(
        [BIN / "segmill", "predict", "--data", "0" * 8, "--json"], cwd=scoring.workspace.root, capture_output=True,
        env=terminal(), text=True,
    )  # fmt: skip
    assert done.returncode == 1 and set(json.loads(done.stdout)) == {"error"}


@pytest.mark.long
def test_a_killed_worker_costs_a_part_and_a_killed_run_is_resumed(
    scoring: ScoringSite, second: str, many: Path, tmp_path: Path
) -> None:
    to, log = tmp_path / "out", tmp_path / "log"
    folder = to / "version-1"
    registry.set_alias(scoring.uri, scoring.model, "night", "1")
    arguments = (str(many), "--to", str(to), "--model", "night")
    with predicting(scoring, *arguments, log=log) as process:
        until_parts(process, folder, 1, log)
        os.kill(a_worker(process), signal.SIGKILL)
        until_parts(process, folder, 4, log)
        started = process.children(recursive=True)
        process.kill()
        process.wait()
    assert psutil.wait_procs(started, timeout=30)[1] == []
    registry.set_alias(scoring.uri, scoring.model, "night", second)
    known = {
        path for part in (folder / ".parts").glob("[!.]*.parquet") for path in pq.read_table(part)["path"].to_pylist()
    }
    before = written(folder)
    assert 4 <= len(known) < 48
    with predicting(scoring, *arguments, log=log) as process:
        assert process.wait(300) == 0, log.read_text()
    said = log.read_text()
    assert "began with version 1 is completed with it; night is version 2 now" in said
    assert f"48 images by version 1 of {scoring.model}: {48 - len(known)} predicted, {len(known)} known before" in said
    after = written(folder)
    assert set(after) == {path.relative_to(many).as_posix() for path in many.rglob("*.png")}
    assert {path for path in known if after[path] != before[path]} == set(), "predicted again"
    found = rows(folder)
    assert {row["version"] for row in found.values()} == {"1"} and {row["status"] for row in found.values()} == {"ok"}
    for path in sorted(many.rglob("*.png"))[::12]:
        ids_HW = np.asarray(Image.open(folder / "masks" / path.relative_to(many)))
        assert (ids_HW == scoring.expected(path)).mean() > 0.999
    assert not (to / "version-2").exists()


@pytest.mark.long
def test_a_prefix_in_s3_and_a_data_version_are_planned_and_scored(
    scoring: ScoringSite, images: Path, tmp_path: Path, credentials: None
) -> None:
    """What the flow does, without Ray: the shared one has no credentials."""
    s3, bucket = boto3.client("s3"), "scored"
    s3.create_bucket(Bucket=bucket)
    for path in images.rglob("*.png"):
        s3.put_object(Bucket=bucket, Key=f"in/{path.relative_to(images).as_posix()}", Body=path.read_bytes())
    s3.put_object(Bucket=bucket, Key="in/x/../../evil.png", Body=b"x")
    workspace, params = scoring.workspace, read_params(scoring.workspace.params)
    with _planned(workspace, params, f"s3://{bucket}/in/", tmp_path / "out", "champion") as plan:
        assert (plan.job.note.source, plan.job.note.version) == (f"s3://{bucket}/in", "1")
        scorer = make_scorer(plan.job)
        assert sum(scorer(part) for part in cut_parts(plan.left, 1)) == 12
        said = _finish(plan, 12, 1, time.monotonic())
    assert (said["images"], said["failed"]) == (13, 1)
    assert said["reasons"] == ["x/../../evil.png: its name is no path below the prefix"]
    assert not list(tmp_path.rglob("evil.png"))
    found = rows(tmp_path / "out" / "version-1")
    assert sum(row["status"] == "ok" for row in found.values()) == 12
    s3.delete_object(Bucket=bucket, Key="in/x/../../evil.png")
    with _planned(workspace, params, f"s3://{bucket}/in", tmp_path / "out", "champion") as plan:
        assert plan.left == []
    version = bring_data(workspace.root, params.data.path, params.data.remote)
    with _planned(workspace, params, "data:HEAD", tmp_path / "data", "1") as plan:
        assert plan.job.note.source == f"data:{version.md5}" and len(plan.left) == 80
    with (
        pytest.raises(InputError, match="no version called nobody"),
        _planned(workspace, params, str(images), tmp_path, "nobody"),
    ):
        pass
