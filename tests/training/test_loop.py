from __future__ import annotations

import contextlib
import itertools
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.shards import Preparation
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.errors import InputError
from segmill.metrics import scores
from segmill.metrics.counts import confusion_counts
from segmill.models.members import Member, MemberSpec
from segmill.training import checkpoint, clock, loop
from segmill.training.checkpoint import Training
from segmill.training.clock import Rank
from segmill.training.finite import MemberFailed
from segmill.training.loop import Step, make_objective, train_member
from segmill.training.objective import Learner
from segmill.training.schedule import set_lr
from segmill.training.settings import Settings
from segmill.training.validation import share_statistics, validate
from tests.training.conftest import HEADS, SETTINGS, Tiny, batches, tiny_module

CPU = torch.device("cpu")


def tiny_for(settings: Settings) -> Tiny:
    return tiny_module(heads=tuple(settings.aux_heads), deep=settings.deep_supervision > 0)


def train(split: PackedSplit, settings: Settings = SETTINGS, **how: object) -> Training:
    made = batches(split, distances=make_objective(settings, None).needs_distances)
    return train_member(tiny_for(settings), made, split, settings, device=CPU, rank=Rank(), **how)  # type: ignore[arg-type]


def test_it_learns_and_keeps_the_best(split: PackedSplit) -> None:
    steps: list[Step] = []
    training = train(split, replace(SETTINGS, epochs=8), on_step=steps.append)
    mious = [row["val_miou"] for row in training.curves]
    assert training.curves[-1]["loss"] < 0.5 * training.curves[0]["loss"]
    assert training.best_miou == max(mious) > 0.9
    assert training.best_epoch == 1 + mious.index(max(mious))
    assert [(step.epoch, step.step, step.steps) for step in steps[:3]] == [(1, 1, 2), (1, 2, 2), (2, 1, 2)]
    assert steps[-1].seconds_left == 0
    module = tiny_module()
    module.load_state_dict(training.best_weights)
    counts = validate(module, split, SETTINGS, device=CPU, rank=Rank(), dtype=None)
    assert scores.miou(counts) == training.best_miou


