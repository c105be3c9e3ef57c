"""The block `notify` of params.yaml: which events of a model are sent where. Light to import."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from segmill.errors import near_miss
from segmill.params_block import Block
from segmill.passwords import public_address

EVENTS = ("promoted", "refused", "rolled_back", "approval_wanted", "alias_moved", "not_served", "drift")


class WebhookParams(Block):
    """One HTTP address that gets signed notices."""

    url: str = Field(description="Address that each notice is posted to, http:// or https://.")
    secret_env: str = Field(description="Name of the environment variable that holds the secret for the signature.")
    events: tuple[str, ...] | None = Field(
        None,
        description=(
            "Events that are sent: promoted, refused, rolled_back, approval_wanted, alias_moved, not_served, drift; "
            "null sends all."
        ),
    )

    @field_validator("url")
    @classmethod
    def is_an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fine = False
        if not fine or re.search(r"\s", url) or "@" in parts.path:
            raise ValueError(
                f"{public_address(url)} is not an address such as https://HOST/PATH; write special characters of a "
                "password in percent notation"
            )
        return url

    @field_validator("secret_env")
    @classmethod
    def is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name.startswith("whsec_"):
            raise ValueError(
                "this is not the name of an environment variable; put the secret into a variable such as "
                "SEGMILL_WEBHOOK_SECRET and write that name here"
            )
        return name

    @field_validator("events")
    @classmethod
    def are_known(cls, events: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for event in events or ():
            if event not in EVENTS:
                raise ValueError(f"unknown event {event}{near_miss(event, EVENTS)} (allowed: {', '.join(EVENTS)})")
        return events


class NotifyParams(Block):
    """Who is notified of promotions, refusals, rollbacks, waiting approvals and moved aliases."""

    webhooks: tuple[WebhookParams, ...] = Field((), description="Addresses that get signed notices, each a block.")
    prefect: bool | None = Field(
        None, description="Send notices as Prefect events; null does where prefect.api_url names a server."
    )

    @field_validator("webhooks")
    @classmethod
    def are_different(cls, webhooks: tuple[WebhookParams, ...]) -> tuple[WebhookParams, ...]:
        if twice := _twice(public_address(webhook.url) for webhook in webhooks):
            raise ValueError(f"{twice} is listed twice; write it once, with all its events")
        return webhooks


def _twice(names: Iterable[str]) -> str | None:
    """Return the first name that comes a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
