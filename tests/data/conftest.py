"""The store under test: each test runs on SQLite and, where DATABASE_URL names one, on PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from data.entities import Annotator, Project, Submission
from data.records import PromptRecord, read_record
from data.store import Store


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """None (SQLite in the workspace), or a fresh schema of the PostgreSQL at DATABASE_URL."""
    if request.param == "sqlite":
        yield None
        return
    url = request.getfixturevalue("postgres_url")
    schema = f"test_{secrets.token_hex(6)}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{schema}"
    with engine.connect() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
def open_store(tmp_path: Path, database_url: str | None) -> Iterator[Callable[[], Store]]:
    """Opens the same database again and again, as a restarted server does."""
    opened: list[Store] = []

    def open_it() -> Store:
        opened.append(Store.open(tmp_path, url=database_url))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()


@dataclass(frozen=True)
class Desk:
    """A store with one project and one annotator at work."""

    store: Store
    project: Project
    annotator: Annotator

    def add(self, *rows: dict[str, object]) -> None:
        self.store.add_prompts(self.project.id, [read_record(row, where="test") for row in rows])

    def rank(self, ranking: str, *, key: str | None = None) -> None:
        """Rank the next task, labels as shown."""
        task = self.store.next_task(self.project.id, self.annotator.id)
        assert task is not None
        submission = Submission(task.prompt_id, task.revision, key or secrets.token_hex(8), "ranked", ranking)
        self.store.submit(self.annotator.id, submission)

    def records(self) -> list[PromptRecord]:
        return list(self.store.records(self.project.id))


@pytest.fixture
def desk(store: Store) -> Desk:
    """A project with five prompts of three responses each, and the annotator `lin`."""
    project = store.create_project("demo")
    desk = Desk(store, project, store.ensure_annotator("lin"))
    desk.add(*({"id": f"p{i}", "prompt": f"Question {i}?", "responses": ["one", "two", "three"]} for i in range(1, 6)))
    return desk
