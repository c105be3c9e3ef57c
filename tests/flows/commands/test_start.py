from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flows.commands.start import choose_size, create, create_demo
from segmill.data.schema.issues import IssuesFound
from segmill.data.schema.samples import list_samples
from segmill.data.versioning.history import log_path, read_log
from segmill.data.versioning.repository import git_commit
from segmill.data.versioning.versions import data_changed, recorded_version
from segmill.errors import InputError
from segmill.params import read_params
from segmill.workspace import Workspace


def images(root: Path) -> set[str]:
    return {path.name for path in (root / "data" / "raw" / "images").rglob("*.png")}


def messages(root: Path) -> list[str]:
    return [entry.message for entry in read_log(log_path(root / "data" / "raw"))]


@pytest.mark.slow
def test_the_demo_is_a_workspace_with_a_commit_of_its_own_and_grows(tmp_path: Path) -> None:
    workspace = create_demo(tmp_path / "demo", sample="brain", more=False)
    assert len(git_commit(workspace.root)) == 40
    assert len(read_params(workspace.params).members) == 3
    first = images(workspace.root)
    assert images(create_demo(tmp_path / "demo", sample="brain", more=False).root) == first
    grown = images(create_demo(tmp_path / "demo", sample="brain", more=True).root)
    assert (len(first), len(grown)) == (65, 100)
    assert first < grown
    create_demo(tmp_path / "demo", sample="brain", more=True)
    assert messages(workspace.root) == ["the demo's sample brain", "the slices held back at first"]
    assert read_log(log_path(workspace.root / "data" / "raw"))[-1].added == 35


@pytest.mark.slow
@pytest.mark.long
def test_the_street_demo_has_its_own_size_and_recipe_and_grows(tmp_path: Path) -> None:
    workspace = create_demo(tmp_path / "demo", sample="street", more=False)
    params = read_params(workspace.params)
    assert (params.prepare.size_px, params.augment.recipe) == ((128, 128), "driving")
    first = images(workspace.root)
    assert len(first) == 200
    grown = images(create_demo(tmp_path / "demo", sample="brain", more=True).root)  # it stays what it is
    assert len(grown) == 300 and first < grown
    assert messages(workspace.root)[1:] == ["half as many scenes again"]


