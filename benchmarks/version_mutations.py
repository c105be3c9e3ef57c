"""Changes a registered version in every way that whoever can write to MLflow's store can, and counts what is refused.

    python benchmarks/version_mutations.py [--mutations 200] [--seed 0] [--megabytes 100] [--json]

A real ensemble is registered in a real MLflow (SQLite, a folder of artifacts) three times: twice under the model's
name, once under another. Each mutation changes that store, fresh each time, at a place drawn from the seed: bits,
bytes, files added, removed, renamed, swapped, links, pipes, foreign and stale signatures, the folder or the tag of
another version or model, the version's address in MLflow's database. Then the version is fetched as every command
fetches it. After every 20 mutations the unchanged version is fetched too, which has to succeed: a check that refuses
all would find all. Prints found / all and seconds, then what a version of so many megabytes takes. Exit code 1 where
one was not found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from segmill import tracking
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.weights import Weights
from segmill.promotion import registry, signing, versions
from segmill.promotion.keys import PublicKey, SignatureError, SigningKey, TrustedKeys

MODEL, OTHER_MODEL = "segmill-street", "segmill-other"
CONTROL_EVERY = 20


def new_key(name: str) -> SigningKey:
    private = Ed25519PrivateKey.generate()
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SigningKey(PublicKey(name, line), private)


@dataclass(frozen=True)
class Store:
    """A store of MLflow at ``root``: its database, and the folders of versions 1 and 2 and of the other model's 1."""

    root: Path
    folder: Path
    second: Path
    foreign: Path
    key: SigningKey
    eve: SigningKey

    @property
    def database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.database}"

    def fetch(self) -> None:
        """Fetch version 1 as every command does; SignatureError where it is refused."""
        with versions.verified_copy(self.uri, MODEL, "1", TrustedKeys((self.key.public,), "trusted_keys")):
            pass

    def restore(self, kept: Path) -> None:
        """Be as it was; the database in place, since MLflow has it open."""
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.database:
                path.unlink()
        shutil.copytree(kept / "artifacts", self.root / "artifacts")
        with closing(sqlite3.connect(kept / "mlflow.db")) as former, closing(sqlite3.connect(self.database)) as now:
            former.backup(now)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def sql(self, statement: str, *values: str) -> None:
        with closing(sqlite3.connect(self.database)) as connection, connection:
            assert connection.execute(statement, values).rowcount, statement

    def tag(self, value: str) -> None:
        where = "name = ? AND version = 1 AND key = ?"
        self.sql(f"UPDATE model_version_tags SET value = ? WHERE {where}", value, MODEL, versions.SIGNATURE_TAG)

    def own_tag(self, model: str, version: str) -> str:
        with tracking.reaching(self.uri) as client:
            return str(client.get_model_version(model, version).tags[versions.SIGNATURE_TAG])


