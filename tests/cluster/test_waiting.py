from __future__ import annotations

from typing import NoReturn

import pytest
import ray

from segmill.cluster.waiting import fetch


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), ValueError("another")])
def test_an_interruption_that_rays_compiled_code_swallowed_is_one(
    cause: BaseException, joined: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was ended in its step `evaluate` said so: it takes a signal in one moment of many, so it is raised."""

    def answers_with_an_exception_set(*arguments: object, **options: object) -> NoReturn:
        raise SystemError("returned a result with an exception set") from cause

    reference = ray.put(1)
    assert fetch(reference) == 1
    monkeypatch.setattr(ray, "wait", answers_with_an_exception_set)
    with pytest.raises(KeyboardInterrupt if isinstance(cause, KeyboardInterrupt) else SystemError):
        fetch(reference)
