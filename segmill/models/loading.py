"""Loading a saved member, whatever kind it is."""

from __future__ import annotations

import json
from pathlib import Path

from segmill.models.members import Member
from segmill.models.svm.member import SvmMember


def load_member(folder: Path) -> Member | SvmMember:
    """Rebuild the member saved in ``folder``, a network or a classical one, as its member.json says.

    Raises InputError where a file is missing, unreadable, or does not fit the others.
    """
    try:
        kind = json.loads((folder / "member.json").read_text()).get("kind", "network")
    except (OSError, ValueError, AttributeError):
        kind = "network"  # whose loading says what is wrong
    return SvmMember.load(folder) if kind == "svm" else Member.load(folder)
