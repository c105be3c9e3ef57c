"""Production's servers on loopback: nights on them from nothing, who may do what, a backup that the next night uses."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg
import pytest
from botocore.exceptions import ClientError
from canaries import in_bytes, in_file, in_files, watching_processes
from postings import Endpoint
from sources import git
from terminal import BIN, states, terminal

from deploy.stack.__main__ import ENVIRONMENT, REPOSITORY, STOP, run
from deploy.stack.place import Place
from deploy.stack.processes import families, find, marked
from deploy.stack.servers import (
    DATA_BUCKET,
    DATABASES,
    MODEL_BUCKET,
    REGION,
    ask,
    ask_prefect,
    database_url,
    pipeline_environment,
    urls,
)
from segmill.data.ingest.builtin import write_brain
from segmill.params_change import set_params
from segmill.workspace import Workspace

pytestmark = pytest.mark.long
NIGHTS_WITHIN_S = 600

# In whose environment a secret may be, by words of the command line: the pipeline's in that of its own commands (and of
# the process with which one asks MLflow meanwhile), and what MLflow's server signs its pages' cookies with.
COMMANDS = [str(BIN / "segmill"), "spawn_main"]
DEPLOYED = ("prefect.runner", "prefect.engine")  # the process of a deployed run, first the one and then the other
MAY_HAVE = {
    "mlflow-pipeline": [*COMMANDS, "prefect worker", *DEPLOYED],
    "prefect": [*COMMANDS, "prefect worker", *DEPLOYED, "prefect server"],
    "mlflow-ray": ["ray", "python", "fc-list"],  # Ray's nodes and all that they start; Matplotlib looks for fonts
    "mlflow-cookies": ["mlflow server", "uvicorn"],
    "git": [*COMMANDS, "git"],  # where it talks to the source
    **dict.fromkeys(("postgres-pipeline", "key of S3", "ray"), COMMANDS),
}


def planted(place: Place) -> dict[str, str]:
    """Return every secret of the stack by its name, each 32 random characters or more, and one for git."""
    secrets = {file.name: file.read_text() for file in (place.folder / "secrets").iterdir() if "." not in file.name}
    return {**secrets, "key of S3": keys(place)["aws_secret_access_key"], "git": "canary-of-git-5c1e"}


def in_variables(place: Place) -> dict[str, str]:
    """Return the secrets that files hold as variables instead, where more processes could see them."""
    known = planted(place)
    url = urls(place)["ledger"].replace("://pipeline@", f"://pipeline:{known['postgres-pipeline']}@")
    return {
        "SEGMILL_LEDGER_URL": url,
        "RAY_AUTH_TOKEN": known["ray"],
        "SEGMILL_GIT_USER": "pipeline",
        "SEGMILL_GIT_PASSWORD": known["git"],
        **{name.upper(): value for name, value in keys(place).items()},
    }


def keys(place: Place, name: str = "pipeline") -> dict[str, str]:
    """Return the pipeline's key of the S3 API, or another one's."""
    lines = place.secret_file(f"{name}.aws").read_text().split()
    return {"aws_access_key_id": lines[3], "aws_secret_access_key": lines[6]}


def segmill(place: Place, folder: Path, *command: str, **variables: str) -> str:
    """Run a command with the pipeline's environment, which is all it knows; return what it printed.

    No secret may be in that, nor in a command line or in the environment of a process that does not need it.
    """
    canaries = planted(place)
    environment = terminal({**pipeline_environment(place), **in_variables(place), **variables})
    with watching_processes(canaries, MAY_HAVE) as found:
        done = subprocess.run(
            [str(BIN / "segmill"), *command, "-w", str(folder)], env=environment, capture_output=True, text=True
        )
    said = done.stdout + done.stderr
    assert done.returncode in (0, 3) and "Traceback" not in said, said
    assert found == set(), sorted(found)
    assert in_bytes(canaries, said.encode()) == set()
    return said


def source(place: Place) -> str:
    return f"{urls(place)['git']}/{REPOSITORY}"


def push(place: Place, author: Workspace, *settings: str) -> None:
    """Push the author's commits, with these settings of params.yaml, onto what nights pushed."""
    if settings:
        set_params(author.params, list(settings))
    git(author.root, "add", "--all")
    commit = ["commit", "--quiet", "--allow-empty", "--message", "author"]
    git(author.root, "-c", "user.name=author", "-c", "user.email=author@localhost", *commit)
    if git(author.root, "ls-remote", source(place), "main"):
        git(author.root, "pull", "-q", "--rebase", source(place), "main")
    git(author.root, "push", "-q", source(place), "HEAD:main")


