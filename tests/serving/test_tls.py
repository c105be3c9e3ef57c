"""TLS by certificate files, and what `segmill serve` refuses: open addresses, and passwords in its settings."""

from __future__ import annotations

import datetime
import ipaddress
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from answering import Brightness, answering
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from postings import SECRET, free_port
from ruamel.yaml import YAML
from terminal import BIN, terminal

from flows.commands.serve import refuse_open_binding
from segmill.errors import InputError
from segmill.promotion.webhooks import signature
from segmill.workspace import Workspace


@dataclass(frozen=True)
class Files:
    certificate: Path
    key: Path

    def client(self) -> ssl.SSLContext:
        """Return how a client is set up that believes this certificate and no others."""
        return ssl.create_default_context(cafile=str(self.certificate))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A certificate of 127.0.0.1 that signs itself."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "segmill's tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    found = Files(folder / "certificate.pem", folder / "key.pem")
    found.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return found


def test_over_tls_keys_open_what_they_open_and_plain_http_is_not_answered(files: Files, tmp_path: Path) -> None:
    tls = {"ssl_certfile": files.certificate, "ssl_keyfile": files.key, "verify": files.client()}
    with answering(Brightness(), tmp_path, tls=tls) as service:
        assert service.client.get("/v1/model", headers=service.key()).json()["version"] == "1"
        assert service.client.get("/v1/model").status_code == 401
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{service.client.base_url}/healthz")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{service.address[1]}/healthz")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(files.certificate)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(service.address) as connection, pytest.raises(ssl.SSLError):
            old.wrap_socket(connection, server_hostname="127.0.0.1")


def set_in_params(workspace: Workspace, block: str, key: str, value: object) -> None:
    yaml = YAML()
    values = yaml.load(workspace.params.read_text())
    values.setdefault(block, {})[key] = value
    with workspace.params.open("w") as file:
        yaml.dump(values, file)


@pytest.fixture
def served_over_tls(workspace: Workspace, files: Files, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A `segmill serve` with these files and a webhook's secret, its port and its output; no version is promoted."""
    port, log = free_port(), tmp_path / "serve.log"
    hook = {"url": f"https://127.0.0.1:{port}/v1/hint", "secret_env": "HINT_SECRET"}
    set_in_params(workspace, "notify", "webhooks", [hook])
    command = [str(BIN / "segmill"), "serve", "-w", str(workspace.root), "--port", str(port)]
    command += ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=terminal({"HINT_SECRET": SECRET}), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield port, log
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200  # Ray answers 404 before the doors are there
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.long
def test_segmill_serve_speaks_tls_and_takes_a_signed_hint(served_over_tls: tuple[int, Path], files: Files) -> None:
    port, log = served_over_tls
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=files.client()) as client:
        until = time.monotonic() + 180
        while not answers(client):
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.3)
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").status_code == 401
        assert [client.get(path).status_code for path in ("/-/routes", "/-/healthz")] == [401, 401]  # Ray Serve's own
        sent = int(time.time())
        signed = {"webhook-id": "msg_1", "webhook-timestamp": str(sent)}
        signed["webhook-signature"] = signature(SECRET, "msg_1", sent, b"{}")
        assert client.post("/v1/hint", content=b"{}", headers=signed).status_code == 202
        assert client.post("/v1/hint", content=b"{ }", headers=signed).status_code == 401
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")
    while (
        f"https://127.0.0.1:{port}/" not in log.read_text()
    ):  # printed when Ray Serve reports the application as running
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.3)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_this_machine_alone_needs_no_tls(host: str) -> None:
    refuse_open_binding(host, None, None, plain=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "2001:db8::1", "segmentation.example.org", ""])
def test_beyond_this_machine_it_takes_tls_or_the_explicit_flag(host: str, files: Files) -> None:
    said = "is reached from other machines, and without TLS keys and images can be read on the way"
    with pytest.raises(InputError, match=said) as refused:
        refuse_open_binding(host, None, None, plain=False)
    assert refused.value.fix == (
        "name --tls-certificate and --tls-key, or say --allow-plain-http behind a proxy that speaks TLS"
    )
    refuse_open_binding(host, None, None, plain=True)
    refuse_open_binding(host, files.certificate, files.key, plain=False)


def test_half_of_tls_and_missing_files_are_said(files: Files, tmp_path: Path) -> None:
    for halves in ((files.certificate, None), (None, files.key)):
        with pytest.raises(InputError, match="TLS takes a certificate and its key"):
            refuse_open_binding("127.0.0.1", *halves, plain=True)
    with pytest.raises(InputError, match="there is no file"):
        refuse_open_binding("127.0.0.1", files.certificate, tmp_path / "none.pem", plain=True)


@pytest.mark.parametrize(
    ("block", "key", "address", "variable"),
    [
        ("promotion", "ledger_url", "postgresql://segmill:w0rdle@db.example.org/ledger", "SEGMILL_LEDGER_URL"),
        ("mlflow", "tracking_uri", "https://segmill:w0rdle@mlflow.example.org", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_password_in_the_settings_is_not_given_to_ray(
    workspace: Workspace, block: str, key: str, address: str, variable: str
) -> None:
    set_in_params(workspace, block, key, address)
    command = [str(BIN / "segmill"), "serve", "-w", str(workspace.root), "--port", str(free_port())]
    done = subprocess.run(command, env=terminal(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"put it into the variable {variable}, which the service's processes read, and not there" in done.stderr
    assert "w0rdle" not in done.stdout + done.stderr and len(done.stderr.splitlines()) == 1
