"""Checkpoints that are either whole or known not to be.

A checkpoint is sealed last of all with a list of its files and their sha256, so that one cut short by a kill or a full
disk, or changed on the disk since, is never taken for good. Free of torch: the web process reads runs through here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data.errors import BadInput
from train.files import write_json

log = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
KEPT = 2
"""Checkpoints of a run that stay."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""The disk takes no more."""
_UNWRITABLE = _FULL | {errno.EIO, errno.EACCES}
"""While a checkpoint is written; elsewhere it may be a reading that failed."""
_TORCH_WRITER = re.compile("PytorchStreamWriter|inline_container|iostream error")
"""What torch.save says instead of passing on the system's error."""


@dataclass(frozen=True)
class Search:
    """The newest checkpoint that is as it was sealed, None without one, and a sentence on each newer one."""

    good: Path | None
    damaged: tuple[str, ...]


def seal(folder: Path) -> None:
    """Write down size and sha256 of every file in `folder`; after this, and not before, it is a checkpoint."""
    files = {name: _sealed(path) for name, path in _files(folder).items()}
    write_json(folder / MANIFEST, {"files": files})
    for directory in (folder, folder.parent):  # the names too must outlive a power cut
        _flush(directory)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, its files read and hashed; empty where each is as it was sealed."""
    listed = _listed(folder)
    if isinstance(listed, str):
        return listed
    try:
        changed = [name for name, path in _files(folder).items() if _sha256(path) != listed[name][1]]
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    return f"{changed[0]} has changed since it was written (its sha256 is another)" if changed else ""


def looks_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there in their full size: a look that reads none of them."""
    return isinstance(_listed(folder), dict)


def step_of(folder: Path) -> int:
    """N of `checkpoint-N`; 0 for any other folder."""
    found = re.fullmatch(r"checkpoint-([0-9]+)", folder.name)
    return int(found[1]) if found else 0


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first, whole or not."""
    return sorted(filter(step_of, run.glob("checkpoint-*")), key=step_of, reverse=True)


def search(run: Path) -> Search:
    """Read a run's checkpoints, newest first, until one is good."""
    damaged: list[str] = []
    for folder in checkpoints(run):
        wrong = damage(folder)
        if not wrong:
            return Search(folder, tuple(damaged))
        damaged.append(f"{folder.name}: {wrong}")
    return Search(None, tuple(damaged))


def newest_good(run: Path) -> Path | None:
    """The newest checkpoint that is undamaged; a line in the log for each newer one that is not."""
    found = search(run)
    for sentence in found.damaged:
        log.warning("%s; %s is used instead", sentence, found.good.name if found.good else "no other")
    return found.good


def good_to_resume(run: Path) -> Path:
    """The newest undamaged checkpoint. Raises BadInput without one: the optimiser would start anew unnoticed."""
    found = search(run)
    if found.good is None and found.damaged:
        raise BadInput(
            f"--resume {run}: no checkpoint can be used ({'; '.join(found.damaged)}). Restore one from a copy, or "
            "start again with a new --output."
        )
    if found.good is None:
        raise BadInput(f"--resume {run}: no checkpoint to continue from. Start again with a new --output.")
    return found.good


@contextmanager
def new_checkpoint(folder: Path) -> Iterator[None]:
    """Inside, the files of a checkpoint are written to `folder`; then it is sealed, and only then the oldest go.

    Where it cannot be written nothing of it stays and the others stand as they did. Raises BadInput if the disk was the
    reason.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
        seal(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # which also makes room for the status
        if reason := _refusal(error):
            raise BadInput(
                f"{folder}: the checkpoint could not be written ({reason}). {_way_on(folder.parent)}"
            ) from error
        raise
    _rotate(folder)


@contextmanager
def full_disk_told(run: Path) -> Iterator[None]:
    """Inside, a disk that takes no more ends the run in a sentence. Raises BadInput."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise BadInput(f"{error.filename or run}: not written ({error.strerror}). {_way_on(run)}") from error


def _way_on(run: Path) -> str:
    """The remedy for a disk that takes no more."""
    left = next((f.name for f in checkpoints(run) if looks_whole(f)), "")
    again = f"continue from {left} with --resume {run}" if left else "start again with a new --output"
    return f"Make room on the disk (or make it writable), then {again}."


def _rotate(newest: Path) -> None:
    """Delete all checkpoints of the run but `newest` and the good ones right before it.

    Those of later steps were left by a run that has since gone back behind them.
    """
    kept = 1
    for folder in checkpoints(newest.parent):
        if step_of(folder) < step_of(newest) and kept < KEPT and not damage(folder):
            kept += 1
        elif folder.name != newest.name:
            shutil.rmtree(folder, ignore_errors=True)


def _listed(folder: Path) -> dict[str, tuple[int, str]] | str:
    """Bytes and sha256 of the manifest's files by name, which are there in that size; or what is wrong."""
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in written.items()}
        there = {name: path.stat().st_size for name, path in _files(folder).items()}
    except (FileNotFoundError, NotADirectoryError):
        return f"it has no {MANIFEST}, so it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, _) in listed.items():
        if name not in there:
            return f"{name} is missing"
        if there[name] != size:
            return f"{name} has {there[name]:,} bytes and was written with {size:,}"
    for name in there.keys() - listed.keys():
        return f"{name} was not there when it was written"
    return listed


def _files(folder: Path) -> dict[str, Path]:
    """All files in `folder` by their names in it, but the manifest and hidden ones."""
    inside = ((p.relative_to(folder), p) for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(name): p for name, p in inside if str(name) != MANIFEST and not name.name.startswith(".")}


def _sealed(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest, once the disk has it."""
    _flush(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refusal(error: BaseException) -> str:
    """Why the disk refused; empty where the error is of another kind."""
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return str(error.strerror)
    if isinstance(error, SafetensorError):
        found = re.search(r"I/O error: (.+) \(os error", str(error))
        return found[1] if found else str(error)
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
        return "the disk took only a part of it"
    return ""