def versions(place: Place) -> list[dict[str, str]]:
    """Return the tags of each version of the model, the first one first, as MLflow's API has them."""
    who = f"pipeline:{place.secret('mlflow-pipeline')}"
    found = json.loads(ask(f"{urls(place)['mlflow']}/api/2.0/mlflow/model-versions/search", user=who))
    listed = sorted(found["model_versions"], key=lambda version: int(version["version"]))
    return [{tag["key"]: tag["value"] for tag in version["tags"]} for version in listed]


def nightly_runs(place: Place) -> list[dict[str, Any]]:
    """Return the deployed runs, the one that is due first first."""
    wanted = {"flows": {"name": {"any_": ["nightly"]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return list(json.loads(ask_prefect(place, "/flow_runs/filter", json.dumps(wanted).encode())))


def wait_for_a_begin(place: Place) -> None:
    """Wait until a run of the deployment has begun."""
    until = time.monotonic() + NIGHTS_WITHIN_S
    while not any(one["start_time"] for one in nightly_runs(place)):
        assert time.monotonic() < until, place.log("worker").read_text()
        time.sleep(1)


def wait_for_runs(place: Place, count: int) -> list[dict[str, Any]]:
    """Wait until so many runs of the deployment came to their end and all that were due; return them in order.

    Runs that another one covered are left out. No secret may meanwhile be in a process that does not need it.
    """
    until = time.monotonic() + NIGHTS_WITHIN_S
    with watching_processes(planted(place), MAY_HAVE) as found:
        while time.monotonic() < until and not found:
            runs, now = nightly_runs(place), datetime.now(UTC)
            due = [one for one in runs if datetime.fromisoformat(one["expected_start_time"]) < now]
            ran = [one for one in due if one["end_time"] and one["state_name"] != "Skipped"]
            if len(ran) >= count and all(one["end_time"] for one in due):
                return ran
            time.sleep(1)
    raise AssertionError(f"{sorted(found)}\n{place.log('worker').read_text()}")


def wait_for_alarm(sink: Endpoint, kind: str) -> dict[str, Any]:
    """Wait until an alarm of this kind comes; return it."""
    until = time.monotonic() + 60
    while not (
        found := [one for one in (json.loads(posting.body) for posting in sink.postings) if one["type"] == kind]
    ):
        assert time.monotonic() < until, [posting.body for posting in sink.postings]
        time.sleep(0.2)
    return dict(found[-1])


def processes_of(place: Place) -> set[psutil.Process]:
    """Return the stack's processes, also those that overwrite their environment, as Ray's agents do."""
    return marked(place) | set(chain.from_iterable(families(place).values()))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Place]]:
    """Return what opens the stack that is up; tests may replace it by another one in the same folder."""
    folder = tmp_path_factory.mktemp("stack") / "stack"

    def opened() -> Place:
        place = Place.open(folder)
        assert place is not None
        return place

    run("up", folder)
    yield opened
    run("down", folder)


@pytest.fixture(scope="module")
def author(
    stack: Callable[[], Place],
    brain_workspace: Callable[..., Workspace],
    tmp_path_factory: pytest.TempPathFactory,
) -> Workspace:
    """Return the workspace of the first deployment, after its first run, pushed to the stack's git remote."""
    workspace = brain_workspace(tmp_path_factory.mktemp("author"), "fpn", epochs=1)
    set_params(workspace.params, ["data.remote=s3://segmill-data/brain"])
    (workspace.root / "trusted_keys").unlink()  # it lists the key that the tests made the workspace with
    segmill(stack(), workspace.root, "signing", "setup")
    said = segmill(stack(), workspace.root, "retrain")
    assert states(said)["finetune@fpn"] == "ran", said
    push(stack(), workspace)
    return workspace


@pytest.fixture(scope="module")
def night(stack: Callable[[], Place], author: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the clone of the first night: on an empty folder, after data were added and pushed."""
    more = tmp_path_factory.mktemp("more")
    write_brain(more / "brain", every=2)
    assert "samples added" in segmill(stack(), author.root, "data", "add", str(more / "brain"), "-m", "more slices")
    push(stack(), author)
    clone = tmp_path_factory.mktemp("night") / "clone"
    said = segmill(stack(), clone, "retrain", "--source", source(stack()))
    assert states(said)["finetune@fpn"] == "ran", said
    return clone


def test_a_second_call_says_that_it_is_up(stack: Callable[[], Place]) -> None:
    before = stack().processes
    said = run("up", stack().folder)
    assert said.startswith("the stack is up already:") and "NOT RUNNING" not in said
    assert stack().processes == before and set(before) == set(STOP) - {"service"}, "no model is served"


def test_ray_is_started_again_after_its_head_was_killed(stack: Callable[[], Place]) -> None:
    gcs = next(process for process in processes_of(stack()) if process.name() == "gcs_server")
    gcs.kill()
    head = find(stack(), "ray-head")
    assert head is not None and not psutil.wait_procs([head], 60)[1]
    assert find(stack(), "ray-node") is not None, "the other node waits for a head, and would keep one from starting"
    run("up", stack().folder)
    assert "NOT RUNNING" not in run("status", stack().folder)


def test_prefects_pages_ask_the_stacks_server(stack: Callable[[], Place]) -> None:
    api = urls(stack())["prefect"]
    assert json.loads(ask(f"{api.removesuffix('/api')}/ui-settings"))["api_url"] == api


def test_everything_listens_on_loopback_alone(stack: Callable[[], Place]) -> None:
    listening = {
        (process.name(), connection.laddr.ip)
        for process in processes_of(stack())
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) >= 6
    assert {address for _, address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def test_no_secret_is_in_a_command_line_or_open_to_others(stack: Callable[[], Place]) -> None:
    place = stack()
    lines = [" ".join(process.cmdline()) for process in processes_of(place)]
    assert len(lines) >= 20 and not [line for line in lines for secret in planted(place).values() if secret in line]
    for file in [*(place.folder / "secrets").iterdir(), place.folder / ENVIRONMENT, place.folder / "stack.json"]:
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_night_from_nothing_ends_with_a_verdict_that_mlflow_has(stack: Callable[[], Place], night: Path) -> None:
    first, second = versions(stack())
    assert first["verdict"] == "PASS" and second["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert first["data_version"] != second["data_version"]
    assert git(night, "ls-remote", "origin", "main").split()[0] == git(night, "rev-parse", "HEAD")
    shutil.rmtree(night)  # it is disposable: nothing is made again on the next empty machine
    said = segmill(stack(), night, "retrain", "--source", source(stack()))
    assert "ran" not in [state for stage, state in states(said).items() if stage.startswith("finetune")], said
    assert len(versions(stack())) == 2, said


def test_the_pipeline_has_no_more_rights_than_its_work_takes(stack: Callable[[], Place], night: Path) -> None:
    place = stack()
    mlflow, who = urls(place)["mlflow"], f"pipeline:{place.secret('mlflow-pipeline')}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(f"{mlflow}/api/2.0/mlflow/model-versions/search")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask(f"{mlflow}/api/2.0/mlflow/users/update-admin", b'{"username": "pipeline", "is_admin": true}', user=who)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(f"{urls(place)['prefect']}/flow_runs/filter", b"{}")
    storage = boto3.client("s3", endpoint_url=urls(place)["s3"], region_name=REGION, **keys(place))
    with pytest.raises(ClientError, match="AccessDenied"):
        storage.list_objects_v2(Bucket=MODEL_BUCKET)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(
            database_url(place, "ledger", "postgresql").replace("/ledger", "/mlflow"),
            passfile=str(place.secret_file("pipeline.pgpass")),
        )


@pytest.mark.parametrize(("name", "bucket"), [("mlflow", MODEL_BUCKET), ("pipeline", DATA_BUCKET)])
def test_who_writes_to_a_bucket_may_delete_there(stack: Callable[[], Place], name: str, bucket: str) -> None:
    """Several objects by one request, as MLflow and DVC ask: S3 refuses each alone, with 200."""
    storage = boto3.client("s3", endpoint_url=urls(stack())["s3"], region_name=REGION, **keys(stack(), name))
    for one in "ab":
        storage.put_object(Bucket=bucket, Key=one, Body=b"")
    answer = storage.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "b"}]})
    assert "Errors" not in answer and len(answer["Deleted"]) == 2


def test_a_schedule_data_and_a_person_start_nights_whose_verdicts_mlflow_and_the_sink_get(
    stack: Callable[[], Place], author: Workspace, sink: Endpoint, tmp_path: Path
) -> None:
    """The first night finds a champion, the second one that waits for approval, the third one none."""
    place, before = stack(), len(versions(stack()))
    passes = ["goal=noninferiority", "margin=1.0", "guards.class_loss=null", "screen=false"]  # whatever it scores
    schedule = [f"source={source(place)}", "interval_minutes=0.5", "alarms=[{url_env: SINK}]"]
    settings = [f"promotion.{one}" for one in passes] + [f"schedule.{one}" for one in schedule]
    push(place, author, "members.fpn.lr=0.002", *settings)
    segmill(place, author.root, "deploy", SINK=sink.url)
    wait_for_a_begin(place)
    set_params(author.params, ["schedule.interval_minutes=null"])
    segmill(place, author.root, "deploy", SINK=sink.url)
    first = wait_for_runs(place, 1)[0]
    assert first["auto_scheduled"] and first["state_name"] == "Completed", first["state"]
    assert versions(place)[before]["verdict"] == "PASS"
    assert wait_for_alarm(sink, "segmill.promoted")["data"]["facts"]["version"] == str(before + 1)

    known = len(wait_for_runs(place, 1))
    push(place, author, "promotion.approval=one")
    git(author.root, "remote", "add", "origin", source(place))
    git(author.root, "push", "-q", "-u", "origin", "HEAD:main")
    more = tmp_path / "more"
    write_brain(more, every=1)
    assert "samples added" in segmill(place, author.root, "data", "add", str(more), "-m", "all slices")
    assert "is pushed" in segmill(place, author.root, "data", "push")
    second = wait_for_runs(place, known + 1)[-1]
    assert not second["auto_scheduled"] and second["state_name"] == "Completed", second["state"]
    made = versions(place)[before + 1]
    assert made["verdict"] == "PASS" and made["data_version"] != versions(place)[before]["data_version"]
    assert wait_for_alarm(sink, "segmill.approval_wanted")["data"]["facts"]["version"] == str(before + 2)

    changes = {"parameters": {"changes": ["members.fpn.lr=0.004", "promotion.floor_miou=0.99"]}}
    deployment = f"/deployments/{second['deployment_id']}"
    ask_prefect(place, f"{deployment}/create_flow_run", json.dumps(changes).encode())
    third = wait_for_runs(place, known + 2)[-1]
    assert third["state_name"] == "Refused", third["state"]
    assert versions(place)[before + 2]["verdict"] == "FAIL"
    assert wait_for_alarm(sink, "segmill.refused")["data"]["facts"]["version"] == str(before + 3)
    push(place, author, "promotion.approval=none", "promotion.floor_miou=0.05")


def test_no_secret_is_in_what_nights_wrote(
    stack: Callable[[], Place], author: Workspace, night: Path, tmp_path: Path
) -> None:
    """Logs, Ray's sessions, databases, buckets, workspaces with their caches and commits, the git remote."""
    place = stack()
    canaries = planted(place)
    assert len(canaries) >= 10
    run("backup", place.folder, tmp_path / "backup")
    for database in DATABASES:
        dump, text = tmp_path / "backup" / f"{database}.dump", tmp_path / f"{database}.sql"
        subprocess.run(["pg_restore", "--file", str(text), str(dump)], check=True)
        assert text.stat().st_size > 1000
    kept = [place.folder / name for name in ("secrets", ENVIRONMENT)] + [tmp_path / "backup" / "secrets"]
    everything = (place.folder, place.run, author.root, night, tmp_path)
    assert in_file({"placed": "segmill-brain"}, tmp_path / "mlflow.sql") == {"placed"}, "the search reads databases"
    assert in_files(canaries, *everything, without=kept) == set()


def test_a_restored_stack_continues_where_the_other_one_was(
    stack: Callable[[], Place], author: Workspace, night: Path, tmp_path: Path
) -> None:
    history = segmill(stack(), night, "history", "--json")
    folder, ran, verdicts = stack().folder, processes_of(stack()), versions(stack())
    run_folder = stack().run
    run("backup", folder, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0, "nobody else gets to what is in it"
    run("down", folder)
    assert not [process for process in ran if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not folder.exists() and not run_folder.exists()

    run("restore", folder, tmp_path / "backup")
    assert versions(stack()) == verdicts
    clone = tmp_path / "clone"
    said = segmill(stack(), clone, "retrain", "--source", source(stack()))
    assert "ran" not in [state for stage, state in states(said).items() if stage.startswith("finetune")], said
    assert json.loads(segmill(stack(), clone, "history", "--json")) == json.loads(history)
    push(stack(), author, 'members.unet={"backbone": "resnet10t", "decoder": "unet", "weights": "none", "lr": 0.003}')
    shutil.rmtree(clone)
    done = states(segmill(stack(), clone, "retrain", "--source", source(stack())))
    assert (done["finetune@fpn"], done["finetune@unet"]) == ("restored", "ran")
    assert len(versions(stack())) == len(verdicts) + 1
