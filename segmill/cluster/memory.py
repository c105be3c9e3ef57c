"""Out of memory: how it shows in an error, and the sentence that says what to lower."""

from __future__ import annotations

from segmill.errors import InputError

# Python has a class for it, and CUDA (torch.OutOfMemoryError, told by its text, so that torch need not be imported).
# The others raise a bare RuntimeError, or in Ray's case the error of any death.
OUT_OF_MEMORY_SIGNS = (
    "out of memory",  # CUDA
    "not enough memory",  # torch's CPU allocator, by platform
    "can't allocate memory",
    "cannot allocate memory",
    "killed by signal: killed",  # DataLoader, of a worker that the kernel killed
    "low on memory",  # Ray's monitor, of a rank that it stopped
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` is Python's, torch's or CUDA's way of saying so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY_SIGNS)


def out_of_memory(member: str, batch_size: int | str, size_px: tuple[int, int] | None) -> InputError:
    """Return the error for a network member that needs more memory than there is."""
    return InputError(
        f"member {member} ran out of memory; lower members.{member}.batch_size "
        f"(now {batch_size}) or prepare.size_px (now {size_px}), "
        "or give it more workers with ray.workers"
    )
