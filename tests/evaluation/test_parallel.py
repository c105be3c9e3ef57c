"""Evaluation by several workers: what they write is what one process writes, bit for bit, also where one dies."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from segmill import progress
from segmill.cluster.connection import connect
from segmill.cluster.work import wait
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.sealed import open_part
from segmill.ensembling.parts import cut
from segmill.errors import InputError, SegmillError
from segmill.evaluation.job import EvaluateJob
from segmill.evaluation.scoring import evaluate, finish, score_part
from segmill.evaluation.shell import start_evaluation

WRITTEN = ("metrics.json", "counts.npz", "examples.npz")
SEALED = "g2"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(judging: Path, varied: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, bytes]:
    """What one process with one thread writes."""
    folder = tmp_path_factory.mktemp("alone")
    evaluate(judging / "ensemble", varied, folder, sealed=(SEALED,), examples=4)
    return written(folder)


@pytest.fixture(scope="module")
def ray_of_three() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("OMP_NUM_THREADS", raising=False)  # as where nobody sets it: Ray does for each task
        with connect("local", 3):
            yield


def written(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in WRITTEN}


def a_job(judging: Path, varied: Path, out_dir: Path) -> EvaluateJob:
    return EvaluateJob(
        ensemble_dir=judging / "ensemble", packed_dir=varied, out_dir=out_dir, overlays=4, sealed=(SEALED,),
        progress_path=out_dir.parent / "evaluate.count.json",
    )  # fmt: skip


@pytest.mark.parametrize("most", [pytest.param(2, marks=pytest.mark.long), 3, pytest.param(5, marks=pytest.mark.long)])
def test_parts_together_write_what_one_process_writes(
    judging: Path, varied: Path, alone: dict[str, bytes], tmp_path: Path, most: int, one_thread: None
) -> None:
    samples, ensemble = open_part(PackedSplit(varied / "test"), (SEALED,)), judging / "ensemble"
    cuts = cut([[samples.shape(index) for index in range(len(samples))]], most)
    assert len(cuts) == most
    parts = [score_part(ensemble, varied, images, sealed=(SEALED,)) for (images,) in cuts]
    finish(ensemble, varied, tmp_path, parts, sealed=(SEALED,), examples=4)
    assert written(tmp_path) == alone


def test_parts_that_lack_an_image_or_have_one_twice_are_refused(judging: Path, varied: Path, tmp_path: Path) -> None:
    ensemble = judging / "ensemble"
    parts = [score_part(ensemble, varied, images) for images in (range(2), range(2, 9))]
    assert finish(ensemble, varied, tmp_path, parts)["samples"] == 9
    for wrong in (parts[:1], [parts[0], *parts], parts[::-1]):
        with pytest.raises(SegmillError, match="are not all of its images once"):
            finish(ensemble, varied, tmp_path, wrong)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 3, None])
def test_any_number_of_workers_writes_the_same(
    ray_of_three: None, judging: Path, varied: Path, alone: dict[str, bytes], tmp_path: Path, workers: int | None
) -> None:
    job = a_job(judging, varied, tmp_path / "out")
    metrics = wait(start_evaluation(job, workers))
    assert metrics["samples"] == 7 and written(job.out_dir) == alone
    assert progress.read_count(tmp_path / "evaluate.count.json") == {"done": 7, "total": 7}
    parts = len(list(tmp_path.glob("evaluate.count.*.json")))
    assert parts == {1: 0, 2: 2, 3: 3, None: 3}[workers]


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(
    ray_of_three: None, judging: Path, varied: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    job = a_job(judging, varied, tmp_path / "out")
    running = start_evaluation(job)
    os.kill(a_scoring_process(), signal.SIGKILL)
    wait(running)
    assert written(job.out_dir) == alone


@pytest.mark.slow
def test_what_a_part_raises_comes_out(ray_of_three: None, judging: Path, varied: Path, tmp_path: Path) -> None:
    ensemble = tmp_path / "ensemble"
    shutil.copytree(judging / "ensemble", ensemble)
    (ensemble / "members" / "small" / "weights.safetensors").unlink()
    job = EvaluateJob(ensemble_dir=ensemble, packed_dir=varied, out_dir=tmp_path / "out", overlays=4)
    with pytest.raises(InputError, match="is no member folder"):
        wait(start_evaluation(job))


def a_scoring_process() -> int:
    """Return the id of a process that scores a part right now, among those below this one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for process in psutil.Process().children(recursive=True):
            try:
                if "score_part_on_ray" in "".join(process.cmdline()):
                    return process.pid
            except psutil.Error:
                continue
    raise AssertionError("no part was scored")
