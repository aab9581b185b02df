"""Opening the database, bringing it up to date, and transactions."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

import app
from app.model.errors import StartupError, StoreFailed
from app.store.repository import Repository

log = logging.getLogger("bridgehead.store")

_BUSY_MS = 5000
_READS = "bridgehead_reads"
"""An execution option: the transaction does not write, and waits for nobody who does."""
ROOM = 64 << 10
"""Bytes that must be free before a change: several commits, and what SQLite keeps beside them."""
_TRIAL = ("PRAGMA synchronous=NORMAL", "BEGIN IMMEDIATE", "PRAGMA user_version=0", "COMMIT")
"""A page is written, for nothing and without waiting for the disk."""
_WORDS = "move it away to start with an empty one, or restore a backup"


def migrations_dir() -> Path:
    """The Alembic scripts: inside the package where it is installed, beside it in a checkout."""
    package = Path(app.__file__).parent
    inside = package / "_migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def database_path(url: str) -> str:
    """The file that a URL names. Raises StartupError with the line to print."""
    try:
        parsed = make_url(url)
        # a migration, and each connection, would see another memory
        if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
            raise StartupError(f"database '{url}': only sqlite:///PATH is supported so far")
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        raise StartupError(
            f"database '{url}' is not an SQLAlchemy URL, such as sqlite:////path/to/bridgehead.db"
        ) from None
    return str(parsed.database)


def open_database(url: str) -> Engine:
    """An engine on a database of this version. Raises StartupError with the line to print."""
    path = database_path(url)
    engine = create_engine(url, connect_args={"isolation_level": None, "check_same_thread": False})
    _configure(engine)
    try:
        # SQLite gives its other files the same mode
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as refusal:
        raise StartupError(f"database '{url}' cannot be used ({refusal.strerror}): {_WORDS}") from None
    try:
        with engine.connect() as connection:
            verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if verdict != "ok":
            raise StartupError(f"database '{url}' is damaged ({verdict}): {_WORDS}")
        _upgrade(engine, url)
    except (SQLAlchemyError, sqlite3.Error) as failure:
        reason = getattr(failure, "orig", None) or failure
        raise StartupError(f"database '{url}' cannot be used ({reason}): {_WORDS}") from failure
    return engine


def _configure(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _pragmas(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # sqlite3's own BEGIN comes with the first write: too late to find out that there can be none
        statement = "BEGIN" if connection.get_execution_options().get(_READS) else "BEGIN IMMEDIATE"
        try:
            # by the driver: the library's own way takes longer than the statement
            connection.connection.cursor().execute(statement).close()
        except sqlite3.Error as failure:
            raise DBAPIError(statement, None, failure) from failure


def _upgrade(engine: Engine, url: str) -> None:
    known = sorted(path.stem for path in (migrations_dir() / "versions").glob("[0-9]*.py"))
    head = known[-1].split("_")[0]
    current = _revision(engine)
    if current == head:
        return
    if current is not None and current not in {name.split("_")[0] for name in known}:
        raise StartupError(
            f"database '{url}' was written by a newer Bridgehead (schema {current}, this one knows {head}): "
            f"upgrade Bridgehead, or {_WORDS}"
        )
    if current is not None and engine.url.database:
        _copy(engine, Path(f"{engine.url.database}.before-{head}"), url)
    engine.dispose()  # a child must not share its parent's connections
    _in_child(lambda: _run_migrations(engine))


def _copy(engine: Engine, copy: Path, url: str) -> None:
    """A copy of the database as it is, whole or not at all, for whoever goes back. Raises StartupError."""
    part = copy.with_name(f"{copy.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with engine.connect() as connection, contextlib.closing(sqlite3.connect(part)) as target:
            connection.connection.driver_connection.backup(target)  # type: ignore[union-attr]
            target.execute("PRAGMA journal_mode=DELETE").close()  # one file, without its log beside it
        part.replace(copy)
    except (OSError, sqlite3.Error) as failure:
        with contextlib.suppress(OSError):  # what it said first counts
            part.unlink(missing_ok=True)
        raise StartupError(f"database '{url}' cannot be copied to '{copy}' before its upgrade ({failure})") from failure
    log.info("the database as it was before its upgrade is kept in %s", copy)


def _run_migrations(engine: Engine) -> None:
    from app.store.migrate import upgrade  # noqa: PLC0415 - see _in_child

    upgrade(engine, migrations_dir())
    engine.dispose()  # the last connection's end brings all of it into the database's own file


def _in_child(work: Callable[[], None]) -> None:
    """Runs it in a forked process: Alembic is 10 MB that only an upgrade needs. Raises StartupError."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except Exception as failure:  # noqa: BLE001 - its words go to the parent
            os.write(writing, str(getattr(failure, "orig", None) or failure).encode()[:4096])
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as words:
        reason = words.read().decode(errors="replace")
    if os.waitpid(child, 0)[1] != 0:
        raise StartupError(f"the database cannot be brought to this version ({reason}): {_WORDS}")


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").all()
        if not tables:
            return None
        row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
        return None if row is None else str(row[0])


@contextmanager
def transaction(engine: Engine) -> Iterator[Repository]:
    """One durable transaction of its own. Raises StoreFailed where the database refuses; then nothing is written."""
    try:
        with engine.begin() as connection:
            store = Repository(connection)
            yield store
            store.flush()
    except SQLAlchemyError as failure:
        raise store_failed(failure) from failure


def read(engine: Engine) -> Repository:
    """What is stored at one moment, to read only, beside whatever is being written. Raises StoreFailed."""
    try:
        with engine.connect().execution_options(**{_READS: True}) as connection:
            return Repository(connection)
    except SQLAlchemyError as failure:
        raise store_failed(failure) from failure


def store_failed(failure: SQLAlchemyError) -> StoreFailed:
    """The error for a client: the driver's words, without the statement."""
    reason = getattr(failure, "orig", None) or type(failure).__name__
    return StoreFailed(f"the database refused the change ({reason}); nothing was changed")


def require_room(engine: Engine) -> None:
    """Before anything is touched: what is taken back is not always as it was. Raises StoreFailed on a full disk."""
    path = str(engine.url.database)
    try:
        place = os.statvfs(path)
    except OSError as refusal:
        raise StoreFailed(f"{path} cannot be used ({refusal.strerror}); nothing was changed") from refusal
    left = place.f_bfree * place.f_frsize
    if left < ROOM:
        raise StoreFailed(f"the disk of {path} is full: {left} bytes are free, {ROOM} needed; nothing was changed")


def is_writable(engine: Engine) -> bool:
    """Whether the database takes a write, and has room for a change; that another write goes on is no obstacle."""
    try:
        require_room(engine)
        # one of its own: those of the pool have other settings, and would not notice that the file is read-only now
        opened = sqlite3.connect(str(engine.url.database), timeout=0, isolation_level=None)
        with contextlib.closing(opened) as connection:
            for statement in _TRIAL:
                connection.execute(statement).close()
    except sqlite3.OperationalError as refusal:
        return refusal.sqlite_errorcode == sqlite3.SQLITE_BUSY
    except (StoreFailed, sqlite3.Error):
        return False
    return True
