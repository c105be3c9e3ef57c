"""For benchmarks of the service: a workspace whose registry has signed versions of a small ensemble, and images."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from flows.commands.start import create
from flows.environment import switch_telemetry_off, tracking_uri
from segmill import tracking
from segmill.data.ingest.builtin import write_street
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.ensembling.job import EnsembleJob
from segmill.ensembling.predict import Ensemble
from segmill.ensembling.select import build_ensemble
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.weights import Weights
from segmill.params import read_params
from segmill.promotion import registry
from segmill.promotion.keys import make_signing_key
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.serving.keys import ApiKeys, Scope
from segmill.workspace import Workspace
from tasks.register import model_name

BIN = Path(sys.executable).parent
# The members of a new workspace.
MEMBERS = {
    "lite0-unet": ("tf_efficientnet_lite0", "unet"),
    "resnet18-linknet": ("resnet18", "linknet"),
    "regnety-manet": ("regnety_002", "manet"),
}
STEPS, BATCH = 40, 8
NOTE = "note.txt"


@dataclass(frozen=True)
class Version:
    """A version to be registered.

    Attributes:
        weights: of the members, in their order; None: as chosen on val.
        fault: ``changed`` after it was signed, or with other ``golden`` predictions than it makes; "" for none.
    """

    weights: tuple[float, float, float] | None = None
    fault: str = ""


@dataclass(frozen=True)
class Place:
    """A workspace, its model's versions ``1``, ``2``, ..., and images HWC uint8 that none was trained on."""

    workspace: Workspace
    model: str
    uri: str
    images: tuple[NDArray[np.uint8], ...]
    ensembles: dict[str, Path]

    @property
    def pngs(self) -> list[bytes]:
        """The images as files."""
        return [as_png(image_HWC) for image_HWC in self.images]

    def promote(self, version: str) -> None:
        book = workspace_ledger(self.workspace.root)
        book.append(book.begin(self.model), Entry(action="promote", version=version, decision="PASS"))

    def key(self) -> dict[str, str]:
        """Return the header of a new key that is good for everything."""
        text = ApiKeys(ledger_url(self.workspace.root)).create("a benchmark", list(Scope), None)[1]
        return {"authorization": f"Bearer {text}"}


def make_place(
    folder: Path, *, size_px: tuple[int, int], versions: Sequence[Version] = (Version(),), serving: Any = None
) -> Place:
    """Train a small ensemble for some seconds and register it as versions 1, 2, ...

    Args:
        folder: an empty one.
        size_px: height and width of the images.
        versions: what each is.
        serving: the block of this name in params.yaml.
    """
    switch_telemetry_off()
    os.environ["XDG_CONFIG_HOME"] = str(folder / "configuration")  # the key that signs
    raw = folder / "raw"
    raw.mkdir()
    write_street(raw, count=48, size=size_px, seed=0)
    workspace = create(folder / "workspace", raw)
    yaml = YAML()
    settings = yaml.load(workspace.params)
    settings["serving"] = serving or {}
    yaml.dump(settings, workspace.params)
    params = read_params(workspace.params)
    set_up(workspace.root)
    validate_dataset(raw, folder / "manifest.parquet", shares=SplitShares(0.25, 0.25, 0))
    info = pack(raw, folder / "manifest.parquet", folder / "packed")
    for name, (backbone, decoder) in MEMBERS.items():
        spec = MemberSpec(name, backbone, decoder, info.num_classes, mean=info.mean, std=info.std)
        _train(spec, PackedSplit(folder / "packed" / "train"), info.ignore_id, folder / "members" / name)
    job = EnsembleJob(
        member_dirs={name: folder / "members" / name for name in MEMBERS}, packed_dir=folder / "packed",
        out_dir=folder / "ensemble", tta_hflip=False,
    )  # fmt: skip
    build_ensemble(job)
    test = PackedSplit(folder / "packed" / "test")
    images = tuple(np.array(test.image(number)) for number in range(len(test)))
    uri, model = tracking_uri(workspace, params), model_name(workspace, params)
    run_id = tracking.start_run(uri, model, "retrain", artifacts=(workspace.root / "mlartifacts").as_uri())
    key, ensembles = make_signing_key(), {}
    for number, version in enumerate(versions, 1):
        draft = folder / "versions" / str(number) / "ensemble"
        shutil.copytree(folder / "ensemble", draft)
        facts = json.loads((draft / "ensemble.json").read_text())
        if version.weights:
            facts["weights"] = dict(zip(MEMBERS, version.weights, strict=True))
        (draft / "ensemble.json").write_text(json.dumps(facts))
        (draft / NOTE).write_text(version.fault or str(number))
        ids_HW = Ensemble.load(draft).predict(images[0][None])[0]
        shown_HW = (ids_HW + 1) % info.num_classes if version.fault == "golden" else ids_HW
        ensembles[registry.register(uri, run_id, draft, model, key=key, golden=[(images[0], shown_HW)])] = draft
    for path in (workspace.root / "mlartifacts").rglob(NOTE):
        if path.read_text() == "changed":
            path.write_text("changed after it was signed")
    return Place(workspace, model, uri, images, ensembles)


def _train(spec: MemberSpec, split: PackedSplit, ignore_id: int, folder: Path) -> None:
    """Train a member for a few steps, so that its masks have the shapes of a model's and not of noise."""
    torch.manual_seed(0)
    module = build(spec).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        chosen = rng.integers(0, len(split), BATCH)
        image_BHWC = torch.from_numpy(np.stack([split.image(number) for number in chosen]))
        mask_BHW = torch.from_numpy(np.stack([split.mask(number) for number in chosen])).long()
        loss = torch.nn.functional.cross_entropy(module(image_BHWC)["logits"], mask_BHW, ignore_index=ignore_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_member(
        folder, module, spec, weights=Weights("none", None, None), params={}, data_version="benchmark",
        metrics={"val_miou": 0.0, "epochs": 1}, curves=[{"epoch": 1, "loss": float(loss.detach()), "val_miou": None}],
    )  # fmt: skip


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image's or a mask's PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path, ready: Callable[[], bool], within_s: float = 300.0) -> Iterator[None]:
    """Run a server while the block does, and wait until it is ready."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + within_s
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.3)
        yield
    finally:
        process.terminate()  # SIGINT is ignored by what a shell started in the background
        process.wait(60)


@contextmanager
def served(place: Place, log: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Run `segmill serve` while the block does; give its address and the headers of a request with a PNG."""
    port = free_port()
    url, headers = f"http://127.0.0.1:{port}", place.key() | {"content-type": "image/png"}

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", headers=headers).status_code == 200
        except httpx.TransportError:
            return False

    command = [str(BIN / "segmill"), "serve", "--port", str(port), "-w", str(place.workspace.root)]
    with running(command, log, ready):
        yield url, headers


# A service's processes, by what their command line has in it.
PROCESSES = {
    "door": ":door", "keeper": ":keeper", "decoders": "segmill.serving.decoder", "version": "-version-",
    "Ray's HTTP proxy": "ProxyActor", "Ray's other processes": "ray", "segmill serve": "segmill",
}  # fmt: skip


def resident_mb() -> dict[str, float]:
    """Return the memory in MB that the processes of the service take which this process started, by kind."""
    found = dict.fromkeys(PROCESSES, 0.0)
    for process in psutil.Process().children(recursive=True):
        try:
            line, size = " ".join(process.cmdline()), process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
        kind = next((kind for kind, part in PROCESSES.items() if part in line), None)
        if kind:
            found[kind] += size / 1e6
    return found
