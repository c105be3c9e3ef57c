"""What the service is started with: the block ``serving`` of params.yaml, and the config file of Ray Serve."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve import Application
from ruamel.yaml import YAML

from segmill.errors import InputError
from segmill.promotion.keys import TrustedKeys, make_signing_key
from segmill.serving.job import ServiceJob, job_of
from segmill.serving.limits import RequestLimits
from segmill.serving.service import ServiceArgs, build
from segmill.serving_params import LimitParams, ServingParams

FILE = Path(__file__).parents[2] / "deploy" / "serve.yaml"
NOBODY = TrustedKeys((), "nobody")


def application() -> dict[str, Any]:
    """Return the application of deploy/serve.yaml, with a real key."""
    found: dict[str, Any] = YAML(typ="safe").load(FILE.read_text())["applications"][0]
    found["args"]["trusted_keys"] = f"{make_signing_key().public.line} anna\n"
    return found


def numbers(values: dict[str, Any]) -> list[float]:
    """Return all numbers of nested values, sorted."""
    found: list[float] = []
    for value in values.values():
        found += numbers(value) if isinstance(value, dict) else [value] if isinstance(value, int | float) else []
    return sorted(found)


def test_without_the_block_the_service_is_as_its_own_defaults_say() -> None:
    assert job_of(ServingParams(), model="m", trusted=NOBODY) == ServiceJob(model="m", trusted=NOBODY)


def test_every_limit_of_the_settings_arrives() -> None:
    own = {name: 2**26 + number for number, name in enumerate(LimitParams.model_fields)}
    limits = job_of(ServingParams(limits=LimitParams(**own)), model="m", trusted=NOBODY).limits
    assert numbers(asdict(limits)) == sorted(own.values())
    assert (limits.body_bytes, limits.decoding.bytes) == (own["body_bytes"], own["image_bytes"])
    assert len(numbers(asdict(RequestLimits()))) == len(own), "a limit that no setting has"


def test_every_other_setting_arrives() -> None:
    block = ServingParams(
        doors=11, replicas=12, cpus_per_replica=1.5, gpus_per_replica=0.5, decoders=13, batch=14, engine="pytorch"
    )
    job = job_of(block, model="m", trusted=NOBODY)
    assert (job.doors, job.replicas, job.cpus, job.gpus) == (11, 12, 1.5, 0.5)
    assert (job.decoders, job.batch, job.engine) == (13, 14, "pytorch")


def test_the_config_file_of_ray_serve_names_the_application_as_the_service_does() -> None:
    found = application()
    job = ServiceArgs(**found["args"]).job()
    assert found["name"] == job.app("service") and (job.doors, job.replicas, job.cpus) == (2, 2, 4)
    assert [key.name for key in job.trusted.keys] == ["anna"]
    own = {"mlflow_uri": "http://m", "ledger_url": "sqlite:///l", "hint_secrets": ["SECRET"]}
    other = ServiceArgs(**found["args"] | own).job()
    assert (other.uri, other.ledger_url, other.hint_secrets) == ("http://m", "sqlite:///l", ("SECRET",))
    assert isinstance(build(found["args"]), Application)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"serving": {"host": "0.0.0.0"}}, "host belong in http_options of the config file"),
        ({"serving": {"limits": {"pixel": 1}}}, "limits.pixel"),
        ({"modle": "m"}, "modle"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused(own: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServiceArgs(**application()["args"] | own)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"ledger_url": "postgresql+psycopg://u:secret@h/d"}, "holds a password, which Ray would keep"),
        ({"trusted_keys": "ssh-ed25519 KEY NAME"}, "trusted_keys, line 1 is no Ed25519 key"),
    ],
)
def test_what_can_not_be_served_safely_is_refused(own: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        ServiceArgs(**application()["args"] | own).job()
    assert "secret" not in str(error.value)


def test_doors_and_the_keeper_do_without_what_computes() -> None:
    """Each is a process, and PyTorch would take memory in each."""
    heavy = ("torch", "timm", "cv2", "mlflow")
    code = f"import sys, segmill.serving.service; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
