"""The compose file and container files: of the right form, with files that are there, without a secret; never run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy import compose_secrets
from deploy.stack.__main__ import STOP
from segmill.errors import InputError

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTAINER_FILES = sorted(DEPLOY.glob("Containerfile.*"))


@pytest.fixture
def compose() -> dict[str, Any]:
    found = YAML(typ="safe").load(DEPLOY / "compose.yaml")
    assert isinstance(found, dict)
    return found


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


def checked(file: Path) -> subprocess.CompletedProcess[str]:
    """Hold a compose file against the Compose Specification's schema, as check-jsonschema ships it: no network."""
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], capture_output=True, text=True)


def test_the_compose_file_has_the_form_of_the_specification(tmp_path: Path) -> None:
    done = checked(DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "compose.yaml").write_text((DEPLOY / "compose.yaml").read_text().replace("    command:", "    comand:"))
    wrong = checked(tmp_path / "compose.yaml")
    assert wrong.returncode == 1 and "'comand' was unexpected" in wrong.stdout


def test_it_has_the_servers_of_the_stack(services: dict[str, Any]) -> None:
    assert set(STOP) - {"service"} <= set(services), "deploy/serve.yaml serves on a cluster"


def test_ports_are_published_on_loopback_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2 and all(port.startswith("127.0.0.1:") for port in ports)


def test_every_file_it_names_is_there(compose: dict[str, Any], services: dict[str, Any], tmp_path: Path) -> None:
    names = compose_secrets.write(tmp_path / "secrets")
    assert all((tmp_path / "secrets" / name).stat().st_mode & 0o777 == 0o600 for name in names)
    named = [secret["file"] for secret in compose["secrets"].values()]
    named += [file for service in services.values() for file in service.get("env_file", [])]
    assert set(named) == {f"secrets/{name}" for name in names}
    for service in services.values():
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        if build := service.get("build"):
            assert (DEPLOY.parent / build["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file()


def test_no_service_gets_a_secret_that_it_does_not_need(services: dict[str, Any]) -> None:
    assert {name: service.get("secrets", []) for name, service in services.items()} == {
        "postgres": ["postgres", "roles.sql"],
        "s3": ["s3.json"],
        "mlflow": ["mlflow.aws", "mlflow.pgpass", "mlflow-users.ini"],
        "prefect": ["prefect.pgpass"],
        "worker": ["pipeline.aws", "pipeline.pgpass", "ray"],
        "ray-head": ["ray"],
        "ray-node": ["ray"],
        "ray-node-cuda": ["ray"],
    }
    values = [str(value) for service in services.values() for value in service.get("environment", {}).values()]
    assert not [value for value in values if re.search(r"://[^/@]*:[^/@]*@", value)]


def test_secrets_that_containers_may_have_are_not_replaced(tmp_path: Path) -> None:
    compose_secrets.write(tmp_path / "secrets")
    before = (tmp_path / "secrets" / "postgres").read_text()
    with pytest.raises(InputError, match="running containers have its passwords; remove it to make new ones"):
        compose_secrets.write(tmp_path / "secrets")
    assert (tmp_path / "secrets" / "postgres").read_text() == before


@pytest.mark.parametrize("file", CONTAINER_FILES, ids=lambda file: file.name)
def test_a_container_file_copies_what_is_there_and_is_not_roots(file: Path) -> None:
    lines = re.sub(r"\\\n", " ", file.read_text()).splitlines()
    steps = [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")]
    assert {word for word, _ in steps} <= {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER"}
    assert steps[0][0] == "FROM" and re.search(r":\d[\w.-]+$", steps[0][1]), "a base image with its version"
    copied = [source for word, rest in steps if word == "COPY" for source in rest.split()[:-1]]
    assert copied and all((DEPLOY.parent / source).exists() for source in copied)
    assert [rest for word, rest in steps if word == "USER"][-1] == "segmill"


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [file.name for file in CONTAINER_FILES] == ["Containerfile.cpu", "Containerfile.cuda"]
