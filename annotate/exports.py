"""The workspace's exports: a folder of their own for each, a list of them, and each as one zip for those who may."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from annotate.people import People, allows
from data.dataset_folder import KIND, MANIFEST, read_manifest
from data.entities import Project
from data.errors import BadInput, Forbidden, NotFound
from data.exporting import export_dataset
from data.store import Store

MAX_EVAL_FRACTION = 0.5

_CHUNK_BYTES = 1 << 16
_IN_MEMORY_BYTES = 16 << 20
_MAX_NAME_CHARS = 60


@dataclass(frozen=True)
class Export:
    """One export of the workspace; `manifest` is its `manifest.json`."""

    name: str
    path: Path
    manifest: dict[str, Any]
    made_at: datetime


def eval_fraction_of(percent: float) -> float:
    """The share of the prompts that a page's slider asks to hold out. Raises BadInput."""
    if not 0 <= percent <= 100 * MAX_EVAL_FRACTION:
        raise BadInput(f"Held out: {percent:g} %; the share is 0 to {100 * MAX_EVAL_FRACTION:g} %.")
    return percent / 100


def export_for(
    store: Store, project: Project, *, workspace: Path, formats: Sequence[str], eval_fraction: float
) -> Export:
    """Export a project under the next free name, WORKSPACE/exports/PROJECT-N. Raises UserError."""
    path = _next_folder(workspace / "exports", project.name)
    try:
        manifest = export_dataset(store, project, formats=formats, out=path, eval_fraction=eval_fraction)
    finally:
        if not (path / MANIFEST).exists():  # it failed, and an export appears whole or not at all
            path.rmdir()
    return Export(path.name, path, manifest, _made_at(path))


def exports_of(workspace: Path, project_name: str) -> list[Export]:
    """The exports of a project, newest first. Reads the manifests only; a download checks what they say."""
    found = []
    for path in (workspace / "exports").glob(f"[!.]*/{MANIFEST}"):
        manifest = _manifest(path)
        if manifest.get("kind") == KIND and manifest.get("project") == project_name:
            found.append(Export(path.parent.name, path.parent, manifest, _made_at(path.parent)))
    return sorted(found, key=lambda export: export.made_at, reverse=True)


def download_address(export: Export) -> str:
    """Where the export can be fetched, for an admin of its project."""
    return f"/api/export/{export.name}.zip"


class ExportDesk:
    """The route that hands out exports."""

    def __init__(self, store: Store, workspace: Path, people: People) -> None:
        self._store = store
        self._folder = workspace / "exports"
        self._people = people

    def router(self) -> APIRouter:
        """The route, under `/api`."""
        router = APIRouter(prefix="/api")
        router.add_api_route("/export/{name}.zip", self.download, methods=["GET"])
        return router

    def download(self, request: Request, name: str) -> StreamingResponse:
        """One export as a zip. Raises Forbidden for whoever is no admin of its project."""
        person = self._people.signed_in(request)
        if person is None:
            raise Forbidden("You are not signed in. Sign in first.")
        if not allows(self._people.highest_role(person.name), "admin"):
            raise Forbidden("Only an admin may fetch exports. Ask one.")
        # The name is compared with those that are there, never joined to a path.
        path = next((p for p in self._folder.glob("*") if p.name == name and not p.name.startswith(".")), None)
        if path is None:
            raise NotFound(f"There is no export '{name[:_MAX_NAME_CHARS]}'. Reload the page.")
        project = self._store.project(read_manifest(path).content["project"])
        if not allows(self._people.role(person, project.id), "admin"):
            raise Forbidden(f"You are no admin of project '{project.name}'. Ask one of its admins.")
        return StreamingResponse(
            _chunks(_zipped(path)),
            media_type="application/zip",
            headers={"Content-Disposition": f'attachment; filename="{_ascii(name)}.zip"'},
        )


def _next_folder(exports: Path, project_name: str) -> Path:
    """A new, empty folder: made here, so that two people who export at once get two."""
    exports.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w-]+", "-", project_name).strip("-")[:_MAX_NAME_CHARS] or "project"
    taken = [re.fullmatch(rf"{re.escape(stem)}-(\d{{1,9}})", p.name) for p in exports.iterdir()]
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        path = exports / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _manifest(path: Path) -> dict[str, Any]:
    """A manifest as written; empty where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _made_at(path: Path) -> datetime:
    return datetime.fromtimestamp((path / MANIFEST).stat().st_mtime, tz=UTC)


def _zipped(path: Path) -> IO[bytes]:
    """A zip of the folder's files, in a file that vanishes when it is closed."""
    file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - `_chunks` closes it
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink()):
            archive.write(part, Path(path.name) / part.relative_to(path))
    file.seek(0)
    return file


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _ascii(name: str) -> str:
    """The name for an HTTP header; other letters become '_'."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