def flip(store: Store, rng: random.Random) -> None:
    """Flip one bit of one file, of the manifest and the signature too."""
    path = rng.choice([path for path in store.files() if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def flip_weights(store: Store, rng: random.Random) -> None:
    path = rng.choice([path for path in store.files() if path.suffix == ".safetensors"])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def append(store: Store, rng: random.Random) -> None:
    with rng.choice(store.files()).open("ab") as file:
        file.write(rng.choice([b"\n", b" ", b"\0", b"\nimport os\n"]))


def truncate(store: Store, rng: random.Random) -> None:
    path = rng.choice([path for path in store.files() if path.stat().st_size])
    os.truncate(path, rng.randrange(path.stat().st_size))


def add(store: Store, rng: random.Random) -> None:
    top = rng.choice(sorted({path.parent for path in store.files()}))
    name = rng.choice(["sitecustomize.py", "torch.py", "more.safetensors", ".hidden", "a.pth", "MLmodel2", "os.pyc"])
    (top / name).write_bytes(rng.randbytes(rng.randrange(50)))


def add_folder(store: Store, rng: random.Random) -> None:
    (rng.choice(sorted({path.parent for path in store.files()})) / "numpy").mkdir()


def remove(store: Store, rng: random.Random) -> None:
    rng.choice(store.files()).unlink()


def rename(store: Store, rng: random.Random) -> None:
    path = rng.choice(store.files())
    path.rename(path.with_name(rng.choice([path.name.swapcase(), f"{path.name}~", f"{path.name}.py", f".{path.name}"])))


def swap(store: Store, rng: random.Random) -> None:
    """Let two files of different contents change places."""
    while True:
        one, other = rng.sample(store.files(), 2)
        first, second = one.read_bytes(), other.read_bytes()
        if first != second:
            one.write_bytes(second)
            other.write_bytes(first)
            return


def link_file(store: Store, rng: random.Random) -> None:
    """Put a link in the place of a file, to the same bytes elsewhere: they could be changed later."""
    path = rng.choice(store.files())
    elsewhere = store.root / "elsewhere"
    shutil.move(path, elsewhere)
    os.symlink(elsewhere, path)


def link_folder(store: Store, rng: random.Random) -> None:
    path = store.folder / "artifacts"
    shutil.move(path, store.root / "elsewhere")
    os.symlink(store.root / "elsewhere", path)


def add_link(store: Store, rng: random.Random) -> None:
    os.symlink(rng.choice(["/etc/passwd", "..", "/", "nowhere", "MLmodel"]), store.folder / "more")


def add_pipe(store: Store, rng: random.Random) -> None:
    os.mkfifo(rng.choice(sorted({path.parent for path in store.files()})) / "pipe")


def sign_by_foreign(store: Store, rng: random.Random) -> None:
    """Change a file and sign folder, or folder and version, by a key that is not trusted."""
    flip_weights(store, rng)
    sha256 = signing.sign_folder(store.folder, store.eve, model=MODEL)
    if rng.random() < 0.5:
        store.tag(signing.sign_version(store.eve, MODEL, "1", sha256))


def claim_trusted_key(store: Store, rng: random.Random) -> None:
    """Change a file, sign by a foreign key, and name the trusted key as the signer."""
    flip_weights(store, rng)
    signing.sign_folder(store.folder, store.eve, model=MODEL)
    path = store.folder / signing.SIGNATURE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": store.key.public.id}))


def stale_signature(store: Store, rng: random.Random) -> None:
    """Change a file, write a new manifest, and leave the earlier signature beside it."""
    earlier = (store.folder / signing.SIGNATURE).read_bytes()
    flip_weights(store, rng)
    signing.sign_folder(store.folder, store.eve, model=MODEL)
    (store.folder / signing.SIGNATURE).write_bytes(earlier)


def edit_manifest(store: Store, rng: random.Random) -> None:
    """Change what the manifest says: a hash, a size, a path, a file left out, the model, the digest."""
    path = store.folder / signing.MANIFEST
    facts = json.loads(path.read_text())
    file = rng.choice(sorted(facts["files"]))
    match rng.randrange(6):
        case 0:
            facts["files"][file]["sha256"] = rng.randbytes(32).hex()
        case 1:
            facts["files"][file]["bytes"] += 1
        case 2:
            facts["files"][f"../{file}"] = facts["files"].pop(file)
        case 3:
            del facts["files"][file]
            (store.folder / file).unlink()
        case 4:
            facts["model"] = OTHER_MODEL
        case _:
            facts["ensemble_sha256"] = "0" * 64
    path.write_text(json.dumps(facts, indent=1))


def without_signature(store: Store, rng: random.Random) -> None:
    for name in rng.choice([[signing.MANIFEST], [signing.SIGNATURE], [signing.MANIFEST, signing.SIGNATURE]]):
        (store.folder / name).unlink()


def replace_folder(store: Store, rng: random.Random) -> None:
    """Put the whole folder of another version or model, each signed by the trusted key, in this one's place."""
    shutil.rmtree(store.folder)
    shutil.copytree(rng.choice([store.second, store.foreign]), store.folder)


def replace_folder_and_tag(store: Store, rng: random.Random) -> None:
    folder, model, version = rng.choice([(store.second, MODEL, "2"), (store.foreign, OTHER_MODEL, "1")])
    shutil.rmtree(store.folder)
    shutil.copytree(folder, store.folder)
    store.tag(store.own_tag(model, version))


def replace_tag(store: Store, rng: random.Random) -> None:
    own = json.loads(store.own_tag(MODEL, "1"))
    store.tag(
        rng.choice(
            [
                store.own_tag(MODEL, "2"),
                store.own_tag(OTHER_MODEL, "1"),
                signing.sign_version(store.eve, MODEL, "1", own["manifest_sha256"]),
                json.dumps(own | {"manifest_sha256": rng.randbytes(32).hex()}),
                json.dumps(own | {"signature": rng.choice(string.ascii_letters) + own["signature"][2:]}),
                "",
                "{}",
            ]
        )
    )


def remove_tag(store: Store, rng: random.Random) -> None:
    store.sql("DELETE FROM model_version_tags WHERE version = 1 AND key = ?", versions.SIGNATURE_TAG)


def move_address(store: Store, rng: random.Random) -> None:
    """Let MLflow's database say that the version's files are elsewhere."""
    elsewhere = rng.choice([store.second, store.foreign])
    where = "UPDATE model_versions SET source = ?, storage_location = ? WHERE name = ? AND version = 1"
    store.sql(where, str(elsewhere), str(elsewhere), MODEL)


MUTATIONS: tuple[Callable[[Store, random.Random], None], ...] = (
    flip, flip_weights, append, truncate, add, add_folder, remove, rename, swap, link_file, link_folder, add_link,
    add_pipe, sign_by_foreign, claim_trusted_key, stale_signature, edit_manifest, without_signature, replace_folder,
    replace_folder_and_tag, replace_tag, remove_tag, move_address,
)  # fmt: skip


def register_all(root: Path) -> Store:
    """Register a small real ensemble, and the same with other facts, and return the store."""
    key = new_key("anna")
    spec = MemberSpec("small", "mobilenetv2_050", "fpn", 3)
    for number in (1, 2):
        torch.manual_seed(number)
        ensemble = root / f"ensemble{number}"
        save_member(
            ensemble / "members" / "small", build(spec), spec, weights=Weights("none", None, None), params={},
            data_version="v1", metrics={}, curves=[],
        )  # fmt: skip
        classes = [{"id": index, "name": name, "color": "#000000"} for index, name in enumerate("abc")]
        facts = {"format": 1, "classes": classes, "ignore_id": 255, "weights": {"small": 1.0}, "flips": False}
        (ensemble / "ensemble.json").write_text(json.dumps(facts))
    uri = f"sqlite:///{root / 'store' / 'mlflow.db'}"
    (root / "store").mkdir()
    run_id = tracking.start_run(uri, "street", "run", artifacts=str(root / "store" / "artifacts"))
    folders = []
    for number, model in ((1, MODEL), (2, MODEL), (1, OTHER_MODEL)):
        version = registry.register(uri, run_id, root / f"ensemble{number}", model, key=key)
        with tracking.reaching(uri) as client:
            source = str(client.get_model_version_download_uri(model, version))
        folders.append(Path(source.removeprefix("file://")))
    return Store(root / "store", *folders, key, new_key("eve"))


def mutate_all(store: Store, kept: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Mutate ``count`` times, each time from what is ``kept``; return what was found."""
    tried: Counter[str] = Counter()
    missed: list[str] = []
    controls, seconds = 0, 0.0
    for number in range(count):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        store.restore(kept)
        if number % CONTROL_EVERY == 0:
            store.fetch()
            controls += 1
        mutation(store, rng)
        tried[mutation.__name__] += 1
        began = time.monotonic()
        try:
            store.fetch()
            missed.append(f"{number} {mutation.__name__}: it was not refused")
        except SignatureError as refusal:
            if "\n" in str(refusal):
                missed.append(f"{number} {mutation.__name__}: more than one sentence")
        except Exception as error:
            missed.append(f"{number} {mutation.__name__}: {type(error).__name__} instead of a refusal: {error}")
        seconds += time.monotonic() - began
    return {
        "mutations": count, "found": count - len(missed), "missed": missed, "kinds": dict(tried), "controls": controls,
        "seconds_each": round(seconds / count, 3),
    }  # fmt: skip


def measure(root: Path, megabytes: int) -> dict[str, float]:
    """Return the seconds that a model folder of so many megabytes takes to sign, verify, and copy and verify."""
    folder, key = root / "large", new_key("anna")
    (folder / signing.ENSEMBLE / "members").mkdir(parents=True)
    for number in range(4):
        path = folder / signing.ENSEMBLE / "members" / f"{number}.safetensors"
        path.write_bytes(random.Random(number).randbytes(megabytes * 10**6 // 4))
    trusted = TrustedKeys((key.public,), "trusted_keys")
    began = time.monotonic()
    signing.sign_folder(folder, key, model=MODEL)
    signed = time.monotonic()
    signing.verify_folder(folder, trusted, model=MODEL)
    verified = time.monotonic()
    signing.copy_plain(folder, root / "copy")
    signing.verify_folder(root / "copy", trusted, model=MODEL)
    copied = time.monotonic()
    return {
        "sign_s": round(signed - began, 3), "verify_s": round(verified - signed, 3),
        "copy_and_verify_s": round(copied - verified, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="version-mutations-") as name:
        root = Path(name)
        store = register_all(root)
        shutil.copytree(store.root, root / "kept")
        began = time.monotonic()
        found = mutate_all(store, root / "kept", chosen.mutations, random.Random(chosen.seed))
        found["seconds"] = round(time.monotonic() - began, 1)
        found["megabytes"] = chosen.megabytes
        found |= measure(root, chosen.megabytes)
    if chosen.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(found["missed"]))
        print(f"{found['found']} / {found['mutations']} mutations refused, {found['controls']} controls accepted, "
              f"{found['seconds']} s ({found['seconds_each']} s each)")  # fmt: skip
        print(f"{chosen.megabytes} MB: signed in {found['sign_s']} s, verified in {found['verify_s']} s, copied and "
              f"verified in {found['copy_and_verify_s']} s")  # fmt: skip
    sys.exit(bool(found["missed"]))


if __name__ == "__main__":
    main()
