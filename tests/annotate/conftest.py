"""A store with one project and the app around it, asked over HTTP as a browser on this computer would."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from annotate.pages import build_routes
from annotate.people import LocalPerson
from data.entities import Project
from data.records import AnnotatorRanking, read_record
from data.store import Store
from tests.annotate.named_people import NamedPeople

ADDRESS = "http://127.0.0.1:7860"
OURS = {"X-Rankwise": "1"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "workspace")
    yield store
    store.close()


@pytest.fixture
def project(store: Store) -> Project:
    """Three prompts of three responses each; the models' names must never be seen."""
    project = store.create_project("demo", guidelines="Be **fair**.")
    rows = [
        {
            "id": f"p{i}",
            "prompt": f"Question {i}?",
            "responses": [{"text": f"{word} {i}", "model": f"secret-{word}"} for word in ("one", "two", "three")],
        }
        for i in (1, 2, 3)
    ]
    store.add_prompts(project.id, [read_record(row, where="test") for row in rows])
    return project


@pytest.fixture
def local(store: Store) -> LocalPerson:
    return LocalPerson(store, name="lin")


@pytest.fixture
def client(store: Store, project: Project, local: LocalPerson, tmp_path: Path) -> TestClient:
    """The plain routes behind the gate; the pages take a second to build and have tests of their own."""
    return TestClient(build_routes(store, tmp_path / "workspace", local), base_url=ADDRESS, headers=OURS)


@dataclass
class Visitor:
    """One annotator's page: what it last showed, and what it says next."""

    client: TestClient
    project: int
    view: dict[str, Any]

    @property
    def task(self) -> dict[str, Any]:
        return self.view["task"]

    def submit(self, **changes: Any) -> Any:
        """The answer of the server; a good one becomes what the page shows."""
        body = {
            "project": self.project,
            "prompt": self.task["prompt"],
            "revision": self.task["revision"],
            "key": secrets.token_hex(8),
            "status": "ranked",
            "ranking": "A2>A1>A3",
        }
        answer = self.client.post("/api/submit", json={**body, **changes})
        if answer.status_code == 200:
            self.view = answer.json()
        return answer

    def undo(self) -> dict[str, Any]:
        answer = self.client.post("/api/undo", json={"project": self.project, "key": secrets.token_hex(8)})
        assert answer.status_code == 200, answer.text
        self.view = answer.json()
        return self.view


@pytest.fixture
def visitor(client: TestClient, project: Project) -> Visitor:
    answer = client.get("/api/task", params={"project": project.id})
    assert answer.status_code == 200, answer.text
    return Visitor(client, project.id, answer.json())


@pytest.fixture
def rankings(store: Store, project: Project) -> Any:
    """Reads the stored rankings, all prompts."""

    def read() -> list[AnnotatorRanking]:
        return [ranking for record in store.records(project.id) for ranking in record.rankings]

    return read


@pytest.fixture
def people(store: Store) -> NamedPeople:
    return NamedPeople(store, {"ann": "annotator", "root": "admin", "guest": None})
