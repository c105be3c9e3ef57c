"""`segmill serve` with real versions: each takes over without a gap, and one that is not what was signed never does."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import psutil
import pytest
from asking import PNG, as_png, is_ready, load, until
from judging import judging
from PIL import Image
from ruamel.yaml import YAML
from sqlalchemy import select
from terminal import BIN, terminal

from flows.environment import tracking_uri
from segmill import tracking
from segmill.anomaly.detector import save_detector
from segmill.anomaly.policy import AnomalyPolicy
from segmill.cluster.connection import LOOPBACK_ONLY
from segmill.data.ingest.builtin import draw_street
from segmill.data.packing.calibration import CALIBRATION
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.ensembling.detecting import fit_detector
from segmill.ensembling.predict import Ensemble
from segmill.params import read_params
from segmill.promotion import registry
from segmill.promotion.database import Database
from segmill.promotion.keys import make_signing_key
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.outbox import NOTICES
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.serving.keys import ApiKeys, Scope
from segmill.workspace import Workspace
from tasks.register import model_name

__all__ = ["judging"]

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@dataclass
class Site:
    """A workspace whose registry has the signed versions 1 and 2, and 3, which was changed after it was signed.

    Version 2 has an anomaly detector.
    """

    workspace: Workspace
    model: str
    image: bytes
    ids_HW: np.ndarray

    def promote(self, version: str, action: str = "promote") -> None:
        book = workspace_ledger(self.workspace.root)
        book.append(book.begin(self.model), Entry(action=action, version=version, decision="PASS"))

    def key(self, *scopes: Scope) -> dict[str, str]:
        text = ApiKeys(ledger_url(self.workspace.root)).create("a test", scopes, None)[1]
        return {"authorization": f"Bearer {text}"}


def add_detector(folder: Path, packed: Path, scratch: Path) -> None:
    """Put a detector into an ensemble's folder that 40 scenes of their own calibrate."""
    shutil.copytree(packed, scratch)
    height, width = PackedSplit(packed / "test").image(0).shape[:2]
    with SplitWriter(scratch / CALIBRATION) as writer:
        for sequence in range(500, 540):
            image, mask = draw_street((height, width), seed=0, sequence=sequence, frame=0)
            writer.add(Sample(f"c{sequence}", f"c{sequence}", image, mask))
    save_detector(folder, fit_detector(Ensemble.load(folder).voting(), scratch, AnomalyPolicy(0.05, abstain=True)))


@pytest.fixture
def site(_street_workspace: Workspace, judging: Path, tmp_path: Path) -> Site:
    root = tmp_path / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    workspace = Workspace.open(root)
    params = read_params(workspace.params)
    set_up(root)
    uri, name = tracking_uri(workspace, params), model_name(workspace, params)
    run_id = tracking.start_run(uri, name, "retrain", artifacts=(root / "mlartifacts").as_uri())
    image_HWC = PackedSplit(judging / "packed" / "test").image(0)
    for number in (1, 2, 3):
        folder = tmp_path / str(number) / "ensemble"
        shutil.copytree(judging / "ensemble", folder)
        (folder / "note.txt").write_text(str(number))
        if number == 2:
            add_detector(folder, judging / "packed", tmp_path / "calibrating")
        ids_HW = Ensemble.load(folder).predict(image_HWC[None])[0]
        registry.register(uri, run_id, folder, name, key=make_signing_key(), golden=[(image_HWC, ids_HW)])
    third = next(path for path in (root / "mlartifacts").rglob("note.txt") if path.read_text() == "3")
    third.write_text("x")
    values = YAML().load(workspace.params.read_text())
    values["serving"] = {"drift_every_seconds": 0}
    with workspace.params.open("w") as file:
        YAML().dump(values, file)
    return Site(workspace, name, as_png(image_HWC), ids_HW)


@dataclass
class Served:
    client: httpx.Client
    process: subprocess.Popen[bytes] | None
    log: Path

    def said(self) -> str:
        return self.log.read_text()


