"""Replies: each form says the same mask."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segmill.reports.pictures import palette
from segmill.serving.answers import Classes, Extra, Form, Segmented, as_json, as_zip

IDS = np.array([[0, 0, 2], [2, 2, 1]], np.uint8)
IMAGE = np.full((2, 3, 3), 200, np.uint8)
CLASSES = Classes(("sky", "road", "car"), palette(["#000000", "#804080", "#00008e"]), 255)
PROBS = np.stack([number == IDS for number in range(3)]).astype(np.float16)
SEGMENTED = Segmented(IDS, PROBS, 0.75)


def test_run_lengths_are_cocos_and_name_only_classes_that_are_there() -> None:
    without = Segmented(np.where(IDS == 1, 2, IDS).astype(np.uint8), None, 1.0)
    said = as_json(without, IMAGE, CLASSES, Form.RLE, set())
    assert set(said["rle"]["counts"]) == {"sky", "car"}
    read = coco.decode({"size": said["rle"]["size"], "counts": said["rle"]["counts"]["car"]})
    assert (read == (without.ids_HW == 2)).all()
    assert said["class_shares"] == {
        "sky": pytest.approx(2 / 6, abs=1e-6),
        "road": 0.0,
        "car": pytest.approx(4 / 6, abs=1e-6),
    }


def test_json_says_ids_shares_and_what_was_asked_for() -> None:
    said = json.loads(json.dumps(as_json(SEGMENTED, IMAGE, CLASSES, Form.JSON, set(Extra))))
    assert said["ids"] == IDS.tolist() and (said["height"], said["width"]) == (2, 3) and said["confidence"] == 0.75
    probs = np.load(io.BytesIO(base64.b64decode(said["probabilities"])))
    assert probs.shape == (3, 2, 3) and (probs.argmax(0) == IDS).all()
    assert Image.open(io.BytesIO(base64.b64decode(said["overlay"]))).size == (3, 2)
    assert "overlay" not in as_json(SEGMENTED, IMAGE, CLASSES, Form.JSON, set())


def test_a_zip_holds_a_folder_for_each_image() -> None:
    content = as_zip([(SEGMENTED, IMAGE)] * 2, CLASSES, {Extra.PROBABILITIES}, {"version": "3"})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert set(archive.namelist()) == {
            "answer.json", "0/mask.png", "0/probabilities.npy", "1/mask.png", "1/probabilities.npy",
        }  # fmt: skip
        assert json.loads(archive.read("answer.json")) == {"version": "3"}
        assert (np.asarray(Image.open(archive.open("1/mask.png"))) == IDS).all()
