"""What a transaction writes, gathered while it is planned: each kind of statement is sent once for many rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from itertools import groupby
from typing import Any, Literal, get_args

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.store.mapping import Values

TableName = Literal["network", "endpoint", "allocation", "portmap", "kept_answer"]
"""Of `app.store.tables`. Each refers to those before it: rows come in this order, and go in the other."""
_TABLES: tuple[TableName, ...] = get_args(TableName)
_PLACES = {"qmark": "?", "format": "%s", "pyformat": "%s"}
"""Where a value stands in a statement, as drivers have it (PEP 249, paramstyle)."""


class Verb(Enum):
    """What is done to rows."""

    INSERT = auto()
    UPDATE = auto()
    DELETE = auto()


@dataclass(frozen=True, slots=True)
class Write:
    """A row of a table that comes, changes or goes. key: which one, by column."""

    verb: Verb
    table: TableName
    values: Values
    key: tuple[str, ...] = ("id",)

    @property
    def order(self) -> int:
        """Among others of its verb; changes stay as they came, for one may take the name that another gave up."""
        rank = _TABLES.index(self.table)
        return {Verb.INSERT: rank, Verb.UPDATE: 0, Verb.DELETE: -rank}[self.verb]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Writes of one shape are one statement."""
        return self.verb, self.table, self.key, tuple(self.values)


def send(connection: Connection, writes: list[Write]) -> None:
    """Carries them out, in this order as far as it matters. Raises SQLAlchemyError."""
    if not writes:
        return
    dialect = connection.dialect
    cursor = connection.connection.cursor()
    place = _PLACES[dialect.paramstyle]
    for shape, group in groupby(_ordered(writes), key=lambda write: write.shape):
        statement = _statement(place, *shape)
        try:
            cursor.executemany(statement, [_parameters(write) for write in group])
        except dialect.loaded_dbapi.Error as failure:
            raise DBAPIError(statement, None, failure) from failure
    cursor.close()


def _ordered(writes: list[Write]) -> Iterator[Write]:
    for _verb, run in groupby(writes, key=lambda write: write.verb):
        yield from sorted(run, key=lambda write: write.order)


@cache
def _statement(place: str, verb: Verb, table: TableName, key: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """By hand: SQLAlchemy takes longer for one than the database, and to describe the tables a part of each start."""
    where = " AND ".join(f"{name} = {place}" for name in key)
    match verb:
        case Verb.INSERT:
            return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([place] * len(columns))})"  # noqa: S608
        case Verb.UPDATE:
            return f"UPDATE {table} SET {', '.join(f'{name} = {place}' for name in columns)} WHERE {where}"  # noqa: S608
        case Verb.DELETE:
            return f"DELETE FROM {table} WHERE {where}"  # noqa: S608


def _parameters(write: Write) -> tuple[Any, ...]:
    """As the driver takes them."""
    values = tuple(write.values.values())
    if write.verb is Verb.INSERT:
        return values
    key = tuple(write.values[name] for name in write.key)
    return key if write.verb is Verb.DELETE else values + key
