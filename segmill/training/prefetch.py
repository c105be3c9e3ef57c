"""Copies the next batch to the device while the present one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from segmill.data.loading.batches import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield ``batches`` on ``device``; on a GPU a stream of its own copies the next while this one is computed.

    Only pinned memory is copied without waiting. On a CPU they are yielded as they are.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            copied = batch.each(lambda tensor: tensor.to(device, non_blocking=True))
            coming = copied, side.record_event()
        if ahead:
            yield _arrived(*ahead, device)
        ahead = coming
    if ahead:
        yield _arrived(*ahead, device)


def _arrived(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """Have the computing stream wait for the copy, and the copy's memory for the computing stream."""
    computing = torch.cuda.current_stream(device)
    computing.wait_event(copied)
    for tensor in batch:
        if tensor is not None:
            tensor.record_stream(computing)
    return batch
