"""Addresses of MLflow's pages: at its server, or where `segmill ui` starts them. Light to import."""

from __future__ import annotations

from urllib.parse import quote

from segmill.passwords import without_password

PORT = 5000  # where `segmill ui` starts them, unless it is given another
OF_TRAINING = "?workflowType=machine_learning"  # left alone, MLflow's page shows its side for language models


def is_server(uri: str) -> bool:
    """Tell whether the tracking URI names a server, which has pages itself, and not a database."""
    return uri.startswith(("http://", "https://"))


def pages(uri: str) -> str:
    """Return where the pages are, without a slash at the end."""
    return without_password(uri).rstrip("/") if is_server(uri) else f"http://127.0.0.1:{PORT}"


def version_page(uri: str, model: str, version: str) -> str:
    """Return the address of the page of a registered version."""
    return f"{pages(uri)}/#/models/{quote(model, safe='')}/versions/{version}{OF_TRAINING}"
