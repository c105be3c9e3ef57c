"""What `segmill deploy` makes at a Prefect server: work pool, deployment with its schedule, triggers and alarms."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule, IntervalSchedule
from prefect.events.actions import CallWebhook, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema_from_entrypoint
from pydantic import ValidationError

import flows
from flows.environment import PATIENCE, prefect_api
from flows.prefect_events import DRIFT, NEW_DATA, model_resource
from segmill.data.versioning.cloning import parse_source
from segmill.errors import InfrastructureError, InputError
from segmill.passwords import without_passwords
from segmill.schedule_params import ALARMS
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.schedule_params import AlarmParams, ScheduleParams

FLOW = "nightly"
ENTRYPOINT = "flows.nightly.nightly"
STEP = "prefect.deployments.steps.set_working_directory"
EVENTS_OF = {  # what Prefect calls it
    "failed": {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")},
    "late": {"prefect.flow-run.Late"},
}
# After downtime each missed run is late: one alarm is enough.
AT_MOST_EVERY = {"failed": timedelta(0), "late": timedelta(hours=1)}
ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)  # intervals are counted from here, however often it is deployed


@dataclass
class Deployed:
    """What there is at the server, and what had to be done for it (with ``dry_run``: would have to be).

    Attributes:
        deployment: its name, FLOW/MODEL.
        pool: the work pool's name.
        schedule: in words.
        automations: their names.
        changes: a sentence each; none: all was there already.
    """

    deployment: str
    pool: str
    schedule: str
    automations: list[str]
    dry_run: bool
    changes: list[str] = field(default_factory=list)


@contextmanager
def prefect_client(params: Params, timeout_s: float = 30.0) -> Iterator[SyncPrefectClient]:
    """Yield a client of the Prefect server that the settings name.

    Raises:
        InputError: none is named, or it refuses what it is asked for.
        InfrastructureError: it does not answer.
    """
    api = prefect_api(params)
    if not api:
        raise InputError("no Prefect server is named", "set prefect.api_url in params.yaml or PREFECT_API_URL")
    try:
        with (
            temporary_settings({PREFECT_API_URL: api}),
            get_client({"timeout": timeout_s}, sync_client=True) as client,
        ):
            yield client
    except PrefectHTTPStatusError as error:
        said = f"{error.response.status_code}: {error.response.text[:300]}"
        kind = InfrastructureError if error.response.status_code >= 500 else InputError
        raise kind(f"Prefect's server at {without_passwords(api)} answered {said}") from None
    except httpx.HTTPError as error:
        said = without_passwords(str(error)) or type(error).__name__
        raise InfrastructureError(f"Prefect's server at {without_passwords(api)} does not answer ({said})") from None


def deploy(workspace: Workspace, params: Params, model: str, *, dry_run: bool = False) -> Deployed:
    """Make or update what the block `schedule` says of the model at Prefect's server; nothing is done twice.

    A deployment that people paused stays paused.

    Raises:
        InputError: the schedule is none, an alarm's address is not in the environment, or no server is named.
        InfrastructureError: the server does not answer.
    """
    settings = params.schedule
    schedule = _schedule(settings)
    urls = {alarm.url_env: _url(alarm) for alarm in settings.alarms}
    with prefect_client(params) as client:
        found = read_deployment(client, model)
        made = Deployed(f"{FLOW}/{model}", settings.pool, in_words(settings), [], dry_run)
        _make_pool(client, made)
        wanted = _wanted(workspace, settings, model, schedule, found.job_variables if found else {})
        different = _differences(found, wanted, schedule)
        deployment_id = found.id if found else None
        if different:
            made.changes.append(f"deployment {made.deployment}: {'new' if found is None else ', '.join(different)}")
            if not dry_run:
                paused = found.paused if found else False
                active = all(one.active for one in found.schedules) if found else True
                schedules = [DeploymentScheduleCreate(schedule=schedule, active=active)] if schedule else []
                flow_id = client.create_flow_from_name(FLOW)
                deployment_id = client.create_deployment(
                    flow_id, model, schedules=schedules, paused=paused, enforce_parameter_schema=True,
                    parameter_openapi_schema=_schema(), **wanted,
                )  # fmt: skip
        addresses = {url_env: _store_url(client, made, model, url_env, url) for url_env, url in urls.items()}
        _make_automations(client, made, _automations(settings, model, addresses, deployment_id))
        _remove_addresses(client, made, model, keep=urls)
    return made


def remove(params: Params, model: str, *, dry_run: bool = False) -> Deployed:
    """Remove the model's deployment, its automations and the addresses of its alarms; the work pool stays."""
    made = Deployed(f"{FLOW}/{model}", params.schedule.pool, "none", [], dry_run)
    with prefect_client(params) as client:
        for automation in _existing(client, model):
            made.changes.append(f"automation {automation.name}: removed")
            if not dry_run:
                client.delete_automation(automation.id)
        _remove_addresses(client, made, model)
        if found := read_deployment(client, model):
            made.changes.append(f"deployment {made.deployment}: removed")
            if not dry_run:
                client.delete_deployment(found.id)
    return made