@contextmanager
def served(site: Site, tmp_path: Path, *options: str, **servers: str) -> Iterator[Served]:
    """Run `segmill serve` while the block does; ``servers``: variables that name servers it shall join."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "serve.log"
    command = [str(BIN / "segmill"), "serve", "--port", str(port), "-w", str(site.workspace.root), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=terminal(servers), stdout=file, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Served(client, process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def ready(service: Served, header: dict[str, str]) -> bool:
    assert service.process is None or service.process.poll() is None, service.said()
    return is_ready(str(service.client.base_url), header)


def processes(name: str) -> list[psutil.Process]:
    """Return those of Ray Serve's that have this in their name."""
    return [one for one in psutil.process_iter(["cmdline"]) if name in " ".join(one.info["cmdline"] or ())]


@pytest.mark.long
def test_each_version_takes_over_without_a_gap_and_a_changed_one_never_does(site: Site, tmp_path: Path) -> None:
    site.promote("1")
    header = site.key(*Scope)
    with served(site, tmp_path) as service:
        until(lambda: ready(service, header), 180, service.said)
        answer = service.client.post("/v1/segment", content=site.image, headers=header | {"content-type": "image/png"})
        assert (np.asarray(Image.open(io.BytesIO(answer.content))) == site.ids_HW).all()
        with load(str(service.client.base_url), site.image, header) as asked:
            until(lambda: len(asked.answers) > 3, 60, service.said)
            site.promote("2")
            assert service.client.post("/v1/hint", headers=header).status_code == 202
            until(lambda: asked.versions[-1] == "2", 120, service.said)
            # Each door asks version 2: version 1 goes at once, not after the 30 s that an answer may take.
            until(lambda: not processes(f"{site.model}-version-1-"), 15, service.said)
            (keeper,) = processes(f"{site.model}-service:keeper")
            keeper.kill()
            site.promote("3")
            until(lambda: "version 3 was refused" in service.said(), 120, service.said)
            before = len(asked.answers)
            until(lambda: len(asked.answers) > before + 3, 60, service.said)
            assert asked.versions == ["1", "2"]
            noise = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in range(60)]
            for image_HWC in noise:
                said = service.client.post(
                    "/v1/segment?form=rle", content=as_png(image_HWC), headers=header | PNG
                ).json()
                assert said["version"] == "2" and said["images"][0]["anomaly"]["abstain"]
            until(lambda: "the model no longer sees what it learned" in service.said(), 30, service.said)
            figures = service.client.get("/metrics", headers=header).text
            assert float(re.search(r"^segmill_drift_evidence (\S+)", figures, re.M)[1]) != 1
            site.promote("1", "rollback")  # nobody says so
            until(lambda: asked.versions[-1] == "1", 120, service.said)
        assert {status for _, status, _ in asked.answers} == {200}
        assert asked.versions == ["1", "2", "1"]
        with Database(ledger_url(site.workspace.root)).reading() as connection:
            assert connection
            kinds = connection.execute(select(NOTICES.c.kind, NOTICES.c.payload)).all()
        (refused,) = (json.loads(payload) for kind, payload in kinds if kind == "not_served")
        assert (refused["version"], refused["champion"]) == ("3", "2")
        (drift,) = (json.loads(payload) for kind, payload in kinds if kind == "drift")
        assert drift["version"] == "2" and drift["evidence"] >= 20
        assert re.search(r"version 3 was refused: .*note\.txt was changed after it was signed", service.said())
        assert service.process
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 0
    assert "stopped" in service.said() and "Traceback" not in service.said()
    assert os.environ.get("RAY_ADDRESS") is None


