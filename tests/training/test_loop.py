from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from segmill.data.checks import validate_dataset
from segmill.data.packing import PackedSplit, pack
from segmill.errors import InputError
from segmill.metrics import scores
from segmill.metrics.counts import confusion_counts
from segmill.models.members import Member, MemberSpec
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.loop import MemberFailed, Rank, Settings, Step, share_statistics, train_member, validate
from tests.training.conftest import SETTINGS, batches, tiny_module

CPU = torch.device("cpu")


def train(split: PackedSplit, settings: Settings = SETTINGS, **how: object) -> Training:
    return train_member(tiny_module(), batches(split), split, settings, device=CPU, rank=Rank(), **how)  # type: ignore[arg-type]


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


def test_counts_are_those_of_the_metrics_room(split: PackedSplit) -> None:
    module = tiny_module()
    counts = validate(module, split, SETTINGS, device=CPU, rank=Rank(), dtype=None)
    expected = np.zeros((2, 2), np.int64)
    for index in range(len(split)):
        with torch.inference_mode():
            ids = module(torch.from_numpy(split.image(index).copy())[None])[0].argmax(dim=0).numpy()
        expected += confusion_counts(split.mask(index), ids, 2, 255)
    np.testing.assert_array_equal(counts, expected)


def test_training_validation_and_prediction_see_the_same_pixels(street: Path, tmp_path: Path) -> None:
    """A train image, were it in val or came it to be predicted, would look to the network as it did in training."""
    how = {"grayscale": False, "clahe": 3.0}
    validate_dataset(street, tmp_path / "manifest.parquet", val=0.2, test=0.2, seed=0)
    pack(street, tmp_path / "manifest.parquet", tmp_path / "plain", size=None)
    info = pack(street, tmp_path / "manifest.parquet", tmp_path / "packed", size=None, **how)
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


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(split: PackedSplit, tmp_path: Path, ema: float) -> None:
    settings = replace(SETTINGS, ema=ema)
    whole = train(split, settings)

    class Killed(Exception):
        pass

    def save_then_die(training: Training) -> None:
        checkpoint.save(training, tmp_path)
        if training.epochs_done == 2:
            raise Killed

    with pytest.raises(Killed):
        train(split, settings, on_epoch=save_then_die)
    torch.manual_seed(123)  # whatever the new process drew before
    resumed = train(split, settings, resume_from=tmp_path)
    assert_same(resumed.module.state_dict(), whole.module.state_dict())
    assert_same(resumed.best_weights, whole.best_weights)
    assert [row["loss"] for row in resumed.curves] == [row["loss"] for row in whole.curves]
    assert [row["val_miou"] for row in resumed.curves] == [row["val_miou"] for row in whole.curves]


def test_a_finished_run_resumed_trains_no_more(split: PackedSplit, tmp_path: Path) -> None:
    whole = train(split, on_epoch=lambda training: checkpoint.save(training, tmp_path))
    steps: list[Step] = []
    again = train(split, resume_from=tmp_path, on_step=steps.append)
    assert not steps
    assert_same(again.best_weights, whole.best_weights)


def test_a_damaged_checkpoint_is_one_sentence(split: PackedSplit, tmp_path: Path) -> None:
    (tmp_path / checkpoint.FILE).write_bytes(b"half")
    with pytest.raises(InputError, match=r"can't be continued .*delete its run folder"):
        train(split, resume_from=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_member(split: PackedSplit) -> None:
    module = tiny_module()

    def poison(step: Step) -> None:
        if (step.epoch, step.step) == (2, 1):
            module.net.decoder.bias.data.fill_(torch.nan)

    with pytest.raises(MemberFailed, match=r"member tiny: the loss is nan at epoch 2, step 2 \(learning rate"):
        train_member(module, batches(split), split, SETTINGS, device=CPU, rank=Rank(), on_step=poison)


def test_val_every_looks_seldom_but_at_the_end(split: PackedSplit) -> None:
    training = train(split, replace(SETTINGS, val_every=3))
    assert [row["val_miou"] is None for row in training.curves] == [True, True, False, False]


def assert_same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def _rank(index: int, port: int, folder: str, result: str) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=index, world_size=2)
    split = PackedSplit(Path(folder))
    training = train_member(
        tiny_module(plain=True),
        batches(split, index, 2),
        split,
        replace(SETTINGS, dice_weight=0.0),
        device=CPU,
        rank=Rank(index, 2),
    )
    counts = validate(training.module, split, SETTINGS, device=CPU, rank=Rank(index, 2), dtype=None)
    # What the ranks saw of normalisation differs; share_statistics must make it one.
    normed = tiny_module()
    normed.net.norm.running_mean += index
    share_statistics(normed, Rank(index, 2))
    torch.save(
        {
            "module": training.module.state_dict(),
            "counts": torch.from_numpy(counts),
            "running_mean": normed.net.norm.running_mean,
        },
        f"{result}/{index}.pt",
    )
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_and_judge_as_one(split: PackedSplit, tmp_path: Path) -> None:
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

    one = train_member(
        tiny_module(plain=True),
        batches(split),
        split,
        replace(SETTINGS, dice_weight=0.0),
        device=CPU,
        rank=Rank(),
    )
    for name, tensor in one.module.state_dict().items():
        torch.testing.assert_close(ranks[0]["module"][name], tensor, rtol=1e-3, atol=1e-4)
    one.module.load_state_dict(ranks[0]["module"])
    alone = validate(one.module, split, SETTINGS, device=CPU, rank=Rank(), dtype=None)
    np.testing.assert_array_equal(alone, ranks[0]["counts"].numpy())
