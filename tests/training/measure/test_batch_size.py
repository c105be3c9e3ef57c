from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest
import torch

from segmill.errors import InputError
from segmill.training.measure.batch_size import MARGIN, allowed_bytes, foresee, largest_batch

CPU = torch.device("cpu")
MIB = 2**20
SIZES = [2, 4, 8, 16, 32, 64]
# 50 MiB an image, held until the step is over; said in a process of its own, whose peak no other test has raised.
PROGRAM = """
import sys, numpy, torch
from segmill.training.measure import batch_size
taken = []
def step(images):
    taken.append(images)
    numpy.ones(images * 50 * 2**20, numpy.uint8)
batch_size.allowed_bytes = lambda share: batch_size.peak_bytes() + float(sys.argv[1]) * 2**20
print(batch_size.largest_batch(step, device=torch.device("cpu"), share=1), taken)
"""


@pytest.mark.parametrize(
    ("allowed", "expected"), [(799, None), (800, 2), (1579, 4), (1580, 8), (2619, 8), (2620, 16), (10**6, 64)]
)
def test_memory_grows_along_a_line(allowed: float, expected: int | None) -> None:
    # 800 at 2 and 1060 at 4: 130 an image, so 1580 at 8 and 2620 at 16.
    assert foresee((2, 800), (4, 1060), SIZES, allowed) == expected


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ([700, 700, 700, 700, 900, 900, 900], 64),  # one size found the process a little larger; the next ones fit
        ([700, 700, 700, 700, 700, 700, 1001], 32),
        ([700, 700, 700, 700, 700, 700, 700], 64),  # all is hidden below what starting this process took
        ([700, 1001], None),
        ([1001, 1001], None),
    ],
)
def test_a_size_that_was_tried_and_fits_is_never_refused(
    monkeypatch: pytest.MonkeyPatch, peaks: list[int], expected: int | None
) -> None:
    seen = iter(peaks)
    monkeypatch.setattr("segmill.training.measure.batch_size.allowed_bytes", lambda share: 1000.0)
    monkeypatch.setattr("segmill.training.measure.batch_size.peak_bytes", lambda: next(seen))
    if expected is None:
        with pytest.raises(InputError, match="not even 2 images"):
            largest_batch(lambda size: None, device=CPU, share=1.0)
    else:
        assert largest_batch(lambda size: None, device=CPU, share=1.0) == expected
        assert not list(seen)


@pytest.mark.slow
@pytest.mark.parametrize(("allowed_mib", "expected"), [pytest.param(1900, 32, marks=pytest.mark.long), (1200, 16)])
def test_the_largest_that_fits_is_found_from_two_small_sizes(allowed_mib: int, expected: int) -> None:
    # 16 images take 800 MiB and 32 take 1600.
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(allowed_mib)], capture_output=True, text=True, check=True)
    found, _, taken = done.stdout.partition(" ")
    assert int(found) == expected
    assert max(json.loads(taken)) <= 16


def test_where_nothing_fits_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmill.training.measure.batch_size.allowed_bytes", lambda share: 0.0)
    with pytest.raises(InputError, match=r"not even 2 images of this size fit 50% of the memory; lower prepare\.size"):
        largest_batch(lambda size: None, device=CPU, share=0.5)


def test_a_process_is_allowed_its_share_and_what_is_free() -> None:
    assert largest_batch(lambda size: None, device=CPU, share=1.0) == 64
    total = psutil.virtual_memory().total
    assert allowed_bytes(0.01) <= 0.01 * (1 - MARGIN) * total
    assert 0 < allowed_bytes(1.0) < total


@pytest.mark.gpu
def test_on_a_gpu_the_sizes_are_tried_downwards() -> None:
    device, tried = torch.device("cuda"), []
    free = torch.cuda.mem_get_info()[1]

    def step(images: int) -> None:
        tried.append(images)
        torch.empty(images * free // 20, dtype=torch.uint8, device=device)

    assert largest_batch(step, device=device, share=1.0) == 16
    assert tried == [64, 32, 16, 16]