@contextmanager
def cluster(folder: Path, *options: str) -> Iterator[dict[str, str]]:
    """Run a Ray of one core while the block does; give the variables that let a command join it."""
    free = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free.append(str(probe.getsockname()[1]))
    own = terminal() | {"RAY_AUTH_MODE": "disabled", LOOPBACK_ONLY: "0"}
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    command += [f"--port={free[0]}", f"--dashboard-port={free[1]}", f"--temp-dir={folder}", *options]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: "Ray runtime started" in (folder / "ray.log").read_text(), 120, str)
        yield {"RAY_ADDRESS": f"127.0.0.1:{free[0]}", "RAY_AUTH_MODE": "disabled"} | {
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{free[1]}"
        }
    finally:
        processes = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait(60)
        for process in psutil.wait_procs(processes, timeout=20)[1]:
            process.kill()


@pytest.mark.long
def test_without_room_for_a_second_set_of_replicas_the_service_says_so_and_a_rollback_is_not_held_up(
    site: Site, tmp_path: Path
) -> None:
    site.promote("1")
    header = site.key(*Scope)
    with (
        TemporaryDirectory(prefix="ray-") as folder,
        cluster(Path(folder)) as servers,
        served(site, tmp_path, **servers) as service,
    ):
        until(lambda: ready(service, header), 240, service.said)
        with load(str(service.client.base_url), site.image, header) as asked:
            site.promote("2")
            began = until(lambda: "version 2 is loaded" in service.said(), 60, service.said)
            until(lambda: "version 2 waits for room" in service.said(), 60 - began, service.said)
            assert "it takes 1 x 1 cores, and the cluster has 0 cores free; serve with fewer" in service.said()
            site.promote("1", "rollback")
            until(lambda: "version 2 no longer waits" in service.said(), 60, service.said)
            before = len(asked.answers)
            until(lambda: len(asked.answers) > before + 3, 60, service.said)
        assert {status for _, status, _ in asked.answers} == {200} and asked.versions == ["1"]


@pytest.mark.long
def test_the_config_file_of_ray_serve_starts_the_service_on_a_cluster(site: Site, tmp_path: Path) -> None:
    site.promote("1")
    header = site.key(*Scope)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = YAML(typ="safe").load((ROOT / "deploy" / "serve.yaml").read_text())
    settings["http_options"]["port"] = port
    (found,) = settings["applications"]
    params = read_params(site.workspace.params)
    found["name"] = f"{site.model}-service"
    found["args"] = {
        "model": site.model,
        "trusted_keys": (site.workspace.root / "trusted_keys").read_text(),
        "mlflow_uri": tracking_uri(site.workspace, params),
        "ledger_url": ledger_url(site.workspace.root),
        "serving": {"limits": {"per_minute": 2}},
    }
    file = tmp_path / "serve.yaml"
    with file.open("w") as stream:
        YAML().dump(settings, stream)
    with TemporaryDirectory(prefix="ray-") as folder, cluster(Path(folder)) as servers:
        deploy = [str(BIN / "serve"), "deploy", str(file)]
        until(lambda: subprocess.run(deploy, env=terminal(servers), capture_output=True).returncode == 0, 120, str)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            service = Served(client, None, Path(folder) / "ray.log")
            until(lambda: ready(service, site.key(Scope.METRICS)), 240, service.said)
            answer = client.get("/v1/model", headers=header)
            assert (answer.status_code, answer.json()["version"]) == (200, "1")
            assert [client.get("/v1/model", headers=header).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "0.0.0.0 is reached from other machines, and without TLS keys and images can be read"),
        (("--host", "localhost", "--tls-certificate", "/no"), "TLS takes a certificate and its key; name both"),
        (("--host", "192.0.2.7", "--allow-plain-http"), "nothing can listen at 192.0.2.7:8000"),
    ],
)
def test_what_can_not_be_served_is_one_sentence(workspace: Workspace, options: tuple[str, ...], said: str) -> None:
    command = [str(BIN / "segmill"), "serve", "-w", str(workspace.root), *options]
    done = subprocess.run(command, env=terminal(), capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
