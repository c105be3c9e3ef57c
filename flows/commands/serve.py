"""`segmill serve`: the champion answers over HTTP, to those who have a key."""

from __future__ import annotations

import ipaddress
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console

from flows.commands.options import HERE, WorkspaceOption, answer_now, open_workspace, say, tell
from segmill.errors import InputError

if TYPE_CHECKING:
    from segmill.notify_params import NotifyParams
    from segmill.params import Params
    from segmill.serving.job import ServiceJob
    from segmill.serving_params import ServingParams
    from segmill.workspace import Workspace

HINT = "/v1/hint"  # how the address of a webhook ends that goes to a service
STOPS_WITHIN_S = 30.0  # when every request is answered
NOTIFIES_AGAIN_S = 30.0  # while a notice waits for a target


def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen at, in place of serving.host.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port, in place of serving.port.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="File with the certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="File with its private key, PEM.")] = None,
    allow_plain_http: Annotated[
        bool, typer.Option(help="Listen beyond this machine without TLS: keys and images can be read on the way.")
    ] = False,
    doors: Annotated[int | None, typer.Option(min=1, help="Processes that take requests.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Processes that predict.")] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Serve the champion over HTTP, and each later one after it."""
    from flows.commands.stopping import take_time
    from flows.environment import prepare_environment, ray_address
    from flows.notices import deliver_pending
    from segmill.cluster.connection import connect
    from segmill.promotion.ledger_url import URL_VARIABLE
    from segmill.serving import proxy

    space, params = open_workspace(workspace)
    named = {"host": host, "port": port, "doors": doors, "replicas": replicas}
    serving = params.serving.model_copy(update={key: value for key, value in named.items() if value is not None})
    host, port = serving.host, serving.port
    refuse_open_binding(host, tls_certificate, tls_key, plain=allow_plain_http)
    prepare_environment(space, params)
    job = service_job(space, params, serving)
    refuse_taken_port(host, port)
    console = Console()
    console.print("the service starts ...", highlight=False, style="dim")
    # Ray gives its workers a niceness of 15, so that other processes get the cores first.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault(proxy.VARIABLE, proxy.CALLBACK)
    # The next version's replicas start beside those that answer.
    cores = max(os.cpu_count() or 1, math.ceil(2 * job.replicas * job.cpus))
    with connect(ray_address(params), cores, keep=(URL_VARIABLE, "PGPASSFILE", *job.hint_secrets)):
        from segmill.serving import service

        tls = {"ssl_certfile": str(tls_certificate), "ssl_keyfile": str(tls_key)} if tls_certificate else {}
        take_time(job.limits.seconds + STOPS_WITHIN_S)
        try:
            keeper = service.start(job, host=host, port=port, **tls)
            address = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"
            say(f"{job.model} is served at {address}; `segmill keys create NAME` makes a key; Ctrl-C stops it")
            tell(address=address, model=job.model)
            answer_now()
            _say_without_secret(job)
            shown, notify_at = 0, 0.0
            while True:
                time.sleep(1)
                for event in service.events(keeper, shown):
                    shown = event["number"]
                    say(_sentence(event))
                    if event["event"] in (service.REFUSED, service.DRIFTED):
                        notify_at = 0.0
                if time.monotonic() > notify_at:
                    waits = deliver_pending(space, params).waiting
                    notify_at = time.monotonic() + NOTIFIES_AGAIN_S if waits else math.inf
        except KeyboardInterrupt:
            console.print("stopped")
        finally:
            service.stop(job)


def _sentence(event: dict[str, Any]) -> str:
    """Say what happened in the service."""
    what = event["event"].replace("a version", f"version {event.get('version')}")
    took = f" after {event['seconds']:.1f} s" if "seconds" in event else ""
    why = f": {event['why']}" if "why" in event else ""
    return f"{event['time']}  {what}{took}{why}"


def service_job(workspace: Workspace, params: Params, serving: ServingParams) -> ServiceJob:
    """Return what is served; InputError where an address holds a password that Ray would keep."""
    from flows.environment import tracking_uri
    from segmill.passwords import without_password
    from segmill.promotion.keys import trusted_keys
    from segmill.promotion.ledger_url import URL_VARIABLE, ledger_url
    from segmill.serving.job import job_of
    from tasks.register import model_name

    uri, ledger = tracking_uri(workspace, params), ledger_url(workspace.root, params.promotion.ledger_url)
    addresses = {"MLFLOW_TRACKING_URI": uri, URL_VARIABLE: ledger}
    secret = {name for name, address in addresses.items() if without_password(address) != address}
    written = {"MLFLOW_TRACKING_URI": params.mlflow.tracking_uri, URL_VARIABLE: params.promotion.ledger_url}
    for name in secret:
        if addresses[name] == written[name]:
            raise InputError(
                f"an address in params.yaml holds a password ({without_password(addresses[name])})",
                f"put it into the variable {name}, which the service's processes read, and not there",
            )
    return job_of(
        serving,
        model=model_name(workspace, params),
        trusted=trusted_keys(workspace.root),
        uri="" if "MLFLOW_TRACKING_URI" in secret else uri,
        ledger_url="" if URL_VARIABLE in secret else ledger,
        hint_secrets=hint_secrets(params.notify),
    )


def hint_secrets(notify: NotifyParams) -> tuple[str, ...]:
    """Return the variables with the secrets of those webhooks in ``notify`` that go to a service."""
    hooks = [hook for hook in notify.webhooks if urlsplit(hook.url).path.endswith(HINT)]
    return tuple(dict.fromkeys(hook.secret_env for hook in hooks))


def _say_without_secret(job: ServiceJob) -> None:
    from segmill.serving.hints import webhook_hints

    try:
        webhook_hints(job.hint_secrets)
    except InputError as error:
        say(str(error))


def refuse_open_binding(host: str, certificate: Path | None, key: Path | None, *, plain: bool) -> None:
    """Raise InputError where others could read keys on the way, or a file of TLS is missing."""
    if (certificate is None) != (key is None):
        raise InputError("TLS takes a certificate and its key", "name both, --tls-certificate and --tls-key")
    for file in (certificate, key):
        if file is not None and not file.is_file():
            raise InputError(f"there is no file {file}", "name a PEM file")
    if certificate is None and not plain and not _is_loopback(host):
        raise InputError(
            f"{host} is reached from other machines, and without TLS keys and images can be read on the way",
            "name --tls-certificate and --tls-key, or say --allow-plain-http behind a proxy that speaks TLS",
        )


def refuse_taken_port(host: str, port: int) -> None:
    """Raise InputError where somebody listens there already, or the address is none of this machine's."""
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"nothing can listen at {host}:{port} ({error.strerror})", "name another --port") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
