"""The tables. Rankings are append-only revisions; ranks are rows with foreign keys; every constraint has a name.

`assignment` is the one row that changes: what a prompt looks like to one annotator now (shown order, draft, state, and
which revision of the ranking is current).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Row,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# A database row; its columns are checked by the tests, not by the types.
AnyRow = Row[*tuple[Any, ...]]

MEMBER_ROLES = ("annotator", "reviewer", "admin")
DECISIONS = ("ranked", "skipped", "flagged", "withdrawn")
STATES = ("open", "ranked", "skipped", "flagged")
SOURCES = ("page", "import", "undo")


class UtcTime(TypeDecorator[datetime]):
    """A moment, always UTC and always aware, also on SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        assert value is None or value.tzinfo is not None, "a stored time must be aware"
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


project = Table(
    "project",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("guidelines", Text, nullable=False, default=""),
    Column("created_at", UtcTime, nullable=False),
)

prompt = Table(
    "prompt",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("external_id", String(200), nullable=False),
    Column("messages", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("project_id", "external_id"),
    Index(None, "project_id", "id"),
)

response = Table(
    "response",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prompt_id", ForeignKey("prompt.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("model", String(200)),
    Column("external_id", String(200)),
    UniqueConstraint("prompt_id", "number"),
    # The target of rank's foreign key: a rank can only name a response of its own prompt.
    UniqueConstraint("id", "prompt_id"),
    CheckConstraint("number >= 1", name="number_from_1"),
)

annotator = Table(
    "annotator",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
)

membership = Table(
    "membership",
    metadata,
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotator.id"), nullable=False),
    Column("role", String(20), nullable=False),
    PrimaryKeyConstraint("project_id", "annotator_id"),
    CheckConstraint(_one_of("role", MEMBER_ROLES), name="role_known"),
)

assignment = Table(
    "assignment",
    metadata,
    Column("prompt_id", ForeignKey("prompt.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotator.id"), nullable=False),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("revision", Integer, nullable=False, default=0),
    Column("draft", Text, nullable=False, default=""),
    Column("comment", Text, nullable=False, default=""),
    PrimaryKeyConstraint("prompt_id", "annotator_id"),
    CheckConstraint(_one_of("state", STATES), name="state_known"),
    CheckConstraint("revision >= 0", name="revision_from_0"),
    Index(None, "project_id", "annotator_id", "state"),
    Index(None, "project_id", "annotator_id", "prompt_id"),
)

ranking = Table(
    "ranking",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prompt_id", ForeignKey("prompt.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotator.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("status", String(20), nullable=False),
    Column("bar", Integer),
    Column("seconds", Float),
    Column("comment", Text, nullable=False, default=""),
    Column("reason", Text, nullable=False, default=""),
    Column("source", String(20), nullable=False),
    Column("client_key", String(64), unique=True),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("prompt_id", "annotator_id", "revision"),
    UniqueConstraint("id", "prompt_id"),
    CheckConstraint(_one_of("status", DECISIONS), name="status_known"),
    CheckConstraint(_one_of("source", SOURCES), name="source_known"),
    CheckConstraint("revision >= 1", name="revision_from_1"),
    CheckConstraint("bar IS NULL OR (bar >= 0 AND status = 'ranked')", name="bar_of_a_ranking"),
    Index(None, "annotator_id", "id"),
)

rank = Table(
    "rank",
    metadata,
    Column("ranking_id", Integer, nullable=False),
    Column("response_id", Integer, nullable=False),
    Column("prompt_id", Integer, nullable=False),
    # Place on the annotator's screen, 1…K; NULL where an imported ranking does not tell.
    Column("shown", Integer),
    # 1 is best, equal ranks are ties, NULL is unranked.
    Column("rank", Integer),
    PrimaryKeyConstraint("ranking_id", "response_id"),
    ForeignKeyConstraint(["ranking_id", "prompt_id"], ["ranking.id", "ranking.prompt_id"]),
    ForeignKeyConstraint(["response_id", "prompt_id"], ["response.id", "response.prompt_id"]),
    UniqueConstraint("ranking_id", "shown"),
    CheckConstraint("rank IS NULL OR rank >= 1", name="rank_from_1"),
    CheckConstraint("shown IS NULL OR shown >= 1", name="shown_from_1"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("annotator_id", ForeignKey("annotator.id")),
    Column("action", String(40), nullable=False),
    Column("project_id", ForeignKey("project.id")),
    Column("detail", JSON, nullable=False),
    Index(None, "project_id", "id"),
)
