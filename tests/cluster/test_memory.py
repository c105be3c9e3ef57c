from __future__ import annotations

import pytest

from segmill.cluster.memory import out_of_memory, ran_out_of_memory


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("shape mismatch"), False),
        # Ray lists this among the causes of any death: it proves nothing.
        (RuntimeError("(1) the process was killed by the OOM killer due to high memory usage"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, memory: bool) -> None:
    assert ran_out_of_memory(error) is memory


def test_out_of_memory_says_what_to_lower() -> None:
    assert "lower members.a.batch_size (now 8) or prepare.size_px" in str(out_of_memory("a", 8, None))
