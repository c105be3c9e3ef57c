"""What training saw of a sample, as a picture: original and augmented side by side, each with its classes below."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segmill.errors import InputError, near_miss
from segmill.params import Params
from segmill.renamed_keys import with_new_names
from segmill.workspace import Workspace


def show(workspace: Workspace, params: Params, sample: str, epoch: int, member: str | None, picture: Path) -> list[str]:
    """Draw ``sample`` as ``member`` saw it in ``epoch`` (from 0) beside the packed original; return lines to print.

    Args:
        workspace: with packed splits and what the augment stage wrote.
        params: of the workspace.
        sample: id of a train sample or an extra one.
        epoch: from 0.
        member: whose seed, epochs and batches; None takes the first. Those of its last training, where it has one.
        picture: the file to write; its folder is made.

    Raises:
        InputError: there is no such sample, member or epoch, or the picture's suffix is unknown.
    """
    names = list(params.members)
    name = member or names[0]
    if name not in names:
        raise InputError(f"there is no member '{name}'{near_miss(name, names)} (members: {', '.join(names)})")
    train = _settings(workspace, params, name)
    epochs, batch_size = train["epochs"], train["batch_size"]
    if batch_size == "auto":
        raise InputError(
            f"{name} finds its batch size when it trains, and that decides the samples of each epoch; train it first"
        )
    if epoch >= epochs:
        raise InputError(f"{name} trains for {epochs} epochs, so there is no epoch {epoch}; the last is {epochs - 1}")

    from segmill.data.loading.seen import TrainingView
    from segmill.reports.pictures import image_above_classes, palette, sheet

    seed, crop_size = train["seed"], train["crop_size"]
    view = TrainingView(workspace.packed, workspace.augmented, seed=seed, batch_size=batch_size, crop_size=crop_size)
    index = view.index(sample)
    colors = palette(view.info.colors)
    both = [
        image_above_classes(image, mask, colors, view.info.ignore_id)
        for image, mask in (view.original(index), view.seen(index, epoch))
    ]
    picture.parent.mkdir(parents=True, exist_ok=True)
    try:
        sheet([both]).save(picture)
    except ValueError:
        raise InputError(f"{picture} names no picture format; write --to NAME.png") from None
    policy = f"{view.policy.title}, seed {seed}"
    lines = [f"{picture}: {sample}, packed and as {name} sees it in epoch {epoch} ({policy})"]
    lines += [f"made from {one.describe(view.info.class_names)}" for one in view.origins() if one.id == sample]
    if not view.takes(index, epoch):
        lines.append(f"epoch {epoch} leaves it out: samples that do not fill a batch of {batch_size} wait for another")
    return lines + _about_the_member(workspace, name)


def _settings(workspace: Workspace, params: Params, name: str) -> dict[str, Any]:
    """Return the training block that the member was trained with, or would be; InputError where it sees no images."""
    if params.members[name].kind == "svm":
        raise InputError(f"{name} is an svm: it learns from pixels of the packed samples, not from augmented images")
    record = workspace.member(name) / "member.json"
    if record.is_file():
        return with_new_names("train", json.loads(record.read_text())["params"]["train"])
    return asdict(params.training_of(name))


def _about_the_member(workspace: Workspace, name: str) -> list[str]:
    from tasks.stage import survey

    found = survey(workspace)[f"finetune@{name}"]
    if found.state == "fresh":
        return []
    return [
        f"{name} is out of date ({found.why}): this is what it sees of data/packed and data/augmented as they are now"
    ]
