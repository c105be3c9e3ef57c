"""Who may sign in a workspace: whoever runs a retrain has a key that the workspace lists, before it trains."""

from __future__ import annotations

import os
from pathlib import Path

from segmill.errors import InputError
from segmill.promotion.keys import (
    KEY_VARIABLE,
    TRUSTED,
    SigningKey,
    TrustedKeys,
    make_signing_key,
    own_key_path,
    signing_key,
    trust,
    trusted_keys,
)


def ensure_signer(root: Path) -> str | None:
    """Make sure that what this user registers is believed in the workspace at ``root``, and return what was done.

    A workspace that lists no key begins with the user's, which is made where there is none. None: nothing was to do.

    Raises:
        InputError: the workspace lists keys, and the user has none of them; or no key can be made.
    """
    trusted = trusted_keys(root)
    if not trusted.keys and not Path(trusted.source).is_file():
        return set_up(root)
    if fault := unlisted(signing_key(), trusted):
        raise fault
    return None


def unlisted(key: SigningKey, trusted: TrustedKeys) -> InputError | None:
    """Return what to say where a key is not among the trusted ones."""
    if key.public.id in {known.id for known in trusted.keys}:
        return None
    return InputError(
        f"your key {key.public.id} is not listed in {trusted.source}, so nobody would use what you register",
        f'let somebody who is listed run `segmill signing trust "{key.public.line}" --name {key.public.name}` and '
        "commit the file",
    )


def set_up(root: Path) -> str:
    """List the user's key in the workspace's ``trusted_keys``, made where there is none; say what that is worth.

    Raises InputError where no key can be made.
    """
    key = own_key()
    known = {one.id for one in trusted_keys(root).keys}
    trust(root, key.public)
    return f"{worth(key)}; it is listed in {TRUSTED}{' already' if key.public.id in known else ' now'}"


def worth(key: SigningKey) -> str:
    """Say which key a user signs with, and what its signature proves."""
    where = KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else str(own_key_path())
    return (
        f"you sign with key {key.public.id} ({where}): its signature proves that a version was registered by whoever "
        "can read that key, so keep it to yourself, and keep a copy"
    )


def own_key() -> SigningKey:
    """Return the user's key, made where there is none. Raises InputError where that can't be."""
    if os.environ.get(KEY_VARIABLE):
        return signing_key()
    try:
        return make_signing_key()
    except OSError as error:
        raise InputError(
            f"no signing key can be made at {own_key_path()} ({error.strerror})",
            f"name one in {KEY_VARIABLE}, or another folder for settings in XDG_CONFIG_HOME",
        ) from error
