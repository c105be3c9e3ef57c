"""The grammar of a search, the trials' files, the verdict; ASHA and TPE that go on where an earlier search ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill import progress
from segmill.errors import InputError
from segmill.params import parse_params
from segmill.tuning.search import Rungs, results
from segmill.tuning.space import (
    Dimension,
    assignments,
    combinations,
    default_searches,
    read_space,
    settings_of,
    value_at,
    with_values,
)
from segmill.tuning.trials import (
    Spending,
    Study,
    Trial,
    best_trial,
    compare,
    decide,
    read_trials,
    reserve_seconds,
    run_seconds,
    trial_key,
    unchanged,
    write_table,
)
from segmill.workspace import template

MEMBER = "lite0-unet"
LR = Dimension(f"members.{MEMBER}.lr", "float", 0.001, 0.01, log=True)
SCHEDULE = Dimension("train.schedule", "choice", choices=("cosine", "poly"))


@pytest.fixture
def values() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(template("params.yaml").read_text())
    return found


def trial(number: int, miou: float, state: Any = "full", epochs: int = 4, **more: Any) -> Trial:
    """Return a trial of four epochs whose val mIoU goes up to ``miou`` evenly."""
    rows = [
        {"epoch": epoch, "share": epoch / 4, "val_miou": miou * epoch / 4, "best": miou * epoch / 4, "loss": 1.0,
         "lr": 0.1, "seconds": 2.0 * epoch}
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    chosen = more.pop("values", {LR.key: 0.001 * number, SCHEDULE.key: "poly"})
    return Trial(trial_key(chosen, 0), chosen, 0, float(number), rows, state, **more)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-4..1e-2:log", Dimension(f"members.{MEMBER}.lr", "float", 1e-4, 1e-2, log=True)),
        ("train.loss.dice=0.2..2", Dimension("train.loss.dice", "float", 0.2, 2.0)),
        ("train.loss.dice=1..2", Dimension("train.loss.dice", "float", 1.0, 2.0)),
        ("train.batch_size=2..8", Dimension("train.batch_size", "int", 2.0, 8.0)),
        ("train.schedule=cosine,poly", SCHEDULE),
        ("augment.copy_paste=0,0.25", Dimension("augment.copy_paste", "choice", choices=(0, 0.25))),
        ("prepare.size_px=[96, 64],null", Dimension("prepare.size_px", "choice", choices=([96, 64], None))),
    ],
)
def test_what_a_search_may_say(values: dict[str, Any], text: str, expected: Dimension) -> None:
    (found,) = read_space([text], values, MEMBER)
    assert found == expected
    assert read_space([str(found)], values, MEMBER) == [expected], "it reads what it writes"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lr", "write KEY=LOW..HIGH"),
        ("lr=5", "one value can't be searched"),
        ("lr= 5", "`segmill retrain --set 'lr= 5'` sets it"),
        ("lr=0.01..0.001", "must go from a number up to a larger one"),
        ("lr=a..b", "is no range of numbers"),
        ("lr=0..1:log", "starts above 0"),
        ("lr=1..2:lgo", "did you mean 'log'"),
        ("lr=-1..1", "input should be greater than 0"),
        ("train.ema_decay=0..1", "input should be less than 1"),  # the upper end
        ("train.los.dice=1..2", "unknown key train.los; did you mean 'loss'"),
        ("train.schedule=cosine,polly", "train.schedule is 'polly'"),
        ("train.schedule=poly,poly", "is there twice"),
        ("members.lite0-une.lr=1..2", "did you mean 'lite0-unet'"),
        ("members.resnet18-linknet.lr=1..2", "is another member; this tunes lite0-unet"),
        ("members.lite0-unet=1,2", "it is a block of keys"),
        ("split.val=0.1,0.2", "split decides what the trials are compared on"),
        ("data.path=a,b", "data decides what the trials are compared on"),
        ("ensemble.tta_hflip=true,false", "no training depends on ensemble"),
        ("train.seed=1,2", "--repeats trains with other ones"),
        ("epochs=4..8", "give --epochs"),
        ("prepare.clahe=0..2", "name the values, as prepare.clahe=0,2"),
    ],
)
def test_what_it_may_not_say(values: dict[str, Any], text: str, sentence: str) -> None:
    with pytest.raises(InputError) as fault:
        read_space([text], values, MEMBER)
    assert sentence in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_key_of_train_that_the_member_overrides_has_no_effect(values: dict[str, Any]) -> None:
    values["members"][MEMBER]["ema_decay"] = 0.5
    with pytest.raises(
        InputError, match=r"members.lite0-unet.ema_decay is set and wins.*search members.lite0-unet.ema_decay"
    ):
        read_space(["train.ema_decay=0.1..0.9"], values, MEMBER)


def test_values_that_can_not_be_together_are_found_before_anything_runs(values: dict[str, Any]) -> None:
    texts = ["prepare.resize=stretch,tile", "prepare.size_px=[64, 64],null"]
    with pytest.raises(InputError, match="resize tile needs size_px"):
        read_space(texts, values, MEMBER)
    with pytest.raises(InputError, match=r"names train\.ema_decay twice"):
        read_space(["train.ema_decay=0.1..0.2", "train.ema_decay=0.3..0.4"], values, MEMBER)


def test_a_part_of_the_loss_that_the_member_takes_over_keeps_the_rest(values: dict[str, Any]) -> None:
    chosen = {f"members.{MEMBER}.loss.dice": 0.4, f"members.{MEMBER}.lr": 0.003, "train.schedule": "poly"}
    changed = with_values(values, MEMBER, chosen)
    assert settings_of(changed, MEMBER)["loss"] == {"ce": 1.0, "dice": 0.4}
    assert "loss" not in values["members"][MEMBER], "what came stays as it is"
    # The lr is what it was; the loss is written whole, since the member had none of its own.
    assert assignments(values, MEMBER, chosen) == [f"members.{MEMBER}.loss={{ce: 1, dice: 0.4}}", "train.schedule=poly"]
    assert value_at(values, MEMBER, f"members.{MEMBER}.loss.dice") == 1.0
    assert value_at(values, MEMBER, "train.loss.focal") is None


def test_the_default_search_is_valid_for_every_member_and_leaves_random_encoders_alone(values: dict[str, Any]) -> None:
    assert list(parse_params(values, "test").members) == list(values["members"])
    for member in values["members"]:
        keys = [dimension.key for dimension in read_space(default_searches(values, member), values, member)]
        assert (f"members.{member}.encoder_lr_factor" in keys) is (values["members"][member]["weights"] != "none")


def test_combinations_of_choices() -> None:
    assert combinations([]) == [{}]
    two = Dimension("a", "choice", choices=(1, 2)), Dimension("b", "choice", choices=("x",))
    assert combinations(two) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


def test_the_files_say_what_became_of_each_trial(tmp_path: Path) -> None:
    study = Study(tmp_path)
    rows = [{"epoch": 1, "share": 0.5, "val_miou": 0.3, "best": 0.3, "loss": 1.0, "lr": 0.1, "seconds": 4.0}]
    blank = {"values": {"a": 1}, "seed": 0, "rows": rows, "over": False, "failed": ""}
    for key, facts in {
        "c": {**blank, "began": 3.0},
        "a": {**blank, "began": 1.0, "over": True},
        "b": {**blank, "began": 2.0, "failed": "the loss is nan"},
        "d": {**blank, "began": 4.0},
    }.items():
        progress.report(study.trial(key), **facts)
    decide(study, "d", "stopped", "behind")
    found = read_trials(study)
    assert [(one.key, one.state, one.why) for one in found] == [
        ("a", "full", ""), ("b", "failed", "the loss is nan"), ("c", "open", ""), ("d", "stopped", "behind"),
    ]  # fmt: skip
    write_table(tmp_path / "trials.csv", found, ["a"])
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert lines[0] == "trial,state,seed,epochs,share,val_miou,seconds,a,why"
    assert lines[2] == "2,failed,0,1,0.500,0.3000,4.0,1,the loss is nan"


def test_the_same_values_and_seed_are_the_same_trial() -> None:
    assert trial_key({"a": 1, "b": 2}, 0) == trial_key({"b": 2, "a": 1}, 0)
    assert len({trial_key({"a": 1}, 0), trial_key({"a": 1}, 1), trial_key({"a": 2}, 0)}) == 3


def test_only_whole_trainings_win() -> None:
    best = trial(2, 0.5)
    assert best_trial([trial(1, 0.4), best, trial(3, 0.9, "stopped", epochs=1)]) == best
    assert best_trial([trial(1, 0.4, "open")]) is None
    assert best.at(0.25) == 0.125 and best.at(1.0) == 0.5
    assert trial(1, 0.4, "stopped", epochs=1).at(0.5) is None


def test_the_reserve_is_what_the_repeats_will_take() -> None:
    # 8 s each at the pace seen (6 s at three quarters of one); four at two a time are two rounds.
    assert reserve_seconds([trial(1, 0.5), trial(2, 0.5, "open", epochs=3)], runs=4, at_once=2) == 16.0
    assert reserve_seconds([], runs=4, at_once=2) == 0.0


def test_seconds_of_killed_searches_count(tmp_path: Path) -> None:
    study = Study(tmp_path)
    progress.report(study.sessions, sessions=[[100.0, 130.0], [500.0, 510.0]])
    spending = Spending(study)
    assert 40.0 <= spending.seconds < 41.0
    time.sleep(0.01)
    spending.end()
    assert 40.0 < run_seconds(study) < 41.0


def test_the_gain_is_set_against_the_noise_between_seeds() -> None:
    """By hand: means 0.72 and 0.70, pooled variance 0.0002, error sqrt(0.0002), t(2) at 97.5 % = 4.3027."""
    found = compare([0.71, 0.73], [0.69, 0.71], 0.95)
    assert found.gain == pytest.approx(0.02)
    assert found.high == pytest.approx(0.02 + 4.3027 * 0.0002**0.5, rel=1e-4)
    assert found.decision == "noise" and "within the noise;" in found.sentence
    better, worse = compare([0.80, 0.801], [0.70, 0.701], 0.95), compare([0.60, 0.61], [0.70, 0.71], 0.95)
    assert better.decision == "better" and "more than the noise between seeds" in better.sentence
    assert worse.decision == "worse" and "the winner of the search was luck" in worse.sentence
    single = compare([0.8], [0.7], 0.95)
    assert single.low is None and "says nothing of the noise" in single.sentence
    assert "--repeats 2" in compare([], [0.7], 0.95).sentence
    assert "keep params.yaml as it is" in unchanged([0.7], 0.95).sentence


def arrives(percent: float, miou: float, a: int) -> dict[str, Any]:
    """Return what Ray Tune says of a trial of ``a``."""
    return {"percent": percent, "miou": miou, "config": {"values": {"a": a}}}


def test_asha_knows_the_trials_of_an_earlier_search_and_notes_whom_it_stops(tmp_path: Path) -> None:
    study = Study(tmp_path)
    # At a quarter they had 0.125, 0.15, 0.175 and 0.2: the middle is 0.1625.
    over = [trial(number, 0.4 + number / 10) for number in range(1, 5)]
    rungs = Rungs(study, 0, over)

    study.checkpoint(trial_key({"a": 1}, 0)).mkdir(parents=True)
    for number, miou, stops in ((1, 0.16, True), (2, 0.165, False)):
        assert not rungs(str(number), arrives(20, 0.01, number))
        assert rungs(str(number), arrives(25, miou, number)) is stops
    (noted,) = json.loads(study.decisions.read_text()).items()
    assert noted[0] == trial_key({"a": 1}, 0) and noted[1]["state"] == "stopped" and "at 25 %" in noted[1]["why"]
    assert not study.checkpoint(trial_key({"a": 1}, 0)).exists()
    # At its end a trial is over, not stopped; one that was over before says nothing.
    assert not rungs("2", arrives(100, 0.01, 2))
    assert not rungs("3", {"done": True, "config": {"values": {"a": 3}}})
    assert len(json.loads(study.decisions.read_text())) == 1


def test_a_trial_is_compared_at_each_rung_once_with_those_that_came_as_far(tmp_path: Path) -> None:
    # At half they had 0.25, 0.3, 0.35 and 0.4: the middle is 0.325.
    rungs = Rungs(Study(tmp_path), 0, [trial(number, 0.4 + number / 10) for number in range(1, 5)])
    assert not rungs("1", arrives(25, 0.2, 1))
    assert not rungs("1", arrives(30, 0.01, 1)), "between two rungs nobody is compared"
    assert rungs("1", arrives(50, 0.32, 1))
    # The one that was stopped counts on: of five the middle is 0.32.
    assert not rungs("2", arrives(55, 0.321, 2))


def test_a_trial_that_still_runs_is_a_rival(tmp_path: Path) -> None:
    rungs = Rungs(Study(tmp_path), 0, [trial(1, 0.6), trial(2, 0.7)])
    assert not rungs("1", arrives(25, 0.2, 1))
    assert rungs("2", arrives(25, 0.1, 2))


def test_two_rivals_say_nothing(tmp_path: Path) -> None:
    rungs = Rungs(Study(tmp_path), 0, [trial(1, 0.6), trial(2, 0.7)])
    assert not rungs("x", arrives(30, 0.01, 1))
    assert not Study(tmp_path).decisions.exists()


def test_only_looks_at_val_are_reported() -> None:
    rows = [{"val_miou": None, "best": None, "share": 0.5}, {"val_miou": 0.4, "best": 0.5, "share": 1.0}]
    assert results(rows) == [{"miou": 0.5, "percent": 100.0}]
