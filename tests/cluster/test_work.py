from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from segmill.cluster.connection import ALLOCATOR, connect
from segmill.cluster.resources import Resources, even_share, whole_node
from segmill.cluster.work import Running, on_ray, on_ray_after, wait
from segmill.errors import InfrastructureError, InputError


@dataclass(frozen=True)
class Sum:
    left: int
    right: int


# Functions that Ray runs.
def answer(job: Sum) -> int:
    return job.left + job.right


def allocator(names: tuple[str, ...]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def fail(kind: str) -> None:
    raise {
        "ours": InputError("mend this"),
        "memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        "bug": KeyError("lost"),
    }[kind]


def threads(_: None) -> int:
    import torch

    return torch.get_num_threads()


def die(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


@dataclass(frozen=True)
class Deadly:
    """A number to give back, by the process that is the first to be left alive: earlier ones end."""

    number: int
    deaths: int
    starts: Path


def survive(job: Deadly) -> int:
    with job.starts.open("a") as file:
        file.write(f"{job.number} ")
    if job.starts.read_text().split().count(str(job.number)) <= job.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number


def add(job: Sum, parts: list[int]) -> list[int]:
    return [job.left + job.right, *parts]


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("OMP_NUM_THREADS", raising=False)  # as where nobody sets it: Ray does for each task
        with connect("local", 2):
            yield


@pytest.mark.slow
def test_a_function_and_its_job_go_to_ray_and_the_result_comes_back(ray_of_two: None) -> None:
    running: Running[int] = on_ray(answer, Sum(1, 2))
    assert wait(running) == 3


@pytest.mark.slow
def test_workers_of_a_cluster_started_here_keep_what_they_free(ray_of_two: None) -> None:
    assert wait(on_ray(allocator, tuple(ALLOCATOR))) == ALLOCATOR


@pytest.mark.slow
def test_a_process_that_worked_before_takes_as_many_threads_as_cpus(ray_of_two: None) -> None:
    both = [on_ray(threads, None), on_ray(threads, None)]  # each of the two processes imports torch
    assert [wait(one) for one in both] == [1, 1]
    assert wait(on_ray(threads, None, Resources(2))) == 2


@pytest.mark.slow
def test_errors_come_out_as_sentences(ray_of_two: None) -> None:
    with pytest.raises(InputError, match=r"^mend this$"):
        wait(on_ray(fail, "ours"))
    with pytest.raises(InputError, match="the work ran out of memory"):
        wait(on_ray(fail, "memory"))
    with pytest.raises(KeyError, match="lost"):
        wait(on_ray(fail, "bug"))
    with pytest.raises(InfrastructureError, match="Ray lost the work"):
        wait(on_ray(die, int(signal.SIGKILL)))


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_its_part_alone_is_done_again(ray_of_two: None, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    parts = [on_ray(survive, Deadly(number, 2 * (number == 1), starts), retries=2) for number in range(3)]
    assert wait(on_ray_after(add, Sum(10, 20), parts)) == [30, 0, 1, 2]
    assert sorted(starts.read_text().split()) == ["0", "1", "1", "1", "2"]


@pytest.mark.slow
def test_what_waits_for_parts_fails_as_they_do(ray_of_two: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^mend this$"):
        wait(on_ray_after(add, Sum(1, 2), [on_ray(fail, "ours", retries=2)]))
    dead = on_ray(survive, Deadly(0, 9, tmp_path / "starts"), retries=1)
    with pytest.raises(InfrastructureError, match="Ray lost the work"):
        wait(on_ray_after(add, Sum(1, 2), [dead]))
    assert (tmp_path / "starts").read_text() == "0 0 "


@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused_at_once(ray_of_two: None) -> None:
    with pytest.raises(InfrastructureError, match="answer asks for 1 x 3 CPU and the Ray cluster has 2"):
        on_ray(answer, Sum(1, 2), Resources(3))
    with pytest.raises(InfrastructureError, match=r"answer asks for 1 x 0.5 GPU and the Ray cluster has 0; lower"):
        on_ray(answer, Sum(1, 2), Resources(1, 0.5))


@pytest.mark.slow
def test_shares_of_two_cores(ray_of_two: None) -> None:
    assert [even_share(workers) for workers in (1, 2, 3, 5)] == [2, 1, 0.66, 0.5]
    assert whole_node() == Resources(2, 0)
