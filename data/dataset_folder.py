"""A dataset folder on disk: written beside its place and moved there whole, read back only if undamaged."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from data.errors import BadInput, NotFound, UserError

KIND = "rankwise dataset"
SCHEMA_VERSION = 1
MANIFEST, RANKINGS, CARD = "manifest.json", "rankings.jsonl", "README.md"


class HashedFile:
    """A new text file that counts its rows and bytes and hashes them on the way; on disk when closed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self.rows = self._bytes = 0

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write_rows(self, lines: Sequence[str]) -> None:
        """Rows, one a line."""
        if lines:
            self.write_text("\n".join(lines) + "\n")
        self.rows += len(lines)

    def write_text(self, text: str) -> None:
        """Text as it is."""
        raw = text.encode()
        self._file.write(raw)
        self._sha256.update(raw)
        self._bytes += len(raw)

    def close(self) -> None:
        """Bring the file to disk."""
        if not self._file.closed:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the file; `rows` only where it has rows of its own."""
        return {"rows": self.rows, "bytes": self._bytes, "sha256": self._sha256.hexdigest()}


@contextmanager
def new_folder(out: Path, *, project: str, force: bool) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` when the block ends well, and is gone when it does not.

    `out` may be missing, empty, or an earlier export of the same project (of another one with `force`); nothing else is
    ever replaced. Raises UserError.
    """
    out = out.resolve()
    partial = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        _check_replaceable(out, project=project, force=force)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        _sync_folders(partial)
        _move(partial, out)
    except OSError as error:
        raise UserError(
            f"{out}: the export could not be written ({error.strerror or error}); what was there before is unchanged. "
            "Free some space, or choose a folder you may write to."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Manifest:
    """`content` as written, and the `sha256` of the file: the name of this export's exact content."""

    content: Mapping[str, Any]
    sha256: str


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset folder, its `rankings.jsonl` held against it. Raises BadInput, NotFound."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound(
            f"{folder}: no {MANIFEST} in it, so it is no dataset folder. Name the folder that an export wrote."
        )
    raw = path.read_bytes()
    content = _parsed(raw)
    if content is None:
        raise BadInput(f"{path}: this is not the manifest of a dataset folder. Export again.")
    if content["schema_version"] != SCHEMA_VERSION:
        raise BadInput(
            f"{path}: schema version {content['schema_version']}; this program reads {SCHEMA_VERSION}. Export "
            "again with this version."
        )
    expected = content["files"].get(RANKINGS, {}).get("sha256")
    if not (folder / RANKINGS).is_file() or file_sha256(folder / RANKINGS) != expected:
        raise BadInput(
            f"{folder / RANKINGS}: not the file that {MANIFEST} describes (its sha256 differs); a dataset folder is "
            "used only whole. Export again, or name the changed file itself."
        )
    return Manifest(content, hashlib.sha256(raw).hexdigest())


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The manifest in these bytes, or None when they are something else."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("kind") != KIND or not isinstance(content.get("files"), dict):
        return None
    return content if isinstance(content.get("schema_version"), int) else None


def _check_replaceable(out: Path, *, project: str, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise BadInput(f"{out}: this is a file; an export writes a folder. Choose another name.")
    found = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()
    )
    if not found:
        return
    manifest = _parsed((out / MANIFEST).read_bytes()) if (out / MANIFEST).is_file() else None
    if manifest is None:
        raise BadInput(
            f"{out}: the folder holds other files ({found[0]!r:.60}); an export replaces only an earlier export. "
            "Choose a new folder."
        )
    foreign = [name for name in found if name != MANIFEST and name not in manifest["files"]]
    if foreign:
        raise BadInput(
            f"{out}: beside an earlier export the folder holds {foreign[0]!r:.60}; an export replaces only its own "
            "files. Move it away, or choose a new folder."
        )
    if manifest.get("project") != project and not force:
        raise BadInput(
            f"{out}: the folder holds the export of project {manifest.get('project')!r:.60}. Choose a new folder, or "
            "replace it with --force."
        )


def _sync_folders(folder: Path) -> None:
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        _sync(path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move(partial: Path, out: Path) -> None:
    """Two renames when there is an older export: between them the older one waits under a hidden name beside `out`."""
    if not out.exists():
        partial.rename(out)
    else:
        older = partial.with_suffix(".older")
        out.rename(older)
        try:
            partial.rename(out)
        except OSError:
            older.rename(out)
            raise
        shutil.rmtree(older, ignore_errors=True)
    _sync(out.parent)
