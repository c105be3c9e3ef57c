"""What goes wrong, in one sentence: what came, what is allowed, what to do. The exit code tells whose turn it is."""

from __future__ import annotations


class SegmillError(Exception):
    """An error a user reads without a traceback. Exit code 1: yours to correct."""

    exit_code = 1


class InputError(SegmillError):
    """Data, parameters or resources that the user can change.

    ``what`` came and is wrong, and the ``fix``, what to do, "" where ``what`` says it all. Printed: "what; fix".
    """

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(*((what, fix) if fix else (what,)))
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}" if self.fix else self.what


class Interrupted(SegmillError):
    """Work that did not come to its end because the run was stopped from outside."""

    def __init__(self) -> None:
        super().__init__("the run was stopped")


class GateRefused(SegmillError):
    """The gate looked at the challenger and said no. Exit code 3."""

    exit_code = 3


class InfrastructureError(SegmillError):
    """A server, cluster or remote did not answer. Exit code 4: try again."""

    exit_code = 4


def near_miss(word: str, allowed: list[str] | tuple[str, ...]) -> str:
    """Return "; did you mean 'x'?" for the closest allowed word, or "" where nothing is close."""
    import difflib

    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
