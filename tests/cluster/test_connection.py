from __future__ import annotations

import subprocess
import sys

import pytest

from segmill.cluster.connection import connect
from segmill.errors import InfrastructureError


@pytest.mark.parametrize("module", ["connection", "memory", "resources", "work"])
def test_importing_it_is_light(module: str) -> None:
    heavy = "('torch', 'ray', 'numpy')"
    code = f"import sys, segmill.cluster.{module}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_no_cluster_at_the_address() -> None:
    with pytest.raises(InfrastructureError, match="no Ray cluster at"), connect("nowhere"):
        pass


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(InfrastructureError, match=r"^Ray did not start on this machine \("), connect("local", 1):
        pass
