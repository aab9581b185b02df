"""The objects, as one open transaction has them: read in memory, written together when it is committed.

The worker keeps one for as long as it runs. Who changes it and does not commit takes the change back.
"""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.model.ports import AUTOMATIC
from app.model.spec import Allocation, Endpoint, IPAddress, Network, Portmap, Protocol, Version
from app.store import mapping
from app.store.memory import Memory
from app.store.writes import TableName, Verb, Write, send

P = TypeVar("P")
_named: Any = namedtuple  # its fields are known at run time only
_PURGED = 16
"""Old answers that go with each new one: more than come, and few enough to cost nothing."""
_KEPT = text("SELECT * FROM kept_answer WHERE scope = :scope AND key = :key")
_PURGE = text(
    "DELETE FROM kept_answer WHERE (scope, key) IN "
    "(SELECT scope, key FROM kept_answer WHERE created_at < :since ORDER BY created_at LIMIT :most)"
)
_CURSORS: dict[Version, str] = {4: "cursor", 6: "cursor6"}


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer to a request that carried an Idempotency-Key."""

    fingerprint: str
    status: int
    body: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to go back to."""

    steps: int = 0
    writes: int = 0


_COMMITTED = Mark()


class Repository(Memory):
    """Two objects with one name, address or port are the caller's bug, not its input's: the database refuses them."""

    def __init__(self, connection: Connection) -> None:
        """What is stored, by a connection of which the next transaction is too. Raises SQLAlchemyError."""
        super().__init__()
        self._connection = connection
        self._writes: list[Write] = []
        self._moved: set[tuple[str, Version]] = set()
        for row in _rows(connection, "network"):
            self._networks.load([mapping.network_of(row)])
            for version, name in _CURSORS.items():
                if (key := getattr(row, name)) is not None:
                    self._cursors[row.id, version] = mapping.value_of(key, version)
        self._endpoints.load(map(mapping.endpoint_of, _rows(connection, "endpoint")))
        self._portmaps.load(map(mapping.portmap_of, _rows(connection, "portmap")))
        self._allocations.load(map(mapping.allocation_of, _rows(connection, "allocation")))

    # --- the transaction

    def begin(self, connection: Connection) -> None:
        """Writes by this connection from now on."""
        self._connection = connection

    def mark(self) -> Mark:
        """Where the changes stand, for `rollback`."""
        return Mark(self._journal.mark(), len(self._writes))

    def rollback(self, mark: Mark = _COMMITTED) -> None:
        """As it was at the mark; by default as it was committed last."""
        self._journal.rollback(mark.steps)
        del self._writes[mark.writes :]

    def flush(self) -> None:
        """Writes what has changed, into the open transaction. Raises SQLAlchemyError."""
        send(self._connection, self._writes)
        send(self._connection, list(self._moved_cursors()))

    def settle(self) -> None:
        """What has changed is committed."""
        self._journal.clear()
        self._writes.clear()
        self._moved.clear()

    def _moved_cursors(self) -> Iterator[Write]:
        for network_id, version in self._moved:
            value = self._cursors.get((network_id, version))
            if value is not None and self._networks.get(network_id) is not None:
                key = mapping.key_at(value, version)
                yield Write(Verb.UPDATE, "network", {"id": network_id, _CURSORS[version]: key})

    def _write(self, verb: Verb, table: TableName, values: mapping.Values, *key: str) -> None:
        self._writes.append(Write(verb, table, values, key or ("id",)))

    # --- networks

    def add_network(self, network: Network) -> None:
        self._networks.put(network)
        self._write(Verb.INSERT, "network", mapping.network_values(network))

    def update_network(self, network: Network) -> None:
        self._networks.put(network)
        self._write(Verb.UPDATE, "network", mapping.network_values(network))

    def delete_network(self, network: Network) -> None:
        """With the addresses that are held in it."""
        for plan in network.plans:
            first, last = plan.subnet.network_address, plan.subnet.broadcast_address
            held = [first + (value - int(first)) for value in self.taken(network, first, last)]
            for address in held:
                self._drop_allocation(network.id, address)
            self._set_cursor((network.id, plan.version), None)
        self._networks.drop(network.id)
        self._write(Verb.DELETE, "network", {"id": network.id})

    def move_cursor(self, network: Network, address: IPAddress) -> None:
        """This automatic address was given last."""
        self._set_cursor((network.id, address.version), int(address))

    def _set_cursor(self, place: tuple[str, Version], value: int | None) -> None:
        former = self._cursors.get(place)
        _set(self._cursors, place, value)
        self._moved.add(place)
        self._journal.note(lambda: _set(self._cursors, place, former))

    # --- endpoints

    def add_endpoint(self, endpoint: Endpoint) -> None:
        self._endpoints.put(endpoint)
        self._write(Verb.INSERT, "endpoint", mapping.endpoint_values(endpoint))

    def update_endpoint(self, endpoint: Endpoint) -> None:
        self._endpoints.put(endpoint)
        self._write(Verb.UPDATE, "endpoint", mapping.endpoint_values(endpoint))

    def delete_endpoint(self, endpoint: Endpoint) -> None:
        """With its addresses."""
        for held in self.allocations_of(endpoint):
            self.delete_allocation(held)
        self._endpoints.drop(endpoint.id)
        self._write(Verb.DELETE, "endpoint", {"id": endpoint.id})

    # --- port mappings

    def add_portmap(self, portmap: Portmap) -> None:
        self._portmaps.put(portmap)
        self._write(Verb.INSERT, "portmap", mapping.portmap_values(portmap))

    def update_portmap(self, portmap: Portmap) -> None:
        former = self._portmaps.get(portmap.id)
        if former is not None:
            self._lower_floors(former)
        self._portmaps.put(portmap)
        self._write(Verb.UPDATE, "portmap", mapping.portmap_values(portmap))

    def delete_portmap(self, portmap: Portmap) -> None:
        self._portmaps.drop(portmap.id)
        self._write(Verb.DELETE, "portmap", {"id": portmap.id})
        self._lower_floors(portmap)

    def raise_port_floor(self, protocol: Protocol, host_ip: IPAddress, port: int) -> None:
        """No automatic port of the address is free below this one."""
        self._set_floor((protocol, host_ip), port)

    def _lower_floors(self, freed: Portmap) -> None:
        """A port became free: whoever skipped it looks again."""
        if freed.last_port >= AUTOMATIC.start:
            for place, port in list(self._floors.items()):
                if place[0] is freed.protocol and port > freed.host_port:
                    self._set_floor(place, freed.host_port)

    def _set_floor(self, place: tuple[Protocol, IPAddress], port: int) -> None:
        former = self._floors.get(place)
        _set(self._floors, place, port)
        self._journal.note(lambda: _set(self._floors, place, former))

    # --- addresses

    def add_allocation(self, allocation: Allocation) -> None:
        self._allocations.put(allocation)
        self._write(Verb.INSERT, "allocation", mapping.allocation_values(allocation))

    def delete_allocation(self, allocation: Allocation) -> None:
        self._drop_allocation(allocation.network_id, allocation.address)

    def _drop_allocation(self, network_id: str, address: IPAddress) -> None:
        self._allocations.drop((network_id, address))
        values = {"network_id": network_id, "address_key": mapping.key_of(address)}
        self._write(Verb.DELETE, "allocation", values, *values)

    # --- answers kept by Idempotency-Key: read and written at once, for few requests have one

    def kept_answer(self, scope: str, key: str, *, since: datetime) -> KeptAnswer | None:
        """The answer kept under a key, unless it is older."""
        for write in reversed(self._writes):
            if write.table == "kept_answer" and write.verb is Verb.INSERT and _is_of(write.values, scope, key):
                return _kept(write.values | {"headers": json.loads(write.values["headers"])})
        row = self._connection.execute(_KEPT, {"scope": scope, "key": key}).first()
        if row is None or row.created_at < mapping.to_text(since):
            return None
        return _kept(row._asdict() | {"headers": json.loads(row.headers)})

    def keep_answer(self, scope: str, key: str, answer: KeptAnswer, *, now: datetime, since: datetime) -> None:
        """In the place of an older one under this key; a few others that are older go by the way."""
        self._connection.execute(_PURGE, {"since": mapping.to_text(since), "most": _PURGED})
        values = {"scope": scope, "key": key}
        self._write(Verb.DELETE, "kept_answer", values, *values)
        told = {
            "fingerprint": answer.fingerprint,
            "status": answer.status,
            "body": answer.body,
            "headers": json.dumps(dict(answer.headers)),
            "created_at": mapping.to_text(now),
        }
        self._write(Verb.INSERT, "kept_answer", values | told)


def _rows(connection: Connection, table: TableName) -> Iterable[mapping.Row]:
    """As the driver has them, oldest first: the library's own take as long again as all that is made of them."""
    query = f"SELECT * FROM {table} ORDER BY seq"  # noqa: S608 - one of five names
    cursor = connection.exec_driver_sql(query).cursor
    if cursor is None:
        raise TypeError("a query without rows")
    shape = _named(table, [column[0] for column in cursor.description])
    try:
        return map(shape._make, cursor.fetchall())
    except connection.dialect.loaded_dbapi.Error as failure:
        raise DBAPIError(query, None, failure) from failure


def _is_of(values: mapping.Values, scope: str, key: str) -> bool:
    return (values["scope"], values["key"]) == (scope, key)


def _kept(values: mapping.Values) -> KeptAnswer:
    return KeptAnswer(values["fingerprint"], values["status"], values["body"], dict(values["headers"]))


def _set(numbers: dict[P, int], place: P, value: int | None) -> None:
    if value is None:
        numbers.pop(place, None)
    else:
        numbers[place] = value
