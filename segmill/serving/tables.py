"""The tables that the service works with: made by who owns the ledger's database, so that the service may make none."""

from __future__ import annotations

from segmill.monitoring.windows import make_windows
from segmill.promotion.database import Database
from segmill.promotion.outbox import make_outbox
from segmill.serving.audit import make_audit
from segmill.serving.keys import make_keys


def make_service_tables(url: str) -> None:
    """Make the tables of the ledger, the notices, the keys, the audit log and the windows, where they are not there.

    ``url``: of the ledger's database. Raises InfrastructureError where it does not answer, InputError without rights.
    """
    with Database(url).writing() as connection:
        make_outbox(connection)
        make_keys(connection)
        make_audit(connection)
        make_windows(connection)
