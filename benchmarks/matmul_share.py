"""What fraction of the matrix products' speed training reaches, by network, and where the rest of the time goes."""

from __future__ import annotations

import argparse

import torch

from segmill.data.schema.manifest import IGNORE_ID
from segmill.models.members import MemberSpec, build
from segmill.models.precision import autocast_dtype, pick_device
from segmill.training.measure.profile import KINDS, matmul_peak, measure_steps, random_batches
from segmill.training.settings import Settings

CLASSES = 11
NETWORKS = ("resnet18+unet", "vgg16+unet", "resnet50+deeplabv3plus", "tf_efficientnet_lite0+fpn", "convnext_atto+fpn")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    device = pick_device()
    dtype = autocast_dtype("auto", device)
    size_px = (options.height, options.width)
    for network in options.networks:
        backbone, _, decoder = network.partition("+")
        peak = matmul_peak(dtype, device)
        costs = measure_steps(
            build(MemberSpec(network, backbone, decoder, CLASSES)),
            Settings(member=network, epochs=1, lr=1e-3, num_classes=CLASSES, ignore_id=IGNORE_ID),
            random_batches(options.batch_size, size_px, CLASSES),
            device=device,
            dtype=dtype,
            class_weights=None,
            steps=options.steps,
        )
        step_s = sum(costs.phases.values())
        reached = costs.step_flop / step_s
        kinds = ", ".join(f"{kind} {costs['kinds'][kind]:.0%}" for kind in KINDS)
        print(
            f"{network}: {reached / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, {reached / peak:.0%}; "
            f"{options.batch_size / step_s:.2f} images/s; {kinds}",
            flush=True,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="backbone+decoder")
    parser.add_argument("--height", type=int, default=288, help="pixels")
    parser.add_argument("--width", type=int, default=384, help="pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