def test_compile_on_compiles_what_trains_and_changes_no_result(
    split: PackedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without compiled code, which takes a minute: tests/training/measure compares what that computes."""
    compiled: list[Learner] = []
    compiles = Learner.compile
    monkeypatch.setattr(Learner, "compile", lambda self, **how: (compiled.append(self), compiles(self, **how)))
    plain = train(split, SETTINGS)
    assert not compiled
    with torch.compiler.set_stance("force_eager"):
        other = train(split, replace(SETTINGS, compile="on"))
    assert len(compiled) == 1 and compiled[0]._compiled_call_impl is not None
    assert [row["loss"] for row in other.curves] == [row["loss"] for row in plain.curves]


def test_counts_are_those_of_the_metrics_room(split: PackedSplit) -> None:
    module = tiny_module()
    counts = validate(module, split, SETTINGS, device=CPU, rank=Rank(), dtype=None)
    expected = np.zeros((2, 2), np.int64)
    for index in range(len(split)):
        with torch.inference_mode():
            ids = module.eval()(torch.from_numpy(split.image(index).copy())[None])["logits"][0].argmax(dim=0).numpy()
        expected += confusion_counts(split.mask(index), ids, 2, 255)
    np.testing.assert_array_equal(counts, expected)


def test_training_validation_and_prediction_see_the_same_pixels(street: Path, tmp_path: Path) -> None:
    """A train image, were it in val or came it to be predicted, would look to the network as it did in training."""
    how = {"grayscale": False, "clahe": 3.0}
    validate_dataset(street, tmp_path / "manifest.parquet", shares=SplitShares(0.2, 0.2, 0))
    pack(street, tmp_path / "manifest.parquet", tmp_path / "plain")
    info = pack(street, tmp_path / "manifest.parquet", tmp_path / "packed", train=Preparation(**how))
    original, train = PackedSplit(tmp_path / "plain" / "train"), PackedSplit(tmp_path / "packed" / "train")
    inputs: list[np.ndarray] = []
    module = tiny_module()
    module.register_forward_pre_hook(lambda _, given: inputs.append(given[0].numpy().copy()))

    settings = replace(SETTINGS, num_classes=info.num_classes, grayscale=info.grayscale, clahe=info.clahe)
    validate(module, original, settings, device=CPU, rank=Rank(), dtype=None)
    spec = MemberSpec("tiny", "none", "none", 2, grayscale=info.grayscale, clahe=info.clahe)
    validated, inputs[:] = np.concatenate(inputs), []
    Member(spec, module, CPU).predict_probs(np.stack([original.image(index) for index in range(len(original))]))
    predicted = np.concatenate(inputs)
    trained = np.stack([train.image(index) for index in range(len(train))])
    np.testing.assert_array_equal(validated, trained)
    np.testing.assert_array_equal(predicted, trained)
    assert (trained[0] != original.image(0)).any()


RECIPES: dict[str, dict[str, object]] = {
    "plain": {},
    "ema": {"ema_decay": 0.9},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "schedule": "poly", "max_grad_norm": 0.5},
    "nadam": {"optimizer": "nadam", "ema_decay": 0.9},
    "muon": {"optimizer": "muon", "lr": 0.01},
    "onecycle": {"schedule": "onecycle", "layer_decay": 0.7, "encoder_lr_factor": 0.5},
    "accumulate": {"grad_accum_steps": 3, "ema_decay": 0.9},
    "freeze": {"freeze_epochs": 1, "unfreeze_epochs": 2, "epochs": 6},
    "learned heads": {
        "aux_heads": dict.fromkeys(HEADS, 0.5), "head_weights": "learned", "deep_supervision": 0.4, "ema_decay": 0.9
    },
    "losses": {"loss": {"focal": 1.0, "tversky": 1.0, "lovasz": 1.0, "boundary": 0.01}, "ohem": 0.5},
    "early stop": {"early_stopping_patience": 2, "lr": 1e-4, "epochs": 12},
}  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(split: PackedSplit, tmp_path: Path, recipe: str) -> None:
    settings = replace(SETTINGS, **RECIPES[recipe])  # type: ignore[arg-type]
    whole = train(split, settings)

    def save_then_die(training: Training) -> None:
        checkpoint.save(training, tmp_path)
        if training.epochs_done == 2:
            raise Killed

    with pytest.raises(Killed):
        train(split, settings, on_epoch=save_then_die)
    torch.manual_seed(123)  # whatever the new process drew before
    resumed = train(split, settings, resume_from=tmp_path)
    assert_same(resumed.module.state_dict(), whole.module.state_dict())
    assert_same(resumed.objective.state_dict(), whole.objective.state_dict())
    assert_same(resumed.best_weights, whole.best_weights)
    for key in ("loss", "val_miou", "lr"):
        assert [row[key] for row in resumed.curves] == [row[key] for row in whole.curves]


def test_a_finished_run_resumed_trains_no_more(split: PackedSplit, tmp_path: Path) -> None:
    whole = train(split, on_epoch=lambda training: checkpoint.save(training, tmp_path))
    steps: list[Step] = []
    again = train(split, resume_from=tmp_path, on_step=steps.append)
    assert not steps
    assert_same(again.best_weights, whole.best_weights)


def test_a_damaged_checkpoint_is_one_sentence(split: PackedSplit, tmp_path: Path) -> None:
    (tmp_path / checkpoint.FILE).write_bytes(b"half")
    with pytest.raises(InputError, match=r"can't be resumed .*delete its run folder"):
        train(split, resume_from=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_member(split: PackedSplit, tmp_path: Path) -> None:
    module = tiny_module()

    def poison(step: Step) -> None:
        if (step.epoch, step.step) == (2, 1):
            module.decoder.bias.data.fill_(torch.nan)

    how = {"on_step": poison, "keep_failure_at": tmp_path / "tiny.npz"}
    with pytest.raises(MemberFailed, match=r"member tiny: the loss is nan at epoch 2, step 2 \(learning rate"):
        train_member(module, batches(split), split, SETTINGS, device=CPU, rank=Rank(), **how)  # type: ignore[arg-type]
    assert np.load(tmp_path / "tiny.npz")["ids"].tolist() == batches(split).batch(1, 1)[0]


def test_val_every_looks_seldom_but_at_the_end(split: PackedSplit) -> None:
    training = train(split, replace(SETTINGS, val_every=3))
    assert [row["val_miou"] is None for row in training.curves] == [True, True, False, False]


def test_no_new_best_for_long_enough_ends_it(split: PackedSplit) -> None:
    training = train(split, replace(SETTINGS, early_stopping_patience=2, val_every=2, epochs=40))
    looks = [row["epoch"] for row in training.curves if row["val_miou"] is not None]
    assert training.epochs_done == looks[-1] < 40
    assert looks.index(training.best_epoch) == len(looks) - 3


def test_the_time_budget_ends_it_after_a_whole_step_and_a_look(
    split: PackedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: 0.1 * next(seconds)))
    settings = replace(SETTINGS, max_minutes=0.5, epochs=1000, grad_accum_steps=2, val_every=1000, warmup_epochs=2.0)
    steps: list[Step] = []
    training = train(split, settings, on_step=steps.append, on_epoch=lambda now: checkpoint.save(now, tmp_path))
    assert 30 <= training.seconds < 32
    assert training.epochs_done < 100 and training.over
    assert training.curves[-1]["val_miou"] == training.best_miou > 0
    assert steps[-1].progress >= 1 > steps[-3].progress and steps[-1].step % 2 == 0
    assert steps[-1].seconds_left == 0 < steps[-3].seconds_left < 2
    rates = [row["lr"] for row in training.curves]
    assert max(rates) == pytest.approx(0.05, rel=0.05) and rates[-1] < 0.001  # the schedule fits the budget
    again = train(split, settings, resume_from=tmp_path)
    assert again.epochs_done == training.epochs_done


@pytest.mark.parametrize("schedule", ["cosine", "poly", "onecycle"])
def test_a_budget_that_ends_in_the_first_epoch_completes_the_schedule(
    split: PackedSplit, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: 0.1 * next(seconds)))
    long = batches(split)
    monkeypatch.setattr(long, "steps_per_epoch", 400)
    settings = replace(SETTINGS, max_minutes=0.5, warmup_epochs=1.0, schedule=schedule)
    rates: list[float] = []
    monkeypatch.setattr(loop, "set_lr", lambda *how: rates.append(set_lr(*how)) or rates[-1])
    training = train_member(tiny_module(), long, split, settings, device=CPU, rank=Rank())
    assert max(rates) == pytest.approx(settings.lr, rel=0.05), "the peak is reached"
    assert rates[-1] < 0.02 * settings.lr, "and the end of the fall"
    assert training.steps_done == len(rates) < training.steps_per_epoch == 400


def test_a_resumed_training_with_a_budget_continues_its_schedule(
    split: PackedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, max_minutes=0.5, epochs=1000, val_every=1000, warmup_epochs=40.0)
    rates: list[float] = []
    monkeypatch.setattr(loop, "set_lr", lambda *how: rates.append(set_lr(*how)) or rates[-1])

    def save_then_die(training: Training) -> None:
        checkpoint.save(training, tmp_path)
        if training.epochs_done == dies_after:
            raise Killed

    def run(**how: object) -> list[float]:
        rates.clear()
        seconds = itertools.count()
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: 0.1 * next(seconds)))
        with contextlib.suppress(Killed):
            train(split, settings, **how)
        return list(rates)

    whole = run()
    for dies_after in (2, 8):  # inside the warm-up, and behind it
        before, after = run(on_epoch=save_then_die), run(resume_from=tmp_path)
        assert len(before) == 2 * dies_after
        # A start of the process reads the clock anew: within a step's share of the budget of the undisturbed one.
        assert before + after == pytest.approx(whole[: len(before + after)], abs=0.03)


def test_frozen_stages_stand_still_then_learn_the_deepest_first(split: PackedSplit) -> None:
    moved: list[list[bool]] = []
    before = tiny_module().state_dict()

    def compare(training: Training) -> None:
        now = training.module.state_dict()
        parts = [["encoder.0", "encoder.1"], ["encoder.3", "encoder.4"], ["decoder"]]
        names = [[name for name in now if name.startswith(tuple(part))] for part in parts]
        moved.append([any(not torch.equal(now[name], before[name]) for name in part) for part in names])

    train(split, replace(SETTINGS, freeze_epochs=1, unfreeze_epochs=1, epochs=3), on_epoch=compare)
    assert moved == [[False, False, True], [False, True, True], [True, True, True]]


def test_accumulated_batches_move_as_one_large_one(split: PackedSplit) -> None:
    """Nothing normalises over the batch here, so three batches of one sample are one of three."""
    settings = replace(SETTINGS, loss={"ce": 1.0}, epochs=2, warmup_epochs=0.0, optimizer="sgd", schedule="constant")
    modules = [tiny_module(plain=True) for _ in range(2)]
    how = {"device": CPU, "rank": Rank()}
    for module, size in zip(modules, (3, 1), strict=True):
        made = batches(split, size=size)
        train_member(module, made, split, replace(settings, grad_accum_steps=3 // size), **how)  # type: ignore[arg-type]
    for whole, parts in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def assert_same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


# Cross-entropy of full masks averages alike over ranks; Dice does not.
RANKED = replace(SETTINGS, loss={"ce": 1.0}, freeze_epochs=1, unfreeze_epochs=1, grad_accum_steps=2)
BUDGETED = replace(
    SETTINGS,
    max_minutes=1 / 60,
    epochs=10**6,
    aux_heads=dict.fromkeys(HEADS, 0.5),
    head_weights="learned",
    val_every=10**6,
)


def _rank(index: int, port: int, folder: str, result: str) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=index, world_size=2)
    split, rank = PackedSplit(Path(folder)), Rank(index, 2)
    made = batches(split, index, 2, size=2)
    training = train_member(tiny_module(plain=True), made, split, RANKED, device=CPU, rank=rank)
    counts = validate(training.module, split, SETTINGS, device=CPU, rank=rank, dtype=None)
    # What the ranks saw of normalisation differs; share_statistics must make it one.
    normed = tiny_module()
    normed.encoder[1].running_mean += index
    share_statistics(normed, rank)
    steps: list[Step] = []
    budgeted = train_member(
        tiny_module(heads=HEADS), batches(split, index, 2, distances=True), split, BUDGETED,
        device=CPU, rank=rank, on_step=steps.append,
    )  # fmt: skip
    kept = Path(result) / "bad.npz"
    broken = tiny_module()

    def poison(step: Step) -> None:
        if index == 1:  # rank 0's next loss is still finite
            broken.decoder.bias.data.fill_(torch.nan)

    try:
        train_member(broken, made, split, SETTINGS, device=CPU, rank=rank, keep_failure_at=kept, on_step=poison)
        said = ""
    except MemberFailed as failure:
        said = str(failure)
    torch.save(
        {
            "module": training.module.state_dict(),
            "counts": torch.from_numpy(counts),
            "running_mean": normed.encoder[1].running_mean,
            "budgeted": {name: p.detach() for name, p in budgeted.module.named_parameters()},
            "head weights": budgeted.objective.state_dict(),
            "steps": (budgeted.epochs_done, steps[-1].step),
            "said": said,
        },
        f"{result}/{index}.pt",
    )
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_judge_and_fail_as_one(split: PackedSplit, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = split._folders[0]
    multiprocessing.spawn(_rank, (port, str(folder), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{index}.pt") for index in range(2)]
    assert_same(ranks[0]["module"], ranks[1]["module"])
    assert ranks[0]["running_mean"].tolist() == ranks[1]["running_mean"].tolist() == [0.5] * 4
    assert ranks[0]["counts"].sum() == 9 * 32 * 32
    assert torch.equal(ranks[0]["counts"], ranks[1]["counts"])
    assert_same(ranks[0]["budgeted"], ranks[1]["budgeted"])
    assert_same(ranks[0]["head weights"], ranks[1]["head weights"])
    assert ranks[0]["steps"] == ranks[1]["steps"]
    assert all("at epoch 1, step 2 " in rank["said"] and "bad.npz" in rank["said"] for rank in ranks)
    assert np.load(tmp_path / "bad.npz")["ids"].tolist() == batches(split, 1, 2, size=2).batch(0, 1)[0]

    one = train_member(tiny_module(plain=True), batches(split, size=2), split, RANKED, device=CPU, rank=Rank())
    for name, tensor in one.module.state_dict().items():
        torch.testing.assert_close(ranks[0]["module"][name], tensor, rtol=1e-3, atol=1e-4)
    one.module.load_state_dict(ranks[0]["module"])
    alone = validate(one.module, split, SETTINGS, device=CPU, rank=Rank(), dtype=None)
    np.testing.assert_array_equal(alone, ranks[0]["counts"].numpy())
