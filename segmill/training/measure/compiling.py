"""Whether torch.compile is faster: measured at a member's first start on a machine, remembered for the next ones."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from segmill.cluster.memory import ran_out_of_memory
from segmill.files import write_atomically
from segmill.training.measure.rehearsal import Rehearsal
from segmill.user_cache import user_cache

STEPS = 3


@dataclass(frozen=True)
class Speeds:
    """Seconds of a step as it is and compiled, and of compiling; None where that fails, with the reason."""

    eager_s: float
    compiled_s: float | None = None
    compiling_s: float = 0.0
    reason: str = ""

    @property
    def works(self) -> bool:
        return self.compiled_s is not None

    def pays(self, steps: int) -> bool:
        """Tell whether ``steps`` take less time compiled, compiling included."""
        return self.compiled_s is not None and self.compiling_s + steps * self.compiled_s < steps * self.eager_s

    def say(self, steps: int) -> str:
        """Return a sentence on the choice."""
        if self.compiled_s is None:
            return f"not compiled: torch.compile fails here ({self.reason})"
        choice = "compiled" if self.pays(steps) else "not compiled"
        return (
            f"{choice}: a step takes {self.eager_s:.3f} s, compiled {self.compiled_s:.3f} s after "
            f"{self.compiling_s:.0f} s of compiling, and {steps} steps are planned"
        )


def measure(make_rehearsal: Callable[[bool], Rehearsal], batch_size: int) -> Speeds:
    """Take steps both ways, in turns; ``make_rehearsal`` is told whether to compile. The quickest of each count."""
    eager = make_rehearsal(False)
    eager_s = [eager.step(batch_size) for _ in range(2)][-1]
    torch.compiler.reset()
    try:
        compiled = make_rehearsal(True)
        first_s = compiled.step(batch_size)
        compiled_s = [compiled.step(batch_size)]
        for _ in range(STEPS - 1):
            eager_s = min(eager_s, eager.step(batch_size))
            compiled_s.append(compiled.step(batch_size))
    except RuntimeError as error:  # what dynamo, inductor and a missing compiler raise
        if ran_out_of_memory(error):
            raise
        lines = [line for line in str(error).strip().splitlines() if not line.endswith("raised:")]
        return Speeds(eager_s, reason=(lines or [type(error).__name__])[0])
    return Speeds(eager_s, min(compiled_s), max(0.0, first_s - min(compiled_s)))


def remembered(facts: dict[str, Any], measure: Callable[[], Speeds], folder: Path | None = None) -> Speeds:
    """Return the speeds of a step that ``facts`` describe, measured only where this machine has none yet.

    They are stored in ``folder``, the user's cache where left out, under a hash of the facts, the machine and PyTorch's
    version; a file that can't be read is measured again.
    """
    known = json.dumps({**facts, **machine()}, sort_keys=True, default=str)
    folder = folder or user_cache("compiling")
    path = folder / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"
    try:
        return Speeds(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        speeds = measure()
    write_atomically(path, json.dumps(asdict(speeds)))
    return speeds


def machine() -> dict[str, Any]:
    """Return what a step's speed depends on beside the member: processor, threads, GPU, PyTorch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }
