"""A signal ends a command within seconds, whatever it does: Python is deaf while a library computes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from terminal import shown

from flows.commands.stopping import INTERRUPTED

BUSY = "import hashlib; print('up', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**30)"
STUBBORN = """
import time
print('up', flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [BUSY, STUBBORN], ids=["busy", "stubborn"])
def test_what_does_not_hear_a_signal_is_cut_off(code: str, number: int) -> None:
    obey = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in the background
    obey += "from flows.commands.stopping import obey_signals; obey_signals(lambda: print('interrupted'))\n"
    command = subprocess.Popen([sys.executable, "-c", obey + code], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None and command.stdout.readline() == "up\n"
    time.sleep(0.5)  # until it computes
    began = time.monotonic()
    command.send_signal(number)
    assert command.wait(timeout=60) == INTERRUPTED
    assert time.monotonic() - began < 5
    assert command.stdout.read() == "interrupted\n"


IMPORTING = """
import _imp, signal, time
from flows.commands.stopping import obey_signals

signal.signal(signal.SIGINT, signal.default_int_handler)


def say():
    import colorsys
    print('said', flush=True)


obey_signals(say)
_imp.acquire_lock()
try:
    print('up', flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)
"""


def test_a_command_whose_import_was_interrupted_ends_too() -> None:
    """An import that a signal cut in two can keep the lock that every other thread's imports wait for."""
    command = subprocess.Popen(
        [sys.executable, "-c", IMPORTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout and command.stderr and command.stdout.readline() == "up\n"
    command.send_signal(signal.SIGINT)
    try:
        assert command.wait(timeout=20) == INTERRUPTED
    finally:
        command.kill()
    assert (command.stdout.read(), command.stderr.read()) == ("", "interrupted\n")


DRAWN = """
import os, signal, time
from rich.console import Console
from rich.text import Text
from flows import display
from flows.commands.stopping import obey_signals

signal.signal(signal.SIGINT, signal.default_int_handler)
obey_signals(lambda: (print('interrupted', flush=True), time.sleep(2)))
with display.watching(Console(), lambda: Text('a picture'), lambda over: ()):
    time.sleep(1)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        time.sleep(60)
"""


def test_no_picture_is_drawn_after_what_is_said_last() -> None:
    """On a busy machine the table came once more, over the sentence, before the process had ended."""
    said, code = shown(sys.executable, "-c", DRAWN)
    assert code == INTERRUPTED
    assert "a picture" in said
    assert said.rstrip().endswith("interrupted")


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_an_interrupted_command_says_so_with_debug_too(options: list[str]) -> None:
    interrupted = (
        "import signal, sys, flows.commands.cli as cli; sys.argv = ['segmill', *sys.argv[1:]]; "
        "cli.app = lambda *_, **__: signal.raise_signal(signal.SIGTERM); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", interrupted, *options], capture_output=True, text=True)
    assert done.returncode == INTERRUPTED
    assert done.stderr.splitlines() == [
        "interrupted; what was finished is recorded, and the next run resumes from there"
    ]
