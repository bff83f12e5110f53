"""Opening the database: settings that keep rankings safe, migrations, and addresses that are refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from data.engine import database_address, open_engines
from data.errors import BadInput, UserError
from data.schema import metadata
from data.store import Store


def test_the_migrations_build_exactly_the_schema(store: Store) -> None:
    with store._engines.write.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_sqlite_waits_for_the_disk_at_each_commit(tmp_path: Path) -> None:
    engines = open_engines(tmp_path, None)
    with engines.write.begin() as connection:
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]
    assert engines.write.pool.size() == 1  # type: ignore[attr-defined]
    engines.dispose()


def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.engine._newest_revision", lambda: "0001")
    monkeypatch.setattr("alembic.op.create_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_engines(tmp_path, None)
    with sqlite3.connect(tmp_path / "rankwise.db") as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_a_newer_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    engines = open_engines(tmp_path, None)
    with engines.write.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engines.dispose()
    with pytest.raises(UserError, match=r"schema '9999'.*Update Rankwise"):
        Store.open(tmp_path)


def test_a_workspace_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="it must be a folder"):
        Store.open(tmp_path / "file")


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "rankwise.db").write_text("no database " * 100)
    with pytest.raises(UserError, match="cannot be opened: file is not a database"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("", "sqlite"),
        ("postgres://u:p@h/d", "postgresql+psycopg"),
        ("postgresql://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg"),
    ],
)
def test_addresses(tmp_path: Path, url: str, driver: str) -> None:
    assert database_address(tmp_path, url).drivername == driver


@pytest.mark.parametrize("url", ["mysql://u:p@h/d", "not an address", "postgresql+asyncpg://h/d"])
def test_other_databases_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadInput, match="DATABASE_URL"):
        database_address(tmp_path, url)


def test_an_unreachable_server_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened") as refusal:
        Store.open(tmp_path, url="postgresql+psycopg://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
