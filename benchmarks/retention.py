"""Bytes of a workspace's stores before and after `segmill gc`, once it was retrained three times and time has passed.

    python benchmarks/retention.py [--retrains 3] [--days 400] [--folder DIR]

Draws street scenes, makes a workspace with one tiny member around them and retrains it, each time with another learning
rate and, from the second time on, more samples. Then everything is made to look so many days older, and the stores are
collected with `keep.versions=1` and `keep.champions=1`: first a dry run, then in earnest, then once more, which must
find nothing. Each version that stays is then verified in full, by `segmill verify`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from flows.environment import prepare_environment, switch_telemetry_off
from segmill.data.ingest.builtin import write_street
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.retention.plan import DAY_S
from segmill.stores import store_sizes
from segmill.workspace import Workspace

SEGMILL = Path(sys.executable).parent / "segmill"
SAMPLES, MORE, SIZE_PX = 80, 10, (64, 64)
MEMBER = {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003}
SETTINGS = (
    "train.epochs=2", "train.val_every=1", "prepare.size_px=[64, 64]", "promotion.floor_miou=0.0",
    "promotion.rule=plain", "keep.versions=1", "keep.champions=1",
)  # fmt: skip
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrains", type=int, default=3)
    parser.add_argument("--days", type=float, default=400)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="retention-") as temporary:
        workspace = retrained(Path(temporary), options.retrains)
        collected(workspace, options.days)


def retrained(folder: Path, times: int) -> Workspace:
    """Return a workspace after so many retrains."""
    write_street(folder / "set", count=SAMPLES, size=SIZE_PX)
    run("init", str(folder / "workspace"), "--data", str(folder / "set"), "--name", "street")
    workspace, yaml = Workspace.open(folder / "workspace"), YAML()
    yaml.dump({**yaml.load(workspace.params), "members": {"net": MEMBER}}, workspace.params)
    set_params(workspace.params, list(SETTINGS))
    for number in range(times):
        if number:
            more = folder / f"more-{number}"
            write_street(more, count=MORE, size=SIZE_PX, first=SAMPLES + number * MORE)
            run("data", "add", str(more), "-m", f"addition {number}", at=workspace)
        run("retrain", "--set", f"members.net.lr={0.003 - 0.0005 * number}", at=workspace)
        print(
            f"after {number + 1} retrains: {store_sizes(workspace, read_params(workspace.params))['total'] / MIB:.1f}"
        )
    return workspace


def collected(workspace: Workspace, days: float) -> None:
    """Collect as if it were so many days later, and print what that was of each store."""
    params = read_params(workspace.params)
    switch_telemetry_off()
    prepare_environment(workspace, params)
    from flows.prefect_server import start_server
    from tasks.collect import collect

    grow_older(workspace.scratch, days)
    start_server()
    later = time.time() + days * DAY_S
    before = store_sizes(workspace, params)
    plan = collect(workspace, params, dry_run=True, now_s=later)
    done = collect(workspace, params, now_s=later)
    again = collect(workspace, params, now_s=later)
    after = store_sizes(workspace, params)
    print(f"\n{'MiB of':12}{'before':>9}{'after':>9}")
    for store in before:
        print(f"{store:12}{before[store] / MIB:>9.2f}{after[store] / MIB:>9.2f}")
    print(f"\n{'kind':12}{'things':>9}{'files':>9}{'MiB':>9}")
    for store, facts in done.facts()["stores"].items():
        files = sum(len(one.files) for one in done.removals if one.store == store)
        print(f"{store:12}{facts['things']:>9}{files:>9}{facts['bytes'] / MIB:>9.2f}")
    print(
        f"said beforehand {plan.freed_bytes / MIB:.2f} MiB, freed {done.freed_bytes / MIB:.2f}, in {done.seconds:.1f} s"
    )
    print(f"a second collection finds {len(again.removals)} things; kept: {done.kept}; notes: {done.notes}")
    for version in done.kept:
        said = run("verify", f"segmill-street/{version}", at=workspace)
        print(f"verify {version}: {said.splitlines()[-1]}")


def grow_older(folder: Path, days: float) -> None:
    """Let all files and folders below look so many days older; not Prefect's database, which is in use."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            when = path.stat().st_mtime - days * DAY_S
            os.utime(path, (when, when))


def run(*words: str, at: Workspace | None = None) -> str:
    """Run a command of segmill; return what it printed."""
    where = ["--workspace", str(at.root)] if at else []
    done = subprocess.run([str(SEGMILL), *words, *where], capture_output=True, text=True)
    if done.returncode not in (0, 3):  # 3: the gate said no
        raise SystemExit(f"segmill {words[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