def pause(params: Params, model: str, *, paused: bool) -> str:
    """Pause the deployment, so that nothing starts until it is resumed; return what came of it as a sentence."""
    with prefect_client(params) as client:
        found = read_deployment(client, model)
        if found is None:
            raise InputError(f"{FLOW}/{model} is not deployed", "say `segmill deploy` first")
        if paused:
            client.pause_deployment(found.id)
        else:
            client.resume_deployment(found.id)
    return f"{FLOW}/{model} is {'paused: nothing starts until `segmill deploy --resume`' if paused else 'resumed'}"


def read_deployment(client: SyncPrefectClient, model: str) -> DeploymentResponse | None:
    """Return the model's deployment; None where there is none."""
    try:
        return client.read_deployment_by_name(f"{FLOW}/{model}")
    except ObjectNotFound:
        return None


def in_words(settings: ScheduleParams) -> str:
    """Say in a few words when it runs."""
    if settings.cron:
        return f"cron {settings.cron} ({settings.timezone})"
    return f"every {settings.interval_minutes:g} minutes" if settings.interval_minutes else "by hand and by events only"


def _schedule(settings: ScheduleParams) -> SCHEDULE_TYPES | None:
    try:
        if settings.cron:
            return CronSchedule(cron=settings.cron, timezone=settings.timezone)
    except ValidationError:
        raise InputError(
            f"schedule.cron is {settings.cron!r}, which is no cron expression",
            "write five fields, such as '0 2 * * *' for two o'clock each night",
        ) from None
    if settings.interval_minutes:
        return IntervalSchedule(interval=timedelta(minutes=settings.interval_minutes), anchor_date=ANCHOR)
    return None


def _url(alarm: AlarmParams) -> str:
    url = os.environ.get(alarm.url_env, "").strip()
    if not url.startswith(("http://", "https://")):
        raise InputError(
            f"the environment variable {alarm.url_env} of schedule.alarms holds no address",
            f"set {alarm.url_env}=https://HOST/PATH and deploy again",
        )
    return url


def _wanted(
    workspace: Workspace,
    settings: ScheduleParams,
    model: str,
    schedule: SCHEDULE_TYPES | None,
    job_variables: dict[str, Any],
) -> dict[str, Any]:
    """Return the deployment's fields besides its schedule; it keeps the ``job_variables`` that it has."""
    source = settings.source and str(parse_source(settings.source))  # a worker's folder is another one
    own = {"source": source} if source else {"workspace": str(workspace.root)}
    return {
        "entrypoint": ENTRYPOINT,
        "work_pool_name": settings.pool,
        "job_variables": {**job_variables, "env": {**PATIENCE, **job_variables.get("env", {})}},
        "parameters": {"model": model, **own, "max_hours": settings.max_hours},
        "description": f"Retrains {model}: {in_words(settings)}. Made by `segmill deploy`.",
        "tags": ["segmill"],
        # Without a step Prefect copies the worker's folder to where the run starts.
        "pull_steps": [{STEP: {"directory": "." if settings.source else str(workspace.root)}}],
    }


def _differences(
    found: DeploymentResponse | None, wanted: dict[str, Any], schedule: SCHEDULE_TYPES | None
) -> list[str]:
    """Name the fields of the deployment that are not as wanted."""
    if found is None:
        return ["all"]
    names = [name for name, value in wanted.items() if getattr(found, name) != value]
    return names + (["schedule"] if [one.schedule for one in found.schedules] != [schedule] * bool(schedule) else [])


def _schema() -> Any:
    return parameter_schema_from_entrypoint(f"{Path(flows.__file__).with_name('nightly.py')}:{FLOW}").model_dump()


def _make_pool(client: SyncPrefectClient, made: Deployed) -> None:
    try:
        client.read_work_pool(made.pool)
    except ObjectNotFound:
        made.changes.append(f"work pool {made.pool}: new, of type process")
        if not made.dry_run:
            client.create_work_pool(WorkPoolCreate(name=made.pool, type="process"))


