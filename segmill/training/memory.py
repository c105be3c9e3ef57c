"""Running out of memory: how it shows, and the sentence that says what to lower."""

from __future__ import annotations

from typing import Any

from segmill.errors import InputError

OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "killed by signal: killed",
    "low on memory",
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` is Python's, torch's or CUDA's way of saying so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY_SIGNS)


def out_of_memory(args: dict[str, Any]) -> InputError:
    """Return the sentence for a member that needs more memory than there is."""
    return InputError(
        f"member {args['name']} ran out of memory; lower members.{args['name']}.batch_size "
        f"(now {args['batch_size']}) or prepare.size_px (now {args['size']}), "
        "or give it more workers with ray.workers"
    )
