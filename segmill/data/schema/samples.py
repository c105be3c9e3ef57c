"""The samples of a set in the canonical layout, and an issue for each file that is no part of one."""

from __future__ import annotations

from pathlib import Path

from segmill.data.schema.issues import Issue, wrong_file
from segmill.data.storage.raw_set import IMAGE_SUFFIXES, RawSample, StoredFile, is_sharded, sharded_samples
from segmill.errors import InputError

MASK_SUFFIXES = (".png",)


def list_samples(raw_dir: Path) -> tuple[list[RawSample], list[Issue]]:
    """Return the complete samples in order of id, and an issue for every file that is no part of one.

    Hidden files are passed over. InputError where images/ or masks/ is missing.
    """
    if is_sharded(raw_dir):
        return list(sharded_samples(raw_dir)), []
    images, issues = _list_folder(raw_dir, "images", IMAGE_SUFFIXES)
    masks, mask_issues = _list_folder(raw_dir, "masks", MASK_SUFFIXES)
    issues += mask_issues
    for sample_id in sorted(images.keys() - masks.keys()):
        file = images[sample_id].relative_to(raw_dir).as_posix()
        what = f"it has no mask masks/{sample_id}.png"
        issues.append(wrong_file(file, what, "add the mask or remove the image", "missing_mask"))
    for sample_id in sorted(masks.keys() - images.keys()):
        file = masks[sample_id].relative_to(raw_dir).as_posix()
        fix = "add the image or remove the mask"
        issues.append(wrong_file(file, f"this mask has no image images/{sample_id}.*", fix, "missing_image"))
    both = sorted(images.keys() & masks.keys())
    return [RawSample(name, _loose(raw_dir, images[name]), _loose(raw_dir, masks[name])) for name in both], issues


def _loose(raw_dir: Path, path: Path) -> StoredFile:
    name = path.relative_to(raw_dir).as_posix()
    return StoredFile(name, name)


def _list_folder(raw_dir: Path, kind: str, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[Issue]]:
    folder = raw_dir / kind
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist", f"put the samples' {kind} there")
    files: dict[str, Path] = {}
    issues = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") for part in relative.parts):
            continue
        sample_id = relative.with_suffix("").as_posix()
        name = f"{kind}/{relative.as_posix()}"
        if path.suffix.lower() not in suffixes:
            allowed = ", ".join(suffixes)
            what = f"'{path.suffix}' is not one of {allowed}"
            issues.append(wrong_file(name, what, "convert or remove it", "wrong_file_type"))
        elif sample_id in files:
            what = f"{files[sample_id].name} has the same stem"
            issues.append(wrong_file(name, what, "rename or remove one", "same_stem"))
        else:
            files[sample_id] = path
    return files, issues
