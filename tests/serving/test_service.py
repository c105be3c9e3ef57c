"""`segmill serve` with real versions: each takes over without a gap, and one that is not what was signed never does."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from judging import judging
from PIL import Image
from terminal import BIN, terminal

from flows.environment import tracking_uri
from segmill import tracking
from segmill.data.packing.packed import PackedSplit
from segmill.ensembling.predict import Ensemble
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

__all__ = ["judging"]

pytestmark = pytest.mark.slow


@dataclass
class Load:
    """What came of the requests of a client that asks again and again."""

    answers: list[tuple[float, int, str]] = field(default_factory=list)  # seconds, status, version

    @property
    def versions(self) -> list[str]:
        """Versions in the order they answered, each once until another did."""
        found: list[str] = []
        for _, _, version in self.answers:
            if not found or found[-1] != version:
                found.append(version)
        return found


@dataclass
class Site:
    """A workspace whose registry has the signed versions 1 and 2, and 3, which was changed after it was signed."""

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
        ids_HW = Ensemble.load(folder).predict(image_HWC[None])[0]
        registry.register(uri, run_id, folder, name, key=make_signing_key(), golden=[(image_HWC, ids_HW)])
    third = next(path for path in (root / "mlartifacts").rglob("note.txt") if path.read_text() == "3")
    third.write_text("x")
    content = io.BytesIO()
    Image.fromarray(image_HWC).save(content, "PNG")
    return Site(workspace, name, content.getvalue(), ids_HW)


@dataclass
class Served:
    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text()


@contextmanager
def served(site: Site, tmp_path: Path, *options: str) -> Iterator[Served]:
    """Run `segmill serve` while the block does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "serve.log"
    command = [str(BIN / "segmill"), "serve", "--port", str(port), "-w", str(site.workspace.root), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=terminal(), stdout=file, stderr=subprocess.STDOUT)
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


def until(condition: Callable[[], bool], within_s: float, what: Callable[[], str]) -> float:
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s} s: {what()}")


def ready(service: Served, header: dict[str, str]) -> bool:
    try:
        return service.client.get("/readyz", headers=header).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def load(service: Served, site: Site, header: dict[str, str]) -> Iterator[Load]:
    found, over = Load(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=service.client.base_url, timeout=60) as client:
            while not over.is_set():
                began = time.monotonic()
                answer = client.post("/v1/segment", content=site.image, headers=header | {"content-type": "image/png"})
                version = answer.headers.get("x-model-version", answer.text)
                found.answers.append((time.monotonic() - began, answer.status_code, version))
                time.sleep(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@pytest.mark.long
def test_each_version_takes_over_without_a_gap_and_a_changed_one_never_does(site: Site, tmp_path: Path) -> None:
    site.promote("1")
    header = site.key(*Scope)
    with served(site, tmp_path) as service:
        until(lambda: ready(service, header), 180, service.said)
        answer = service.client.post("/v1/segment", content=site.image, headers=header | {"content-type": "image/png"})
        assert (np.asarray(Image.open(io.BytesIO(answer.content))) == site.ids_HW).all()
        with load(service, site, header) as asked:
            until(lambda: len(asked.answers) > 3, 60, service.said)
            site.promote("2")
            assert service.client.post("/v1/hint", headers=header).status_code == 202
            until(lambda: asked.versions[-1] == "2", 120, service.said)
            keeper = next(one for one in psutil.process_iter() if f"{site.model}-keeper" in " ".join(one.cmdline()))
            keeper.kill()
            site.promote("3")
            until(lambda: "version 3 was refused" in service.said(), 120, service.said)
            before = len(asked.answers)
            until(lambda: len(asked.answers) > before + 3, 60, service.said)
            assert asked.versions == ["1", "2"]
            site.promote("1", "rollback")  # nobody says so
            until(lambda: asked.versions[-1] == "1", 120, service.said)
        assert {status for _, status, _ in asked.answers} == {200}
        assert asked.versions == ["1", "2", "1"]
        assert re.search(r"version 3 was refused: .*note\.txt was changed after it was signed", service.said())
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 0
    assert "stopped" in service.said() and "Traceback" not in service.said()
    assert os.environ.get("RAY_ADDRESS") is None


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
