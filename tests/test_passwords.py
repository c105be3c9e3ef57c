"""No address is shown with what opens it, whatever characters a password has; all else stays."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from segmill.mlflow_pages import pages
from segmill.params_text import yaml_without_passwords
from segmill.passwords import public_address, without_password, without_passwords

ODD = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
WORD = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=30)


def names_a_host(user: str) -> bool:
    """A slash there ends the host's place, as in sqlite:///."""
    return not user.startswith("/")


USER = ODD.filter(names_a_host)


@given(user=USER, password=ODD)
def test_any_password_is_left_out_of_an_address(user: str, password: str) -> None:
    for prefix in ("postgresql+psycopg://", "http://"):
        address = f"{prefix}{user}:{password}@db:5432/mlflow"
        assert without_password(address) == public_address(address) == f"{prefix}db:5432/mlflow"


@given(user=WORD.filter(names_a_host), password=WORD)
def test_any_password_is_left_out_of_a_text(user: str, password: str) -> None:
    text = f"API request to http://{user}:{password}@mlflow:5000/api failed"
    assert without_passwords(text) == "API request to http://mlflow:5000/api failed"


@given(user=USER, password=ODD, quoted=st.sampled_from(["json", "yaml"]))
def test_any_password_is_left_out_of_params_yaml(user: str, password: str, quoted: str) -> None:
    address = f"postgresql://{user}:{password}@db/mlflow"
    single = "'" + address.replace("'", "''") + "'"
    value = json.dumps(address, ensure_ascii=False) if quoted == "json" else single
    text = f"mlflow:\n  tracking_uri: {value}  # ours\npromotion: {{ledger_url: {value}, alpha: 0.05}}\n"
    if YAML(typ="safe").load(text)["mlflow"]["tracking_uri"] != address:
        return  # a line break of Unicode, which YAML folds
    masked = yaml_without_passwords(text)
    plain = "postgresql://db/mlflow"
    expected = {"mlflow": {"tracking_uri": plain}, "promotion": {"ledger_url": plain, "alpha": 0.05}}
    assert YAML(typ="safe").load(masked) == expected
    assert re.sub("['\"]", "", masked) == (
        f"mlflow:\n  tracking_uri: {plain}  # ours\npromotion: {{ledger_url: {plain}, alpha: 0.05}}\n"
    )


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:p@ss/w0rd@db/m", "postgresql://db/m"),
        ("https://token@host/hook", "https://host/hook"),
        (
            "postgresql://db/m?user=u&password=w0rd&sslmode=require",
            "postgresql://db/m?user=u&password=...&sslmode=require",
        ),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("file:///home/a@b", "file:///home/a@b"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    assert without_password(address) == without_passwords(address) == shown
    assert yaml_without_passwords(f"uri: {address}\n") in (f"uri: {shown}\n", f'uri: "{shown}"\n')


def test_a_text_keeps_the_rest() -> None:
    assert public_address("https://user:p@ss?/w0rd@host:8/hook?token=1#x") == "https://host:8/hook"
    assert without_passwords("from http://a:b@c/d to http://e") == "from http://c/d to http://e"
    assert pages("http://u:p@ss/w0rd@mlflow:5000/") == "http://mlflow:5000"
    plain = "train:\n  lr: 0.1  # see https://example.org\nmail: a@b.c\n"
    assert yaml_without_passwords(plain) == plain
    assert yaml_without_passwords("a: [http://u:w0rd@h") == "a: [http://h", "no YAML"
    assert yaml_without_passwords("# http://u:w0rd@h\na: 1\n") == "# http://h\na: 1\n"
