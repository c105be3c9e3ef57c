"""What the page of a run says besides what was measured: verdict, changes, when, from what. Light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Link(NamedTuple):
    """A page of MLflow."""

    title: str
    address: str


@dataclass(frozen=True, kw_only=True)
class VerdictFacts:
    """What the gate decided.

    Attributes:
        decision: PASS, FAIL, INCONCLUSIVE or UNDECIDABLE. ``outcome``: what came of it, a sentence.
        reasons, warnings, next_steps: sentences; a warning says what makes this run less than it could be.
        version: of the registered model, that was judged. ``rival``: the version it was compared with, None where there
            was none; ``rival_serves``: it stays the champion.
        facts: the gate's figures, as ``segmill.promotion.gate.Verdict`` has them. Where they are known also
            ``renewal``: what renews the judgements; ``expires``: until when a PASS waits for approval; and
            ``since_promotion``: gain, gain_low, gain_high over the predecessor on groups that arrived later.
    """

    decision: str
    outcome: str
    reasons: Sequence[str]
    warnings: Sequence[str]
    next_steps: Sequence[str]
    version: str
    rival: str | None
    rival_serves: bool
    facts: Mapping[str, Any]

    @property
    def rival_title(self) -> str:
        return f"{'champion' if self.rival_serves else 'former champion'} (version {self.rival})"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What differs from what the version was made from that this one was compared with: lines, none where nothing does.

    ``unknown``: why that can't be said, "" where it can.
    """

    data: Sequence[str] = ()
    settings: Sequence[str] = ()
    code: Sequence[str] = ()
    unknown: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """When a run was, what it was made from, and what it came to.

    Attributes:
        model: the registered model's name.
        finished: local time. ``seconds``: from its begin to its page.
        data_version: that it began with. ``commit``: of git, with ``-dirty`` where files differed, or "none".
        trained: member to the seconds that it took; None for one that is from an earlier run.
        settings: stage to the rows (key, value) that it was made with.
        links: to the run and its versions. ``member_links``: member to the address of its own run.
        local_pages: whether the links lead to the pages that `segmill ui` starts.
        changes: None where there was no version to compare with.
    """

    model: str
    finished: str
    seconds: float
    data_version: str
    commit: str
    segmill_version: str
    trained: Mapping[str, float | None]
    settings: Mapping[str, Sequence[tuple[str, str]]]
    links: Sequence[Link]
    member_links: Mapping[str, str]
    local_pages: bool
    verdict: VerdictFacts
    changes: Changes | None
