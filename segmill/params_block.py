"""What the blocks of params.yaml share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


class Block(BaseModel):
    """A block of params.yaml: unknown keys are refused, values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
