"""Addresses without what opens them: user, password, and secrets in a query, whatever characters a password has."""

from __future__ import annotations

import re

# The last @ ends them: a password may hold / and @, though it should be in percent notation. Where no host follows the
# scheme, as in sqlite:////home/a@b/mlflow.db, there is no user.
_ANYTHING, _IN_TEXT = (re.compile(rf"(?<=://)(?!/){characters}*@", re.DOTALL) for characters in (".", r"\S"))
_QUERY = re.compile(r"(?i)([?&;][^=&;\s]*(?:passw|pwd|token|secret|key)[^=&;\s]*=)[^&;\s'\"]+")


def without_password(address: str) -> str:
    """Return an address without user and password, and without secrets in its query."""
    return _QUERY.sub(r"\1...", _ANYTHING.sub("", address))


def without_passwords(text: str) -> str:
    """Return a text without user and password, and without secrets in queries, in its addresses."""
    return _QUERY.sub(r"\1...", _IN_TEXT.sub("", text))


def public_address(address: str) -> str:
    """Return an address without user, password, query and fragment, any of which may hold a secret."""
    return without_password(address).partition("?")[0].partition("#")[0]
