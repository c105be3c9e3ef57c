"""A script for a process of its own: a registered model predicts images that arrive on a pipe.

    python -P replay.py FOLDER

FOLDER is a verified copy of the version, so no address or password of MLflow comes here. Only numpy and MLflow are
imported, so that the model brings its own ``segmill``: an old champion is judged with the code it serves with, not with
today's. A line says that the model is loaded. Then an array crosses a pipe as a line of JSON with its ``shape``, and
its bytes: image_BHWC uint8 comes in, ids_BHW uint8 goes out, until the input ends. Where the line that came has
``anomaly``, the one that goes out has what the model says of that.
"""

from __future__ import annotations

import json
import math
import os
import sys

import numpy as np


def main(folder: str) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Whatever a library prints must not get among the answers.

    import mlflow

    model = mlflow.pyfunc.load_model(folder)
    answers.write(b"loaded\n")
    answers.flush()
    questions = sys.stdin.buffer
    while line := questions.readline():
        asked = json.loads(line)
        image_BHWC = np.frombuffer(questions.read(math.prod(asked["shape"])), np.uint8).reshape(asked["shape"])
        # An old version's code takes no parameters.
        said = model.predict(image_BHWC, params={"anomaly": True}) if asked["anomaly"] else model.predict(image_BHWC)
        ids_BHW = np.asarray(said["classes"] if asked["anomaly"] else said, dtype=np.uint8)
        facts = {"shape": ids_BHW.shape, "anomaly": said["anomaly"] if asked["anomaly"] else None}
        answers.write(json.dumps(facts).encode() + b"\n" + ids_BHW.tobytes())
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
