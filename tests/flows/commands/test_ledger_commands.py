"""`segmill ledger verify` and `adopt`, run as a user runs them, on a workspace whose ledger has rows."""

from __future__ import annotations
