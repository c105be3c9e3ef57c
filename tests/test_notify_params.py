"""The block `notify` of params.yaml: faults are sentences with the key, and no message shows a password."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill.errors import InputError
from segmill.params import Params, parse_params
from segmill.workspace import template

HOOK = {"url": "https://example.org/hook", "secret_env": "HOOK_SECRET"}


def parsed(notify: Any) -> Params:
    values = YAML(typ="safe").load(template("params.yaml").read_text())
    return parse_params(values | {"notify": notify}, "params.yaml")


def fault(notify: Any) -> str:
    with pytest.raises(InputError) as error:
        parsed(notify)
    return str(error.value)


def test_nothing_is_sent_unless_settings_say_where() -> None:
    notify = parsed({}).notify
    assert notify.webhooks == () and notify.prefect is None


def test_a_webhook_has_an_address_a_secret_and_perhaps_events() -> None:
    webhooks = parsed(
        {"webhooks": [HOOK, {**HOOK, "url": "http://10.0.0.1:8080/", "events": ["promoted"]}]}
    ).notify.webhooks
    assert [hook.events for hook in webhooks] == [None, ("promoted",)]


@pytest.mark.parametrize(
    ("notify", "said"),
    [
        ({"webhoks": []}, "unknown key notify.webhoks; did you mean 'webhooks'?"),
        ({"webhooks": [{**HOOK, "evnts": []}]}, "unknown key notify.webhooks.0.evnts; did you mean 'events'?"),
        ({"webhooks": [{**HOOK, "events": ["promotd"]}]}, "unknown event promotd; did you mean 'promoted'?"),
        ({"webhooks": [{"url": "https://example.org"}]}, "notify.webhooks.0.secret_env is missing; add it (Name of"),
        ({"webhooks": [{**HOOK, "url": "example.org/hook"}]}, "webhooks.0.url: example.org/hook is not an address"),
        ({"webhooks": [{**HOOK, "url": "ftp://example.org"}]}, "is not an address such as https://HOST/PATH"),
        ({"webhooks": [HOOK, {**HOOK, "url": f"{HOOK['url']}?b"}]}, "https://example.org/hook is listed twice"),
        ({"prefect": "sometimes"}, "notify.prefect is 'sometimes'"),
    ],
)  # fmt: skip
def test_a_fault_is_said_with_its_key(notify: dict[str, Any], said: str) -> None:
    assert said in fault(notify)


@pytest.mark.parametrize("url", ["https://u:p@ss/w0rd@db/x", "http://u:w0rd@h:port/", "http://u:w0rd@h /"])
def test_an_address_with_an_ambiguous_password_is_refused_without_it(url: str) -> None:
    said = fault({"webhooks": [{**HOOK, "url": url}]})
    assert "percent notation" in said and "w0rd" not in said


def test_a_value_of_the_wrong_type_is_said_without_its_password() -> None:
    said = fault({"webhooks": "https://user:w0rd@example.org"})
    assert "notify.webhooks is 'https://example.org'" in said


@pytest.mark.parametrize("secret", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrT+jUPD8ILPZIo2LaLaSw"])
def test_a_secret_in_the_place_of_its_variable_is_refused_and_not_repeated(secret: str) -> None:
    said = fault({"webhooks": [{**HOOK, "secret_env": secret}]})
    assert "not the name of an environment variable" in said and secret not in said
