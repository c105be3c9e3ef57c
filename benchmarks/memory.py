"""Peak memory of training each default member, with and without gradient checkpointing, each in its own process."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from segmill.cluster.connection import ALLOCATOR
from segmill.params import NetworkParams, Params, read_params
from segmill.workspace import template

CLASSES = 11
STEPS = 3


def main() -> None:
    options = _options()
    params = read_params(template("params.yaml"))
    if options.member:
        print(" ".join(str(value) for value in _train(params, options)))
        return
    print(f"peak memory of training, {options.height} x {options.width}, batch {options.batch_size}")
    for name, member in params.members.items():
        if not isinstance(member, NetworkParams):
            continue
        plain, checkpointed = (_in_a_process(name, kept, options) for kept in (False, True))
        saved = 1 - (checkpointed[1] - checkpointed[0]) / (plain[1] - plain[0])
        print(
            f"{name:20} {plain[1]:5.2f} GiB, with checkpointing {checkpointed[1]:5.2f} GiB; {plain[0]:.2f} GiB of each "
            f"were there before the first step, so training saves {saved:.0%}, in {checkpointed[2] / plain[2]:.2f} x "
            "the time",
            flush=True,
        )


def _in_a_process(name: str, gradient_checkpointing: bool, options: argparse.Namespace) -> list[float]:
    said = subprocess.run(
        [
            sys.executable, __file__, "--member", name, "--height", str(options.height), "--width", str(options.width),
            "--batch-size", str(options.batch_size), *(["--gradient-checkpointing"] if gradient_checkpointing else []),
        ],
        capture_output=True, text=True, check=True, env=os.environ | ALLOCATOR,
    )  # fmt: skip
    return [float(text) for text in said.stdout.split()]


def _train(params: Params, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return GiB before the first step and at the peak, and seconds of a step."""
    import torch

    from segmill.data.schema.manifest import IGNORE_ID
    from segmill.models.members import MemberSpec, build
    from segmill.models.precision import pick_device
    from segmill.training.measure.batch_size import peak_bytes
    from segmill.training.measure.rehearsal import Rehearsal
    from segmill.training.settings import Settings

    member, train = params.members[options.member], params.training_of(options.member)
    assert isinstance(member, NetworkParams)
    module = build(MemberSpec(options.member, member.backbone, member.decoder, CLASSES))
    settings = Settings(
        member=options.member, epochs=train.epochs, lr=member.lr, ema_decay=train.ema_decay, loss=dict(train.loss),
        num_classes=CLASSES, ignore_id=IGNORE_ID, gradient_checkpointing=options.gradient_checkpointing,
    )  # fmt: skip
    device = pick_device()
    size_px = (options.height, options.width)
    rehearsal = Rehearsal(module, settings, size_px=size_px, device=device)
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else peak_bytes()
    seconds = min(rehearsal.step(options.batch_size) for _ in range(STEPS))
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()
    return before / 2**30, peak / 2**30, seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=320, help="pixels")
    parser.add_argument("--width", type=int, default=448, help="pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--member", help="measure this one here; all in turn where left out")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="of the one member")
    return parser.parse_args()


if __name__ == "__main__":
    main()
