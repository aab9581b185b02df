"""What a transaction writes, gathered while it is planned: each kind of statement is sent once for many rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from typing import Any

from sqlalchemy import ClauseElement, Connection, Dialect, Table, bindparam, delete, insert, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from app.store.mapping import Values
from app.store.tables import AllocationRow, EndpointRow, KeptAnswerRow, NetworkRow, PortmapRow

_TABLES: tuple[type[SQLModel], ...] = (NetworkRow, EndpointRow, AllocationRow, PortmapRow, KeptAnswerRow)
"""Each refers to those before it: rows come in this order, and go in the other."""


class Verb(Enum):
    """What is done to rows."""

    INSERT = auto()
    UPDATE = auto()
    DELETE = auto()


@dataclass(frozen=True, slots=True)
class Write:
    """A row of a table that comes, changes or goes. key: which one, by column."""

    verb: Verb
    row: type[SQLModel]
    values: Values
    key: tuple[str, ...] = ("id",)

    @property
    def order(self) -> int:
        """Among others of its verb; changes stay as they came, for one may take the name that another gave up."""
        rank = _TABLES.index(self.row)
        return {Verb.INSERT: rank, Verb.UPDATE: 0, Verb.DELETE: -rank}[self.verb]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Writes of one shape are one statement."""
        return self.verb, self.row, self.key, tuple(self.values)


def table_of(row: type[SQLModel]) -> Table:
    """The table that a class of rows describes."""
    return SQLModel.metadata.tables[str(row.__tablename__)]


@dataclass(frozen=True, slots=True)
class _Statement:
    """Compiled once, for SQLAlchemy's own way of executing takes longer than the database. names: its parameters."""

    text: str
    names: tuple[str, ...] | None

    def parameters(self, write: Write) -> Any:
        """As the driver takes them: in order, or by name."""
        values = _parameters(write)
        return values if self.names is None else tuple(values[name] for name in self.names)


_STATEMENTS: dict[tuple[Any, ...], _Statement] = {}


def send(connection: Connection, writes: list[Write]) -> None:
    """Carries them out, in this order as far as it matters. Raises SQLAlchemyError."""
    if not writes:
        return
    dialect = connection.dialect
    cursor = connection.connection.cursor()
    for _shape, group in groupby(_ordered(writes), key=lambda write: write.shape):
        rows = list(group)
        statement = _statement(dialect, rows[0])
        try:
            cursor.executemany(statement.text, [statement.parameters(write) for write in rows])
        except dialect.loaded_dbapi.Error as failure:
            raise DBAPIError(statement.text, None, failure) from failure
    cursor.close()


def _ordered(writes: list[Write]) -> Iterator[Write]:
    for _verb, run in groupby(writes, key=lambda write: write.verb):
        yield from sorted(run, key=lambda write: write.order)


def _statement(dialect: Dialect, write: Write) -> _Statement:
    shape = (dialect.name, *write.shape)
    if shape not in _STATEMENTS:
        compiled = dialect.statement_compiler(dialect, _built(write))
        names = tuple(compiled.positiontup or ()) if compiled.positional else None
        _STATEMENTS[shape] = _Statement(str(compiled), names)
    return _STATEMENTS[shape]


def _built(write: Write) -> ClauseElement:
    table = table_of(write.row)
    if write.verb is Verb.INSERT:
        return insert(table).values({name: bindparam(name) for name in write.values})
    where = [table.c[name] == bindparam(f"key_{name}") for name in write.key]
    if write.verb is Verb.DELETE:
        return delete(table).where(*where)
    return update(table).where(*where).values({name: bindparam(name) for name in write.values})


def _parameters(write: Write) -> Values:
    if write.verb is Verb.INSERT:
        return write.values
    return write.values | {f"key_{name}": write.values[name] for name in write.key}
