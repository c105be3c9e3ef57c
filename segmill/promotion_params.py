"""The block `promotion:` of params.yaml: how the gate decides, and who must agree."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segmill.params_block import Block, Fraction


class GuardParams(Block):
    """What a challenger may not lose against the champion; PASS needs all of it."""

    class_loss: Fraction | None = Field(
        0.05, description="IoU that no class may lose: shown one-sided at (1 - confidence) / 2; null asks for nothing."
    )
    slices: dict[str, Fraction] = Field(
        {}, description="Manifest column -> mIoU that the images of each of its values may not lose."
    )
    latency_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Most time per image, as a multiple of the champion's; null asks for nothing."
    )
    size_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Most bytes of the model, as a multiple of the champion's; null asks for nothing."
    )


class PromotionParams(Block):
    floor_miou: Fraction = Field(
        0.5,
        description=(
            "Minimum test mIoU; the first champion must reach it with the lower bound of its interval, later ones with "
            "the figure itself."
        ),
    )
    min_gain: Fraction = Field(
        0.0, description="Gain in mIoU over the champion that must be exceeded; 0 asks for any proven gain."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95,
        description="Confidence level of the intervals; guards and rule plain test one-sided at (1 - confidence) / 2.",
    )
    rule: Literal["lifetime", "plain"] = Field(
        "lifetime",
        description=(
            "lifetime bounds the chance of any false promotion on a test set by alpha, over all its judgements; plain "
            "tests each night alone and promises nothing over many nights."
        ),
    )
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.05, description="Most chance of a false promotion over the life of the model, rule lifetime."
    )
    judgements: int = Field(
        20, ge=1, le=1000, description="Judgements that one test set allows; new test groups renew them, rule lifetime."
    )
    goal: Literal["superiority", "noninferiority"] = Field(
        "superiority",
        description="superiority asks for a proven gain; noninferiority for proof that mIoU loses less than margin.",
    )
    margin: Annotated[float, Field(gt=0, le=1)] = Field(
        0.01, description="Loss in mIoU that goal noninferiority accepts; superiority takes no notice of it."
    )
    untestable: Literal["warn", "refuse"] = Field(
        "warn",
        description=(
            "A class or slice too rare to test: warn names it, and it vetoes only if it is shown worse; refuse never "
            "promotes."
        ),
    )
    guards: GuardParams = Field(GuardParams(), description="What must not get worse; see promotion.guards.")
    screen: bool = Field(
        True, description="Judge only versions whose gain on val is above zero by a standard error; saves judgements."
    )
    approval: Literal["none", "one", "two"] = Field(
        "none",
        description="Persons who must approve a PASS before it serves; two: neither is the author of the change.",
    )
    approval_days: int = Field(7, ge=1, description="Days after which a PASS that waits for approval expires.")
    ledger_url: str | None = Field(
        None, description="SQLAlchemy address of the ledger's database; null is ledger.db of the workspace."
    )

    @model_validator(mode="after")
    def a_gain_belongs_to_superiority(self) -> PromotionParams:
        if self.goal == "noninferiority" and self.min_gain:
            raise ValueError(
                f"min_gain {self.min_gain} belongs to goal superiority; set it to 0, noninferiority reads margin"
            )
        return self
