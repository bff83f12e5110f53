"""The store: one method per sentence, each write one transaction.

A write that returned is on disk. Rankings are append-only: an edit or an undo adds a revision, nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from data import adding, decisions, reading
from data.engine import open_engines
from data.entities import (
    Added,
    Annotator,
    Counts,
    HistoryEntry,
    Progress,
    Project,
    Receipt,
    Submission,
    Task,
)
from data.errors import BadInput, Conflict, NotFound
from data.records import PromptRecord, check_name, check_text
from data.schema import MEMBER_ROLES, AnyRow, assignment, audit, membership, project, prompt
from data.shown_order import new_seed


def utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


class Store:
    """Projects, prompts, people and rankings of one workspace."""

    def __init__(self, workspace: Path, *, url: str | None, clock: Callable[[], datetime]) -> None:
        self._engines = open_engines(workspace, url)
        self._clock = clock

    @classmethod
    def open(cls, workspace: Path, *, url: str | None = None, clock: Callable[[], datetime] = utc_now) -> Store:
        """Open (or make) the store of `workspace`; `url` is a DATABASE_URL, default SQLite in the workspace."""
        return cls(workspace, url=url, clock=clock)

    def close(self) -> None:
        """Close every connection."""
        self._engines.dispose()

    # Projects and people

    def create_project(self, name: str, *, guidelines: str = "") -> Project:
        """A new, empty project. Raises Conflict where the name is taken."""
        name = check_name(name, "project")
        check_text(guidelines, "the text", where=f"guidelines of '{name}'")
        with self._write() as connection:
            return self._create_project(connection, name, guidelines)

    def create_project_with(self, name: str, records: Iterable[PromptRecord], *, guidelines: str = "") -> Added:
        """A new project with its prompts, all or nothing. Raises Conflict and BadInput."""
        name = check_name(name, "project")
        with self._write() as connection:
            made = self._create_project(connection, name, guidelines)
            return self._add_prompts(connection, made.id, records)

    def project(self, name: str) -> Project:
        """The project of that name. Raises NotFound, naming those that exist."""
        with self._read() as connection:
            row = _project_row(connection, name)
            if row:
                return Project(row.id, row.name, row.guidelines)
            names = connection.execute(select(project.c.name).order_by(project.c.id).limit(20)).scalars().all()
        known = f"The projects are: {', '.join(names)}." if names else "There is none yet; import a file to make one."
        raise NotFound(f"project '{name}' does not exist. {known}")

    def projects(self) -> list[Project]:
        """All projects, oldest first."""
        query = select(project.c.id, project.c.name, project.c.guidelines).order_by(project.c.id)
        with self._read() as connection:
            return [Project(*row) for row in connection.execute(query)]

    def set_guidelines(self, project_id: int, text: str, *, by: int) -> None:
        """Replace a project's guidelines; the former text stays in the audit table."""
        check_text(text, "the text", where="guidelines")
        with self._write() as connection:
            former = connection.execute(select(project.c.guidelines).where(project.c.id == project_id)).scalar()
            if former is None:
                raise NotFound(f"project {project_id} does not exist. Reload the page.")
            connection.execute(update(project).where(project.c.id == project_id).values(guidelines=text))
            self._audit(connection, "project.guidelines", by=by, project_id=project_id, detail={"former": former})

    def ensure_annotator(self, name: str) -> Annotator:
        """The annotator of that name, made on first sight."""
        name = check_name(name, "annotator")
        with self._write() as connection:
            return adding.ensure_annotator(connection, name, at=self._clock())

    def grant(self, project_id: int, annotator_id: int, role: str) -> None:
        """Give an annotator a role in a project, in place of an earlier one."""
        if role not in MEMBER_ROLES:
            raise BadInput(f"role '{role}' does not exist. A role is one of {', '.join(MEMBER_ROLES)}.")
        key = (membership.c.project_id == project_id) & (membership.c.annotator_id == annotator_id)
        with self._write() as connection:
            former = connection.execute(select(membership.c.role).where(key)).scalar()
            if former == role:
                return
            if former is None:
                connection.execute(
                    insert(membership).values(project_id=project_id, annotator_id=annotator_id, role=role)
                )
            else:
                connection.execute(update(membership).where(key).values(role=role))
            detail = {"annotator": annotator_id, "role": role, "former": former}
            self._audit(connection, "member.grant", project_id=project_id, detail=detail)

    def role(self, project_id: int, annotator_id: int) -> str | None:
        """The annotator's role in the project, or None."""
        query = select(membership.c.role).where(
            membership.c.project_id == project_id, membership.c.annotator_id == annotator_id
        )
        with self._read() as connection:
            role: str | None = connection.execute(query).scalar()
        return role

    # Prompts

    def add_prompts(self, project_id: int, records: Iterable[PromptRecord]) -> Added:
        """Add prompts with their responses and rankings, all or nothing.

        A prompt that is there already (same id, same content) is counted, not doubled. Raises BadInput where an id
        stands for other content, or where an annotator's stored ranking differs.
        """
        with self._write() as connection:
            return self._add_prompts(connection, project_id, records)

    def records(self, project_id: int) -> Iterator[PromptRecord]:
        """Every prompt with its responses and current rankings, from one snapshot, in the order they came."""
        with self._read() as connection:
            yield from reading.records(connection, project_id)

    def counts(self, project_id: int) -> Counts:
        """The size of a project."""
        with self._read() as connection:
            return reading.counts(connection, project_id)

    # One annotator's work

    def next_task(self, project_id: int, annotator_id: int) -> Task | None:
        """The task this annotator has open, else the next untouched prompt; None when nothing is left."""
        with self._write() as connection:
            prompt_id = reading.open_prompt(connection, project_id, annotator_id)
            if prompt_id is None:
                prompt_id = reading.untouched_prompt(connection, project_id, annotator_id)
                if prompt_id is None:
                    return None
                _assign(connection, project_id, prompt_id, annotator_id)
            return reading.task(connection, prompt_id, annotator_id)

    def task(self, project_id: int, prompt_id: int, annotator_id: int) -> Task:
        """Any prompt of the project, to rank it or to change one's earlier ranking. Raises NotFound."""
        known = select(prompt.c.id).where(prompt.c.id == prompt_id, prompt.c.project_id == project_id)
        mine = select(assignment.c.prompt_id).where(
            assignment.c.prompt_id == prompt_id, assignment.c.annotator_id == annotator_id
        )
        with self._write() as connection:
            if connection.execute(known).scalar() is None:
                raise NotFound(f"prompt {prompt_id} is not in this project. Go back to the list.")
            if connection.execute(mine).scalar() is None:
                _assign(connection, project_id, prompt_id, annotator_id)
            return reading.task(connection, prompt_id, annotator_id)

    def submit(self, annotator_id: int, submission: Submission) -> Receipt:
        """Store a decision. When this returns it is on disk; the same key again returns the same receipt.

        Raises BadInput (a broken rule) and Conflict (the prompt has another revision than the page showed).
        """
        decisions.check_submission(submission)
        with self._write() as connection:
            stored = decisions.replay(connection, annotator_id, submission)
            if stored:
                return stored
            receipt = decisions.store(connection, annotator_id, submission, at=self._clock())
            detail = {"prompt": receipt.prompt_id, "revision": receipt.revision, "ranking": receipt.ranking}
            self._audit(connection, f"ranking.{receipt.status}", by=annotator_id, detail=detail)
        return receipt

    def undo(self, project_id: int, annotator_id: int, *, key: str) -> Task | None:
        """Take back the latest decision by a new revision and show its task again.

        A first decision is withdrawn, its ranking kept as the draft; a changed one gives way to the one before it.
        None when there is nothing to undo. The same key again undoes nothing more.
        """
        decisions.check_key(key)
        with self._write() as connection:
            prompt_id = decisions.undone_by_key(connection, annotator_id, key)
            if prompt_id is None:
                prompt_id = decisions.undo_latest(connection, project_id, annotator_id, key=key, at=self._clock())
                if prompt_id is None:
                    return None
                detail = {"prompt": prompt_id}
                self._audit(connection, "ranking.undone", by=annotator_id, project_id=project_id, detail=detail)
            return reading.task(connection, prompt_id, annotator_id)

    def save_draft(self, annotator_id: int, prompt_id: int, *, draft: str, comment: str) -> None:
        """Keep unfinished work; any text is welcome, it is checked at submit. Raises NotFound."""
        check_text(draft, "the ranking", where="draft", limit=1000)
        check_text(comment, "the comment", where="draft", limit=decisions.MAX_COMMENT_CHARS)
        key = (assignment.c.prompt_id == prompt_id) & (assignment.c.annotator_id == annotator_id)
        with self._write() as connection:
            result = connection.execute(update(assignment).where(key).values(draft=draft, comment=comment))
            if result.rowcount != 1:
                raise NotFound(f"prompt {prompt_id} was never shown to you. Reload the page.")

    def history(self, project_id: int, annotator_id: int, *, limit: int = 50) -> list[HistoryEntry]:
        """This annotator's decisions, newest first."""
        with self._read() as connection:
            return reading.history(connection, project_id, annotator_id, limit=limit)

    def progress(self, project_id: int, annotator_id: int) -> Progress:
        """How far this annotator is."""
        with self._read() as connection:
            return reading.progress(connection, project_id, annotator_id)

    # Inside

    def _create_project(self, connection: Connection, name: str, guidelines: str) -> Project:
        if _project_row(connection, name):
            raise Conflict(f"project '{name}' exists already. Choose another name.")
        values = {"name": name, "guidelines": guidelines, "created_at": self._clock()}
        project_id = connection.execute(insert(project).values(values).returning(project.c.id)).scalar_one()
        self._audit(connection, "project.create", project_id=project_id, detail={"name": name})
        return Project(project_id, name, guidelines)

    def _add_prompts(self, connection: Connection, project_id: int, records: Iterable[PromptRecord]) -> Added:
        added = adding.add_prompts(connection, project_id, records, at=self._clock())
        self._audit(connection, "prompts.add", project_id=project_id, detail=vars(added))
        return added

    def _write(self) -> AbstractContextManager[Connection]:
        return self._engines.write.begin()

    def _read(self) -> AbstractContextManager[Connection]:
        return self._engines.read.begin()

    def _audit(
        self,
        connection: Connection,
        action: str,
        *,
        detail: dict[str, Any],
        by: int | None = None,
        project_id: int | None = None,
    ) -> None:
        values = {"at": self._clock(), "annotator_id": by, "action": action, "project_id": project_id, "detail": detail}
        connection.execute(insert(audit).values(values))


def _project_row(connection: Connection, name: str) -> AnyRow | None:
    return connection.execute(select(project).where(project.c.name == name)).one_or_none()


def _assign(connection: Connection, project_id: int, prompt_id: int, annotator_id: int) -> None:
    """Show a prompt to an annotator for the first time: from now on in this order."""
    values = {"project_id": project_id, "prompt_id": prompt_id, "annotator_id": annotator_id}
    connection.execute(insert(assignment).values(**values, seed=new_seed(), state="open"))
