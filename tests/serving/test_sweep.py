"""Requests made by Schemathesis from the service's own OpenAPI document: nobody without a good key is served anything,
and with one the service answers whatever comes."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import schemathesis
from answering import LIMITS, Brightness, Service, answering
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from segmill.serving.door import HEALTH, ROUTES
from segmill.serving.keys import ApiKeys, Scope

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
OTHERS = (
    "/nothing", "/docs", "/redoc", "/docs/oauth2-redirect", "/v1", "/v1/segment/", "//healthz", "/healthz/x",
    "/%2e%2e/metrics", "/.env",
)  # fmt: skip
SOME = [pytest.param(25, id="some"), pytest.param(500, marks=pytest.mark.long, id="many")]


@dataclass
class Swept:
    service: Service
    schema: Any  # of schemathesis
    bad: dict[str, dict[str, str]]  # headers of requests that may not be served, by what is wrong with them
    scoped: dict[Scope, dict[str, str]]  # of keys with every scope but one

    def asked(self) -> tuple[int, int]:
        """Return what the service did so far: images it segmented and hints it took."""
        return self.service.backend.asked, len(self.service.hints)

    def bad_for(self, path: str) -> dict[str, dict[str, str]]:
        """Return the headers that open nothing at a path."""
        return self.bad | {"wrongly scoped": self.scoped[ROUTES.get(path) or Scope.SEGMENT]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    folder = tmp_path_factory.mktemp("service")
    with answering(Brightness(), folder, limits=replace(LIMITS, per_minute=10**6)) as service:
        expired = service.key(*Scope, lifetime=timedelta(seconds=1))
        revoked = service.key(*Scope)
        service.keys.revoke(revoked["authorization"].split("_")[1])
        _, foreign = ApiKeys(f"sqlite:///{folder}/another.db").create("elsewhere", Scope, None)
        good = service.key(*Scope)["authorization"]
        time.sleep(2)
        document = service.client.get("/openapi.json", headers={"authorization": good}).json()
        bad = {
            "none": {},
            "empty": {"authorization": ""},
            "foreign": {"authorization": f"Bearer {foreign}"},
            "expired": expired,
            "revoked": revoked,
            "its secret is another": {"authorization": good[:-1] + ("0" if good[-1] != "0" else "1")},
            "without its secret": {"authorization": good.rpartition("_")[0]},
            "of another kind": {"authorization": good.replace("Bearer", "Digest")},
            "as a user, not the password": {
                "authorization": "Basic " + base64.b64encode(f"{good[7:]}:".encode()).decode()
            },
            "in another header": {"x-api-key": good[7:], "cookie": f"key={good[7:]}"},
        }
        scoped = {scope: service.key(*(other for other in Scope if other != scope)) for scope in Scope}
        yield Swept(service, schemathesis.openapi.from_dict(document), bad, scoped)


def swiftly(examples: int) -> Callable[[Any], Any]:
    """Return Hypothesis' settings: the same examples in each run."""
    return settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


def refused(status: int, what: str) -> None:
    assert status in (401, 403), f"{what} answered {status}"


def test_the_document_has_every_route_but_the_page_and_itself(swept: Swept) -> None:
    operations = [found.ok() for found in swept.schema.get_all_operations()]
    assert {operation.path for operation in operations} == set(ROUTES) - {"/", "/openapi.json"}
    without = {operation.path for operation in operations if "security" not in operation.definition.raw}
    assert without == {HEALTH}


def test_no_route_and_no_method_serves_anything_without_a_good_key(swept: Swept) -> None:
    before = swept.asked()
    for path in sorted((set(ROUTES) - {HEALTH}) | set(OTHERS)):
        for kind, headers in swept.bad_for(path).items():
            for method in METHODS:
                answer = swept.service.client.request(method, path, headers=headers)
                refused(answer.status_code, f"{method} {path} with a key that is {kind}")
                assert method == "HEAD" or set(answer.json()) == {"error", "request"}
    assert swept.asked() == before
    assert swept.service.client.get(HEALTH).json() == {"status": "alive"}


@pytest.mark.parametrize("examples", SOME)
def test_no_request_of_the_document_is_served_without_a_good_key(swept: Swept, examples: int) -> None:
    before = swept.asked()
    cases = st.one_of(
        found.ok().as_strategy(generation_mode=mode)
        for found in swept.schema.exclude(path=HEALTH).get_all_operations()
        for mode in GenerationMode
    )

    @swiftly(2 * examples)
    @given(cases, st.data())
    def sweep(case: Any, data: st.DataObject) -> None:
        kinds = swept.bad_for(case.operation.path)
        kind = data.draw(st.sampled_from(sorted(kinds)))
        for name in ("authorization", "x-api-key", "cookie"):
            case.headers.pop(name, None)
        answer = case.call(base_url=str(swept.service.client.base_url), headers=kinds[kind])
        refused(answer.status_code, f"{case.method} {case.operation.path} with a key that is {kind}")
        assert set(answer.json()) == {"error", "request"}

    sweep()
    assert swept.asked() == before
    assert swept.service.client.get(HEALTH).status_code == 200


@pytest.mark.parametrize("examples", SOME)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_with_a_key_every_request_gets_an_answer_that_the_document_names(
    swept: Swept, mode: GenerationMode, examples: int
) -> None:
    key, statuses = swept.service.key(), set()

    @swiftly(examples)
    @given(swept.schema["/v1/segment"]["POST"].as_strategy(generation_mode=mode))
    def sweep(case: Any) -> None:
        answer = case.call(base_url=str(swept.service.client.base_url), headers=key)
        case.validate_response(answer, checks=[not_a_server_error, status_code_conformance, content_type_conformance])
        statuses.add(answer.status_code)

    sweep()
    assert {400, 422} <= statuses and (mode is not GenerationMode.POSITIVE or 200 in statuses)
    assert swept.service.client.get(HEALTH).status_code == 200