def test_what_lies_in_the_folder_is_never_touched(tmp_path: Path, street: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    for make in (lambda: create_demo(tmp_path, sample="brain", more=False), lambda: create(tmp_path, street)):
        with pytest.raises(InputError, match="holds something else already"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_set_of_ones_own_becomes_the_first_version(tmp_path: Path, street: Path) -> None:
    said: list[str] = []
    workspace = create(tmp_path / "mine", street, say=said.append)
    raw = workspace.root / "data" / "raw"
    assert said[0].startswith(f"{street}: layout segmill (") and said[0].endswith(", 80 samples")
    assert "prepare.size_px is [64, 64]" in said[-2]
    assert said[-1].endswith("it is listed in trusted_keys now")
    committed = subprocess.run(
        ["git", "-C", workspace.root, "show", "HEAD:trusted_keys"], capture_output=True, text=True
    )
    assert committed.stdout == (workspace.root / "trusted_keys").read_text()
    assert read_params(workspace.params).prepare.size_px == (64, 64)
    for entry in list_samples(street)[0]:
        for part in (entry.image, entry.mask):
            assert part.read(raw) == part.read(street)
    assert (raw / "dataset.yaml").read_bytes() == (street / "dataset.yaml").read_bytes()
    assert recorded_version(workspace.root, "data/raw") is not None
    assert data_changed(workspace.root, "data/raw") == ""
    assert messages(workspace.root) == [f"{street.name}, layout segmill"]
    assert not git_commit(workspace.root).endswith("-dirty")
    with pytest.raises(InputError, match="is a workspace already"):
        create(tmp_path / "mine", street)


def test_a_set_in_another_layout_is_recognised(tmp_path: Path, street: Path) -> None:
    source = tmp_path / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (source / folder).mkdir(parents=True)
    names = [f"street_s000{n}_f00" for n in range(6)]
    for name in names:
        Image.open(street / "images" / f"{name}.png").save(source / "JPEGImages" / f"{name}.jpg")
        shutil.copyfile(street / "masks" / f"{name}.png", source / "SegmentationClass" / f"{name}.png")
    for split, chosen in (("train", names[:4]), ("val", names[4:])):
        (source / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(chosen) + "\n")
    said: list[str] = []
    workspace = create(tmp_path / "mine", source, say=said.append)
    assert "layout voc" in said[0]
    raw = workspace.root / "data" / "raw"
    assert [Path(entry.image.name).name for entry in list_samples(raw)[0]] == [f"{name}.jpg" for name in names]
    assert messages(workspace.root) == ["VOC, layout voc"]


def test_a_set_with_bad_files_leaves_nothing_behind(tmp_path: Path, street: Path) -> None:
    shutil.copytree(street, tmp_path / "bad")
    (tmp_path / "bad" / "masks" / "street_s0000_f00.png").unlink()
    (tmp_path / "bad" / "images" / "street_s0000_f01.png").unlink()
    with pytest.raises(IssuesFound, match="2 problems") as error:
        create(tmp_path / "mine", tmp_path / "bad")
    assert len(error.value.stopping) == 2
    assert not (tmp_path / "mine").exists()


def test_a_group_rule_of_ones_own_deals_the_splits_anew(tmp_path: Path, street: Path) -> None:
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.data.splitting.splits import read_frozen

    workspace = create(tmp_path / "mine", street, group=r"_s(?P<group>\d+)_", name="mine")
    raw = workspace.root / "data" / "raw"
    assert (read_dataset_info(raw).name, read_dataset_info(raw).group) == ("mine", r"_s(?P<group>\d+)_")
    assert set(read_frozen(raw)) == {f"{n:04d}" for n in range(8)}


KILLED = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
from flows.commands.start import create, create_demo
folder, data, module, name, calls = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
holder, _, last = name.rpartition(".")
holder = getattr(import_module(module), holder) if holder else import_module(module)
really = getattr(holder, last)
def killing(*arguments, **options):
    global calls
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    calls -= 1
    return really(*arguments, **options)
setattr(holder, last, killing)
create_demo(folder, sample="street", more=False) if data == "street" else create(folder, Path(data))
"""


def kill(folder: Path, data: object, module: str, name: str, calls: int) -> None:
    """Make a workspace in a process that kills itself at the call of a function, after so many calls of it."""
    command = [sys.executable, "-c", KILLED, str(folder), str(data), module, name, str(calls)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        pytest.param("flows.commands.start", "_lay_down", 0, marks=pytest.mark.long),
        pytest.param("shutil", "copyfile", 1, marks=pytest.mark.long),
        pytest.param("segmill.data.ingest.contents", "LooseWriter.add", 30, marks=pytest.mark.long),
        pytest.param("segmill.data.versioning.history", "append_log", 0, marks=pytest.mark.long),
        ("segmill.data.versioning.repository", "commit_files", 0),
    ],
    ids=["with nothing", "with half the templates", "among samples", "behind dvc add", "before the commit"],
)
def test_a_workspace_that_was_killed_in_the_making_is_made_by_the_next_try(
    tmp_path: Path, street: Path, module: str, name: str, calls: int
) -> None:
    kill(tmp_path / "mine", street, module, name, calls)
    with pytest.raises(InputError, match="is a workspace that was not finished; run the `segmill init`"):
        Workspace.open(tmp_path / "mine")
    workspace = create(tmp_path / "mine", street)
    raw = workspace.root / "data" / "raw"
    assert {p.relative_to(raw): p.read_bytes() for p in raw.rglob("*.png")} == {
        p.relative_to(street): p.read_bytes() for p in street.rglob("*.png")
    }
    assert data_changed(workspace.root, "data/raw") == ""
    assert messages(workspace.root) == [f"{street.name}, layout segmill"]
    assert not git_commit(workspace.root).endswith("-dirty")
    assert Workspace.open(workspace.root) == workspace
    assert sorted(path.name for path in raw.parent.iterdir()) == [
        ".gitattributes", ".gitignore", "history.jsonl", "raw", "raw.dvc",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
def test_a_demo_that_was_killed_in_the_making_is_made_by_the_next_try(tmp_path: Path) -> None:
    kill(tmp_path / "demo", "street", "segmill.data.versioning.repository", "commit_files", 0)
    workspace = create_demo(tmp_path / "demo", sample="street", more=False)
    assert len(images(workspace.root)) == 200
    assert messages(workspace.root) == ["the demo's sample street"]


def test_what_was_put_into_an_unfinished_workspace_is_not_lost(tmp_path: Path, street: Path) -> None:
    begun = Workspace(tmp_path / "mine")
    begun.scratch.mkdir(parents=True)
    begun.unfinished.touch()
    (begun.root / "params.yaml").write_text("half")
    (begun.root / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not finished, and besides notes\.txt; move that away and run again"):
        create(begun.root, street)
    assert (begun.root / "notes.txt").read_text() == "mine"


def test_two_processes_do_not_make_one_workspace(tmp_path: Path, street: Path) -> None:
    lock = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is making a workspace of"):
            create(tmp_path, street)
    finally:
        os.close(lock)
    assert list(tmp_path.iterdir()) == []


def test_the_size_is_that_of_most_images_or_the_median_and_shapes_are_kept_where_they_vary() -> None:
    assert choose_size([(360, 480)] * 9 + [(200, 200)])[:2] == ((352, 480), "stretch")
    assert choose_size([(2000, 1000)] * 2)[:2] == ((512, 256), "stretch"), "no side above 512 px"
    near = [(100 + place, 150 + place) for place in range(20)]
    size, resize, why = choose_size(near)
    assert (size, resize) == ((96, 160), "stretch") and "from 100 x 150 to 119 x 169 px" in why
    photos = [(60, 100), (400, 300), (173, 400), (350, 173), (300, 320)] * 30 + [(20, 64)] * 40
    size, resize, why = choose_size(photos)
    assert (size, resize) == ((160, 160), "fit"), "not 32 x 64, the commonest"
    assert "fit keeps their shapes" in why and "tile" in why
    assert choose_size([(10, 10)])[0] == (32, 32)


def test_a_set_of_mixed_sizes_is_fitted_and_says_why(tmp_path: Path, street: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(street, mixed)
    for number, path in enumerate(sorted((mixed / "images").glob("*.png"))):
        size = (64 + 8 * (number % 20), 200 - 6 * (number % 20))
        for kind in ("images", "masks"):
            with Image.open(mixed / kind / path.name) as picture:
                resized = picture.resize(size, Image.Resampling.NEAREST)
            resized.save(mixed / kind / path.name)
    said: list[str] = []
    workspace = create(tmp_path / "workspace", mixed, say=said.append)
    params = read_params(workspace.params)
    assert params.prepare.resize == "fit" and params.prepare.size_px is not None
    assert f"prepare.size_px is {list(params.prepare.size_px)} (height, width), prepare.resize fit: " in said[-2]


def test_a_bad_file_is_said_where_its_owner_has_it_and_a_mask_of_another_size_is_found(tmp_path: Path) -> None:
    data = tmp_path / "my set"
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (data / kind).mkdir(parents=True)
        for number in range(5):
            Image.new(mode, (64, 48), number % 2).save(data / kind / f"{number}.png")
    (data / "images/1.png").write_bytes(b"no picture")
    Image.new("L", (20, 30)).save(data / "masks/2.png")
    Image.new("L", (63, 48)).save(data / "masks/3.png")  # a pixel off: `segmill validate --fix` repairs that
    with pytest.raises(IssuesFound) as found:
        create(tmp_path / "mine", data)
    assert str(found.value).splitlines() == [
        f"2 problems in {data}:",
        "  images/1.png: it can't be read as an image; replace or remove it",
        "  masks/2.png: the mask has 30 x 20 px (height x width) and its image 48 x 64; make them the same size",
    ]
    assert not (tmp_path / "mine").exists()


def test_frames_that_would_be_groups_of_their_own_are_said(tmp_path: Path, street: Path) -> None:
    for kind in ("images", "masks"):
        shutil.copytree(street / kind, tmp_path / "frames" / kind)
    said: list[str] = []
    create(tmp_path / "workspace", tmp_path / "frames", say=said.append)
    assert [line for line in said if "as slices of one stack or frames of one recording do" in line]
    said.clear()
    create(tmp_path / "grouped", tmp_path / "frames", group=r"^(?P<group>.+)_f\d+$", say=said.append)
    assert not [line for line in said if "groups of their own" in line]
