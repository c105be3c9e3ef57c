"""docs/notices.md shows what is sent, and code that verifies it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from postings import SECRET, a_row, endpoint
from ruamel.yaml import YAML
from sqlalchemy import create_engine

from segmill.notify_params import EVENTS, NotifyParams
from segmill.promotion.delivery import deliver
from segmill.promotion.outbox import METADATA, add
from segmill.promotion.webhooks import webhook

PAGE = (Path(__file__).parents[2] / "docs" / "notices.md").read_text()


def block(language: str) -> str:
    """Return the page's first code of a language."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


def test_the_page_names_every_event() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(EVENTS)


def test_the_settings_on_the_page_are_allowed() -> None:
    notify = NotifyParams.model_validate(YAML(typ="safe").load(block("yaml"))["notify"])
    assert notify.webhooks[0].events == ("promoted", "rolled_back")


def test_what_is_sent_is_as_on_the_page_and_its_code_verifies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.db")
    METADATA.create_all(engine)
    with engine.begin() as connection:
        add(connection, a_row())
    with endpoint() as there:
        deliver(str(engine.url), [webhook(there.url, "HOOK_SECRET", frozenset(EVENTS))])
        (posting,) = there.postings
    shown, sent = json.loads(block("json")), json.loads(posting.body)
    assert list(shown) == list(sent) and list(shown["data"]) == list(sent["data"])
    names = set(re.findall(r"^(webhook-\w+|content-type):", block("http"), re.MULTILINE))
    assert names == {name for name in posting.headers if name.startswith("webhook-") or name == "content-type"}
    code: dict[str, Callable[..., bool]] = {}
    exec(block("python"), code)
    is_genuine = code["is_genuine"]
    assert is_genuine(posting.headers, posting.body, SECRET)
    assert not is_genuine(posting.headers, posting.body + b" ", SECRET)
    assert not is_genuine(posting.headers | {"webhook-timestamp": "1614265330"}, posting.body, SECRET)
    assert not is_genuine(posting.headers | {"webhook-id": "msg_2"}, posting.body, SECRET)
