"""Which searched key mattered, and what the page of a tuning shows."""

from segmill.tuning.evidence import LEAST_TRIALS, importances
from segmill.tuning.space import Dimension
from segmill.tuning.trials import Trial

SPACE = [
    Dimension("train.lr", "float", low=1e-4, high=1e-2, log=True),
    Dimension("members.a.decoder", "choice", choices=("fpn", "unet")),
]


def trial(number: int, lr: float, decoder: str, figure: float | None) -> Trial:
    """A trial that was looked at once, when a quarter of its training was done."""
    values = {"train.lr": lr, "members.a.decoder": decoder}
    row = {"epoch": 1, "share": 0.25, "loss": 1.0, "val_miou": figure, "best": figure, "lr": lr, "seconds": 1.0}
    return Trial(str(number), values, 0, float(number), [] if figure is None else [row], "stopped")


def rates(count: int) -> list[tuple[float, str]]:
    return [(1e-4 * 100 ** (number / count), ("fpn", "unet")[number % 2]) for number in range(count)]


def test_the_key_that_decided_the_figure_comes_first_and_the_shares_sum_to_one() -> None:
    trials = [
        trial(number, lr, decoder, (0.7 if decoder == "unet" else 0.3) + 0.001 * (number % 5))
        for number, (lr, decoder) in enumerate(rates(24))
    ]

    found = importances(trials, SPACE)

    assert next(iter(found)) == "members.a.decoder"
    assert set(found) == {"train.lr", "members.a.decoder"}
    assert abs(sum(found.values()) - 1) < 1e-6


def test_nothing_is_said_of_too_few_trials_of_like_ones_and_of_such_as_failed() -> None:
    few = [trial(number, lr, decoder, lr) for number, (lr, decoder) in enumerate(rates(LEAST_TRIALS - 1))]
    failed = [trial(90 + number, lr, decoder, None) for number, (lr, decoder) in enumerate(rates(9))]
    alike = [trial(number, lr, decoder, 0.5) for number, (lr, decoder) in enumerate(rates(9))]

    assert importances(few, SPACE) == {}
    assert importances(few + failed, SPACE) == {}
    assert importances(alike, SPACE) == {}
