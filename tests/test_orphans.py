"""What a killed command started ends soon after it: also who ignores signals, and who hides its environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

COMMAND = """
import subprocess, sys, time
from segmill.orphans import end_with_this_process
end_with_this_process()
end_with_this_process()
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
with_child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}], env={{}})"
children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
            for code in (deaf, with_child)]
for child in children:
    child.stdout.readline()
time.sleep(5)  # longer than between two looks
print("up", flush=True)
time.sleep(600 if sys.argv[1] == "stays" else 0)
"""


@pytest.mark.parametrize("end", ["killed", "over"])
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
        assert command.stdout.readline() == b"up\n"
        if end == "killed":
            command.kill()
        command.wait(10)
        left = psutil.wait_procs(started, timeout=10)[1]
        assert left == []
        assert bystander.poll() is None
    finally:
        for process in [*started, bystander]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_it_costs_nothing_to_import() -> None:
    code = "import sys, flows.commands.cli; print([m for m in ('psutil', 'ray', 'prefect') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=dict(os.environ)).strip() == "[]"
