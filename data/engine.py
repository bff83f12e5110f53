"""Open the database: SQLite by default, PostgreSQL by address; bring its tables up to date.

Both behave alike: one writer at a time, each write one transaction that is on disk when it returns. Reads never wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError

from data.errors import BadInput, UserError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 15
# Any constant will do; it names "the writer of this database" among PostgreSQL's advisory locks.
_WRITER_LOCK = 0x52414E4B


@dataclass(frozen=True)
class Engines:
    """`write`: one transaction at a time, begun as a writer. `read`: refuses to write."""

    write: Engine
    read: Engine

    def dispose(self) -> None:
        """Close every connection; on SQLite the last one folds the write-ahead log into the file."""
        self.read.dispose()
        self.write.dispose()


def open_engines(workspace: Path, url: str | None) -> Engines:
    """Engines on `url`, or on WORKSPACE/rankwise.db, with the newest schema. Raises UserError."""
    address = database_address(workspace, url)
    engines = _sqlite(address) if address.get_backend_name() == "sqlite" else _postgresql(address)
    try:
        _migrate(engines.write)
    except DatabaseError as error:
        engines.dispose()
        shown = address.render_as_string(hide_password=True)
        reason = str(error.orig).strip().splitlines()[0]
        raise UserError(
            f"database {shown} cannot be opened: {reason}. Check the address, the server and the rights."
        ) from error
    except BaseException:
        engines.dispose()
        raise
    return engines


def database_address(workspace: Path, url: str | None) -> URL:
    """The address to open; `postgres://` and `postgresql://` mean the psycopg driver. Raises BadInput."""
    if not url:
        try:
            workspace.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"--workspace {workspace}: {reason}; it must be a folder. Choose another one.") from error
        return URL.create("sqlite", database=str(workspace / "rankwise.db"))
    try:
        address = make_url(url)
    except ArgumentError:
        raise BadInput(
            "DATABASE_URL is no database address; write postgresql+psycopg://USER:PASSWORD@HOST/NAME or unset it."
        ) from None
    if address.drivername in ("postgres", "postgresql"):
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername not in ("sqlite", "postgresql+psycopg"):
        raise BadInput(
            f"DATABASE_URL names '{address.drivername}'; Rankwise runs on SQLite and PostgreSQL. "
            "Write postgresql+psycopg://USER:PASSWORD@HOST/NAME or unset it."
        )
    return address


def _sqlite(address: URL) -> Engines:
    # One writing connection, which also does the checkpoints: SQLite before 3.51.3 can lose commits when two do
    # (the WAL-reset bug), and one queue in front of the lock is fairer than its busy handler.
    write = create_engine(
        address, pool_size=1, max_overflow=0, pool_timeout=60, connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    read = create_engine(address, pool_size=8, max_overflow=8, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(write, "connect", _sqlite_writer)
    event.listen(read, "connect", _sqlite_reader)
    # The driver's own transactions would begin late and commit around table changes; ours begin as a writer, because
    # a transaction that reads first and writes later fails at once when another one wrote in between.
    event.listen(write, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    event.listen(read, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return Engines(write, read)


def _sqlite_writer(dbapi: Any, _record: object) -> None:
    dbapi.isolation_level = None
    cursor = dbapi.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    settings = [
        cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")
    ]
    cursor.close()
    if settings != ["wal", 2, 1]:
        raise UserError(
            f"SQLite gave {settings} for journal mode, synchronous and foreign keys; rankings are safe only under "
            "['wal', 2, 1]. Put the workspace on a local disk (network drives have no write-ahead log)."
        )


def _sqlite_reader(dbapi: Any, _record: object) -> None:
    dbapi.isolation_level = None
    dbapi.execute("PRAGMA query_only=ON")


def _postgresql(address: URL) -> Engines:
    write = create_engine(address, pool_size=4, max_overflow=4, pool_pre_ping=True)
    read = create_engine(
        address,
        pool_size=8,
        max_overflow=8,
        pool_pre_ping=True,
        # One snapshot for the whole transaction, as on SQLite.
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
    )
    lock = text("SELECT pg_advisory_xact_lock(:key)").bindparams(key=_WRITER_LOCK)
    event.listen(write, "begin", lambda connection: connection.execute(lock))
    return Engines(write, read)


def _migrate(write: Engine) -> None:
    """Bring the tables to the newest schema; a transaction, so a failed step leaves nothing behind."""
    # Alembic takes a moment to import: an up-to-date database is opened without it.
    with write.begin() as connection:
        if _revision(connection) == _newest_revision():
            return
        _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _newest_revision() -> str:
    return max(file.stem for file in (MIGRATIONS / "versions").glob("[0-9]*.py")).split("_")[0]


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise UserError(
            f"the database has schema '{_revision(connection)}', which this version of Rankwise does not know "
            f"(its newest is '{_newest_revision()}'). Update Rankwise, or use another workspace."
        ) from error
