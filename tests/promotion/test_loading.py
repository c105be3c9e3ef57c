"""`segmill.load` in a process of its own: as short as MLflow's way, and it refuses what was changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from registering import NAME, Registered

import segmill
from segmill.ensembling.predict import Ensemble
from segmill.errors import InputError
from segmill.promotion.keys import SignatureError, trust

CONSUMER = """
import json, sys
import segmill
heavy = sorted({"mlflow", "torch", "numpy", "pydantic"} & set(sys.modules))
import numpy as np
model = segmill.load(sys.argv[1])
import tempfile, pathlib
np.save(sys.argv[2], model.predict(np.load(sys.argv[3])))
copies = [str(path) for path in pathlib.Path(tempfile.gettempdir()).glob("segmill-version-*")]
print(json.dumps({"heavy": heavy, "copies": copies}))
"""


def consume(registered: Registered, folder: Path, model_uri: str) -> subprocess.CompletedProcess[str]:
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    trust(folder, registered.key.public)
    (folder / "temporary").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-P", "-c", CONSUMER, model_uri, str(folder / "maps.npy"), str(folder / "images.npy")],
        env=os.environ | {"MLFLOW_TRACKING_URI": registered.uri, "TMPDIR": str(folder / "temporary")},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("named", [f"models:/{NAME}@champion", f"models:/{NAME}/1"])
@pytest.mark.long
def test_loads_a_verified_copy_and_takes_it_away(
    registered: Registered, judging: Path, tmp_path: Path, named: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in registered.folder.rglob("*")}
    run = consume(registered, tmp_path, named)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["heavy"] == [], "import segmill is light"
    expected = Ensemble.load(judging / "ensemble").predict(np.load(tmp_path / "images.npy"))
    assert (np.load(tmp_path / "maps.npy") == expected).mean() > 0.999
    assert len(said["copies"]) == 1 and not any(Path(copy).exists() for copy in said["copies"])
    assert {path: path.stat().st_mtime_ns for path in registered.folder.rglob("*")} == before
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_a_line_in_the_store_never_runs(registered: Registered, tmp_path: Path) -> None:
    served = registered.folder / "served.py"
    shutil.copyfile(served, tmp_path / "served.py")
    with served.open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    try:
        run = consume(registered, tmp_path, f"models:/{NAME}@champion")
    finally:
        shutil.copyfile(tmp_path / "served.py", served)
    assert run.returncode == 1 and "SignatureError: version 1 of" in run.stderr
    assert "served.py was changed after it was signed" in run.stderr
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "temporary").iterdir())


def test_says_what_is_wrong_with_a_name(registered: Registered, tmp_path: Path) -> None:
    for named in (NAME, f"models:/{NAME}", f"models:/{NAME}/latest", "runs:/1/model", f"models:/{NAME}/1/../2"):
        with pytest.raises(InputError, match="names no registered version; write models:/NAME@champion"):
            segmill.load(named, tracking_uri=registered.uri)
    with pytest.raises(InputError, match="has no version called nobody"):
        segmill.load(f"models:/{NAME}@nobody", tracking_uri=registered.uri)
    with pytest.raises(SignatureError, match=r"trusted_keys does not list \(it lists none\)"):
        segmill.load(f"models:/{NAME}/1", tracking_uri=registered.uri, workspace=tmp_path)
    with pytest.raises(AttributeError, match="'segmill' has no attribute 'lode'"):
        segmill.lode  # type: ignore[attr-defined]  # noqa: B018