def _automations(
    settings: ScheduleParams, model: str, addresses: dict[str, UUID], deployment_id: UUID | None
) -> list[AutomationCore]:
    """Return the automations that there should be; ``addresses``: the block of each alarm's address, by variable."""
    deployment_id = deployment_id or UUID(int=0)  # a dry run that makes none
    resource = {"prefect.resource.id": model_resource(model)}
    starts = {"new data": (settings.on_data, NEW_DATA), "drift": (settings.on_drift, DRIFT)}
    made = [
        AutomationCore(
            name=f"{model}: {name}",
            description=f"Retrains {model} after the event {event}.",
            trigger=EventTrigger(expect={event}, match=resource),
            actions=[RunDeployment(source="selected", deployment_id=deployment_id)],
        )
        for name, (wanted, event) in starts.items()
        if wanted
    ]
    runs = {"prefect.resource.id": f"prefect.deployment.{deployment_id}", "prefect.resource.role": "deployment"}
    for alarm in settings.alarms:
        for kind in ALARMS if alarm.events is None else alarm.events:
            of_runs = kind in EVENTS_OF
            made.append(
                AutomationCore(
                    name=f"{model}: {kind} to {alarm.url_env}",
                    description=f"Posts to the address in {alarm.url_env}.",
                    trigger=EventTrigger(expect=EVENTS_OF[kind], match_related=runs, within=AT_MOST_EVERY[kind])
                    if of_runs
                    else EventTrigger(expect={f"segmill.{kind}"}, match=resource),
                    actions=[CallWebhook(block_document_id=addresses[alarm.url_env], payload=_body(kind, model))],
                )
            )
    return made


def _body(kind: str, model: str) -> str:
    """Return the template of what an alarm posts: the same envelope as that of notices."""
    return "".join(
        (
            f'{{"type": "segmill.{kind}", "timestamp": {{{{ event.occurred | string | tojson }}}}, ',
            f'"data": {{"model": {json.dumps(model)}, "name": {{{{ event.resource.name | tojson }}}}, ',
            '"event": {{ event.event | tojson }}, "facts": {{ event.payload | tojson }}}}',
        )
    )


def _block_name(model: str, variable: str) -> str:
    """Return a name that Prefect takes: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{model}-alarm-{variable}".lower())


def _store_url(client: SyncPrefectClient, made: Deployed, model: str, variable: str, url: str) -> UUID:
    """Store an address at the server, which encrypts it; return the block's id."""
    name = _block_name(model, variable)
    blocks = {block.name: block for block in client.read_block_documents_by_type("webhook", include_secrets=True)}
    there = blocks.get(name)
    if there and there.data.get("url") == url:
        return there.id
    made.changes.append(f"address {name}: {'changed' if there else 'new'}")
    if made.dry_run:
        return there.id if there else UUID(int=0)
    stored = Webhook(url=url, headers={"content-type": "application/json"}).save(name, overwrite=True)
    assert isinstance(stored, UUID)  # not its coroutine: there is no event loop
    return stored


def _remove_addresses(client: SyncPrefectClient, made: Deployed, model: str, keep: Iterable[str] = ()) -> None:
    """Remove the addresses of the model's alarms but those in the variables ``keep``."""
    kept = {_block_name(model, variable) for variable in keep}
    for block in client.read_block_documents_by_type("webhook"):
        if block.name and block.name.startswith(_block_name(model, "")) and block.name not in kept:
            made.changes.append(f"address {block.name}: removed")
            if not made.dry_run:
                client.delete_block_document(block.id)


def _existing(client: SyncPrefectClient, model: str) -> list[Any]:
    return [one for one in client.read_automations() if one.name.startswith(f"{model}: ")]


def _make_automations(client: SyncPrefectClient, made: Deployed, wanted: list[AutomationCore]) -> None:
    """Let there be these automations of the model and no others; those that people switched off stay off."""
    known = {one.name: one for one in _existing(client, made.deployment.partition("/")[2])}
    for one in wanted:
        made.automations.append(one.name)
        there = known.pop(one.name, None)
        if there and _same(there, one):
            continue
        made.changes.append(f"automation {one.name}: {'changed' if there else 'new'}")
        if made.dry_run:
            continue
        if there:
            client.delete_automation(there.id)
            one = one.model_copy(update={"enabled": there.enabled})
        client.create_automation(one)
    for name, there in known.items():
        made.changes.append(f"automation {name}: removed")
        if not made.dry_run:
            client.delete_automation(there.id)


def _same(there: Any, wanted: AutomationCore) -> bool:
    def facts(one: Any) -> Any:
        dumped = one.model_dump(mode="json", include={"trigger", "actions", "description"})
        dumped["trigger"].pop("id", None)
        dumped["trigger"]["expect"] = sorted(dumped["trigger"]["expect"])
        return dumped

    return bool(facts(there) == facts(wanted))
