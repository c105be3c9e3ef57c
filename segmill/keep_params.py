"""The block `keep:` of params.yaml: what `segmill gc` and the nightly run leave. Light to import."""

from __future__ import annotations

from pydantic import Field

from segmill.params_block import Block


class KeepParams(Block):
    """What stays of a workspace and its stores; docs/retention.md says what always does."""

    versions: int = Field(10, ge=1, description="Newest versions of the model whose files stay.")
    champions: int = Field(
        3, ge=1, description="Former champions whose files stay, counted back as `segmill rollback` goes."
    )
    recent_days: float = Field(
        7.0, ge=1, description="Days for which everything stays, since a run on another machine may be about to use it."
    )
    run_days: int | None = Field(
        365, ge=1, description="Days for which MLflow's runs stay whose version does not; null keeps them all."
    )
    prefect_days: int | None = Field(
        90, ge=1, description="Days for which Prefect's runs of this model stay, with their logs; null keeps them all."
    )
    scratch_days: int = Field(
        14, ge=1, description="Days after which unused checkpoints, studies, logs and temporary folders are deleted."
    )
    remote: bool = Field(
        True, description="Collect in data.remote too; false where other projects push the same data there."
    )
