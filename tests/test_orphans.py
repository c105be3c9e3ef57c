"""What a killed command started ends soon after it: also who ignores signals, and who hides its environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

COMMAND = """
import os, subprocess, sys, tempfile, time
from segmill.orphans import end_with_this_process
end_with_this_process(temporary_folder=True)
end_with_this_process()
assert tempfile.gettempdir() == os.environ["TMPDIR"]
tempfile.mkdtemp()
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
with_child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}], env={{}})"
children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
            for code in (deaf, with_child)]
for child in children:
    child.stdout.readline()
time.sleep(5)  # longer than between two looks
print(tempfile.gettempdir(), flush=True)
time.sleep(600 if sys.argv[1] == "stays" else 0)
"""


@pytest.mark.parametrize("end", ["killed", pytest.param("over", marks=pytest.mark.long)])
def test_what_a_command_started_ends_within_seconds_of_it(end: str) -> None:
    bystander = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    command = psutil.Popen(
        [sys.executable, "-c", COMMAND, "stays" if end == "killed" else "goes"], stdout=subprocess.PIPE
    )
    started: list[psutil.Process] = []
    try:
        while len(started) < 4:  # the watcher, two children and a grandchild
            assert command.poll() is None
            started = command.children(recursive=True)
            time.sleep(0.05)
        folder = Path(command.stdout.readline().decode().strip())
        assert list(folder.iterdir()) and folder != Path(tempfile.gettempdir())
        if end == "killed":
            command.kill()
        command.wait(10)
        left = psutil.wait_procs(started, timeout=10)[1]
        assert left == []
        assert not folder.exists(), "nor its temporary files"
        assert bystander.poll() is None
    finally:
        for process in [*started, bystander]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


OWN_FOLDER = """
import os, tempfile
from segmill.orphans import end_with_this_process
end_with_this_process(temporary_folder=True)
print(tempfile.gettempdir(), os.environ.get("RAY_TMPDIR"))
"""


@pytest.mark.parametrize(("length", "own", "rays"), [(20, True, False), (40, True, True), (70, False, False)])
def test_its_own_folder_is_no_longer_than_sockets_allow(tmp_path: Path, length: int, own: bool, rays: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        top = short + "/".ljust(length - len(short), "x")
        os.mkdir(top)
        said = subprocess.check_output(
            [sys.executable, "-c", OWN_FOLDER], text=True, env={**os.environ, "TMPDIR": top}
        )  # fmt: skip
        folder, ray_folder = said.split()
        assert len(top) == length and (Path(folder).parent == Path(top)) == own and (folder == top) != own
        assert ray_folder == (top if rays else "None"), "Ray's sessions are where they would be without it"
        until = time.monotonic() + 10
        while os.listdir(top) and time.monotonic() < until:
            time.sleep(0.1)
        assert os.listdir(top) == []


def test_it_costs_nothing_to_import() -> None:
    code = "import sys, flows.commands.cli; print([m for m in ('psutil', 'ray', 'prefect') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=dict(os.environ)).strip() == "[]"
