"""Errors that users read: two fields, one sentence, and both survive the way from another process."""

from __future__ import annotations

import pickle
from pathlib import Path

from segmill.data.schema.issues import IssuesFound, issue_of, wrong_file
from segmill.errors import InputError


def test_an_input_error_says_what_and_what_to_do() -> None:
    error = InputError("lr is -1; that is below 0", "write a number above 0")

    assert (error.what, error.fix) == ("lr is -1; that is below 0", "write a number above 0")
    assert str(error) == "lr is -1; that is below 0; write a number above 0"
    assert (str(InputError("all in one")), InputError("all in one").fix) == ("all in one", "")


def test_errors_keep_their_fields_when_they_come_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(InputError("what", "fix")))
    assert (error.what, error.fix, str(error)) == ("what", "fix", "what; fix")

    stopping, warning = [wrong_file("a.png", "it is empty", "remove it")], issue_of("empty_mask", "masks/b.png")
    found = pickle.loads(pickle.dumps(IssuesFound(Path("raw"), stopping, [*stopping, warning])))
    assert (found.stopping, found.issues) == (stopping, [*stopping, warning])
    assert str(found) == "1 problem in raw:\n  a.png: it is empty; remove it"
