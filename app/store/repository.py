"""Every query. One repository lives as long as one transaction; rows stay in here, values come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func
from sqlalchemy.orm import aliased
from sqlmodel import Session, and_, col, or_, select

from app.model.spec import Allocation, Endpoint, IPAddress, IPNetwork, Network, Portmap, Protocol, Version
from app.store import mapping
from app.store.tables import AllocationRow, EndpointRow, KeptAnswerRow, NetworkRow, PortFloorRow, PortmapRow

_CHUNK = 256
"""Allocations read at a time while looking for a gap."""
_PURGED = 16
"""Old answers that go with each new one: more than come, and few enough to cost nothing."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer to a request that carried an Idempotency-Key."""

    fingerprint: str
    status: int
    body: str
    headers: Mapping[str, str]


class Repository:
    """The objects of one transaction. An IntegrityError of the database is the caller's bug, not its input's."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _first(self, row: Any, *where: ColumnElement[bool] | bool) -> Any:
        return self._session.exec(select(row).where(*where).order_by(row.seq).limit(1)).first()

    def _all(self, row: Any, *where: ColumnElement[bool] | bool) -> Iterable[Any]:
        return self._session.exec(select(row).where(*where).order_by(row.seq)).all()

    def _by_ref(self, row: Any, ref: str) -> Any:
        return self._first(row, row.id == ref) or self._first(row, row.name == ref)

    # --- networks

    def networks(self) -> list[Network]:
        return [mapping.network_of(row) for row in self._all(NetworkRow)]

    def network(self, ref: str) -> Network | None:
        """By id or name; an id wins."""
        row = self._by_ref(NetworkRow, ref)
        return mapping.network_of(row) if row else None

    def network_by_id(self, network_id: str) -> Network | None:
        """By id alone: another's name may be the same text."""
        row = self._first(NetworkRow, NetworkRow.id == network_id)
        return mapping.network_of(row) if row else None

    def network_with_bridge(self, bridge: str) -> Network | None:
        row = self._first(NetworkRow, NetworkRow.bridge == bridge)
        return mapping.network_of(row) if row else None

    def network_overlapping(self, subnet: IPNetwork) -> Network | None:
        """The lowest network that shares an address with the subnet."""
        first, last = mapping.span_of(subnet)
        if subnet.version == 4:
            overlaps = (col(NetworkRow.subnet_first) <= last, col(NetworkRow.subnet_last) >= first)
        else:
            overlaps = (col(NetworkRow.subnet6_first) <= last, col(NetworkRow.subnet6_last) >= first)
        row = self._first(NetworkRow, *overlaps)
        return mapping.network_of(row) if row else None

    def routed_versions(self) -> frozenset[Version]:
        """The IP versions in which the host forwards for any network."""
        gateways: dict[Version, Any] = {4: NetworkRow.gateway, 6: NetworkRow.gateway6}
        not_internal = col(NetworkRow.internal).is_(False)
        return frozenset(
            version
            for version, gateway in gateways.items()
            if self._first(NetworkRow, col(gateway).is_not(None), not_internal) is not None
        )

    def cursor(self, network: Network, version: Version) -> int | None:
        """The automatic address of this version that was given last, as an integer."""
        row = self._first(NetworkRow, NetworkRow.id == network.id)
        key = row.cursor if version == 4 else row.cursor6
        return mapping.value_of(key, version) if key else None

    def move_cursor(self, network: Network, address: IPAddress) -> None:
        row = self._first(NetworkRow, NetworkRow.id == network.id)
        if address.version == 4:
            row.cursor = mapping.key_of(address)
        else:
            row.cursor6 = mapping.key_of(address)
        self._save(row)

    def add_network(self, network: Network) -> None:
        self._save(mapping.fill_network(_blank(NetworkRow), network))

    def update_network(self, network: Network) -> None:
        self._save(mapping.fill_network(self._by_ref(NetworkRow, network.id), network))

    def delete_network(self, network: Network) -> None:
        self._delete(AllocationRow, AllocationRow.network_id == network.id)
        self._delete(NetworkRow, NetworkRow.id == network.id)

    # --- endpoints

    def endpoints(self) -> list[Endpoint]:
        return [mapping.endpoint_of(row) for row in self._all(EndpointRow)]

    def endpoint(self, ref: str) -> Endpoint | None:
        """By id or name; an id wins."""
        row = self._by_ref(EndpointRow, ref)
        return mapping.endpoint_of(row) if row else None

    def endpoint_by_id(self, endpoint_id: str) -> Endpoint | None:
        """By id alone: another's name may be the same text."""
        row = self._first(EndpointRow, EndpointRow.id == endpoint_id)
        return mapping.endpoint_of(row) if row else None

    def endpoint_named(self, name: str) -> Endpoint | None:
        row = self._first(EndpointRow, EndpointRow.name == name)
        return mapping.endpoint_of(row) if row else None

    def endpoint_with_host_ifname(self, name: str) -> Endpoint | None:
        row = self._first(EndpointRow, EndpointRow.host_ifname == name)
        return mapping.endpoint_of(row) if row else None

    def endpoints_of(self, network: Network) -> list[Endpoint]:
        return [mapping.endpoint_of(row) for row in self._all(EndpointRow, EndpointRow.network_id == network.id)]

    def endpoint_count(self, network: Network) -> int:
        """How many endpoints a network has."""
        statement = select(func.count()).select_from(EndpointRow).where(EndpointRow.network_id == network.id)
        return self._session.exec(statement).one()

    def endpoints_in(self, namespace_key: str) -> list[Endpoint]:
        """The endpoints of one namespace, oldest first."""
        rows = self._all(EndpointRow, EndpointRow.namespace_key == namespace_key)
        return [mapping.endpoint_of(row) for row in rows]

    def networks_beside(self, network: Network) -> list[Network]:
        """The other networks that a namespace with an endpoint of this one is on."""
        other = aliased(EndpointRow)
        ids = (
            select(other.network_id)
            .join(EndpointRow, col(other.namespace_key) == col(EndpointRow.namespace_key))
            .where(EndpointRow.network_id == network.id, col(other.network_id) != network.id)
        )
        return [mapping.network_of(row) for row in self._all(NetworkRow, col(NetworkRow.id).in_(ids))]

    def add_endpoint(self, endpoint: Endpoint) -> None:
        self._save(mapping.fill_endpoint(_blank(EndpointRow), endpoint))

    def update_endpoint(self, endpoint: Endpoint) -> None:
        self._save(mapping.fill_endpoint(self._by_ref(EndpointRow, endpoint.id), endpoint))

    def delete_endpoint(self, endpoint: Endpoint) -> None:
        self._delete(AllocationRow, AllocationRow.endpoint_id == endpoint.id)
        self._delete(EndpointRow, EndpointRow.id == endpoint.id)

    # --- port mappings

    def portmaps(self) -> list[Portmap]:
        return [mapping.portmap_of(row) for row in self._all(PortmapRow)]

    def portmap(self, portmap_id: str) -> Portmap | None:
        row = self._first(PortmapRow, PortmapRow.id == portmap_id)
        return mapping.portmap_of(row) if row else None

    def portmaps_of(self, endpoint: Endpoint) -> list[Portmap]:
        rows = self._all(PortmapRow, PortmapRow.endpoint_id == endpoint.id)
        return [mapping.portmap_of(row) for row in rows]

    def portmap_in_the_way(self, portmap: Portmap) -> Portmap | None:
        """The lowest other mapping with a port in common; an unspecified address meets every one of its version."""
        statement = (
            select(PortmapRow)
            .where(*self._held_by(portmap.protocol, portmap.host_ip, portmap.host_port, portmap.last_port))
            .where(PortmapRow.id != portmap.id)
            .order_by(col(PortmapRow.host_port))
            .limit(1)
        )
        row = self._session.exec(statement).first()
        return mapping.portmap_of(row) if row else None

    def held_ports(self, protocol: Protocol, host_ip: IPAddress, first: int, last: int) -> Iterator[tuple[int, int]]:
        """First and last port of the mappings that meet these, ascending, read as far as the caller goes on asking."""
        statement = (
            select(PortmapRow.host_port, PortmapRow.count)
            .where(*self._held_by(protocol, host_ip, first, last))
            .order_by(col(PortmapRow.host_port))
        )
        for port, count in self._session.exec(statement).yield_per(_CHUNK):
            yield port, port + count - 1

    def _held_by(self, protocol: Protocol, host_ip: IPAddress, first: int, last: int) -> list[ColumnElement[bool]]:
        """What is true of the mappings with a port from first to last that meet the address.

        None begins further below `first` than the widest range reaches: so the index bounds the search.
        """
        widest = select(func.max(PortmapRow.count)).where(PortmapRow.protocol == str(protocol))
        reach = self._session.exec(widest).one() or 1
        port, held = col(PortmapRow.host_port), col(PortmapRow.host_ip)
        if int(host_ip) == 0:
            meets = held.like("%:%") if host_ip.version == 6 else held.not_like("%:%")
        else:
            meets = held.in_([str(host_ip), "0.0.0.0" if host_ip.version == 4 else "::"])  # noqa: S104 - a value
        return [
            col(PortmapRow.protocol) == str(protocol),
            port.between(first - reach + 1, last),
            port + col(PortmapRow.count) > first,
            meets,
        ]

    def port_floor(self, protocol: Protocol, host_ip: IPAddress) -> int | None:
        """Below it no automatic port of the address is free; None where that is not known."""
        row = self._session.get(PortFloorRow, (str(protocol), str(host_ip)))
        return row.port if row else None

    def raise_port_floor(self, protocol: Protocol, host_ip: IPAddress, port: int) -> None:
        row = self._session.get(PortFloorRow, (str(protocol), str(host_ip)))
        self._save(row or PortFloorRow(protocol=str(protocol), host_ip=str(host_ip), port=port), port=port)

    def _lower_port_floors(self, protocol: str, port: int) -> None:
        """A port became free: whoever skipped it looks again."""
        above = (PortFloorRow.protocol == protocol, PortFloorRow.port > port)
        for row in self._session.exec(select(PortFloorRow).where(*above)).all():
            self._save(row, port=port)

    def has_local_ports(self, network: Network, version: Version) -> bool:
        """Whether a port of 127.0.0.1, or of ::1, leads into the network."""
        everywhere, loopback = ("0.0.0.0", "127.%") if version == 4 else ("::", "::1")  # noqa: S104 - a value
        local = or_(PortmapRow.host_ip == everywhere, col(PortmapRow.host_ip).like(loopback))
        members = select(EndpointRow.id).where(EndpointRow.network_id == network.id)
        statement = select(PortmapRow.seq).where(local, col(PortmapRow.endpoint_id).in_(members)).limit(1)
        return self._session.exec(statement).first() is not None

    def has_portmaps(self, endpoint: Endpoint) -> bool:
        return self._first(PortmapRow, PortmapRow.endpoint_id == endpoint.id) is not None

    def add_portmap(self, portmap: Portmap) -> None:
        self._save(mapping.fill_portmap(_blank(PortmapRow), portmap))

    def update_portmap(self, portmap: Portmap) -> None:
        row = self._first(PortmapRow, PortmapRow.id == portmap.id)
        self._lower_port_floors(row.protocol, row.host_port)
        self._save(mapping.fill_portmap(row, portmap))

    def delete_portmap(self, portmap: Portmap) -> None:
        self._delete(PortmapRow, PortmapRow.id == portmap.id)
        self._lower_port_floors(str(portmap.protocol), portmap.host_port)

    # --- addresses

    def allocations(self) -> list[Allocation]:
        return [mapping.allocation_of(row) for row in self._all(AllocationRow)]

    def allocation(self, allocation_id: str) -> Allocation | None:
        row = self._first(AllocationRow, AllocationRow.id == allocation_id)
        return mapping.allocation_of(row) if row else None

    def holder(self, network: Network, address: IPAddress) -> Allocation | None:
        """Who holds an address of a network."""
        row = self._first(
            AllocationRow,
            AllocationRow.network_id == network.id,
            AllocationRow.address_key == mapping.key_of(address),
        )
        return mapping.allocation_of(row) if row else None

    def taken(self, network: Network, first: IPAddress, last: IPAddress) -> Iterator[int]:
        """The held addresses from first to last, ascending, read as far as the caller goes on asking."""
        low, high = mapping.key_of(first), mapping.key_of(last)
        key = col(AllocationRow.address_key)
        while True:
            statement = (
                select(AllocationRow.address_key)
                .where(AllocationRow.network_id == network.id, key >= low, key <= high)
                .order_by(key)
                .limit(_CHUNK)
            )
            keys = self._session.exec(statement).all()
            yield from (mapping.value_of(text, first.version) for text in keys)
            if len(keys) < _CHUNK:
                return
            low = f"{int(keys[-1], 16) + 1:032x}"

    def add_allocation(self, allocation: Allocation) -> None:
        self._save(mapping.allocation_row(allocation))

    def delete_allocation(self, allocation: Allocation) -> None:
        held = AllocationRow.address_key == mapping.key_of(allocation.address)
        self._delete(AllocationRow, and_(AllocationRow.network_id == allocation.network_id, held))

    # --- answers kept by Idempotency-Key

    def kept_answer(self, scope: str, key: str, *, since: datetime) -> KeptAnswer | None:
        """The answer kept under a key, unless it is older."""
        row = self._session.get(KeptAnswerRow, (scope, key))
        if row is None or row.created_at < mapping.to_text(since):
            return None
        return KeptAnswer(row.fingerprint, row.status, row.body, dict(row.headers))

    def keep_answer(self, scope: str, key: str, answer: KeptAnswer, *, now: datetime, since: datetime) -> None:
        """In the place of an older one under this key; a few others that are older go by the way."""
        created = col(KeptAnswerRow.created_at)
        old = select(KeptAnswerRow.scope, KeptAnswerRow.key).where(created < mapping.to_text(since))
        for found in self._session.exec(old.order_by(created).limit(_PURGED)).all():
            self._delete(KeptAnswerRow, and_(KeptAnswerRow.scope == found[0], KeptAnswerRow.key == found[1]))
        self._delete(KeptAnswerRow, and_(KeptAnswerRow.scope == scope, KeptAnswerRow.key == key))
        self._save(
            KeptAnswerRow(
                scope=scope,
                key=key,
                fingerprint=answer.fingerprint,
                status=answer.status,
                body=answer.body,
                headers=dict(answer.headers),
                created_at=mapping.to_text(now),
            )
        )

    # --- writing

    def _save(self, row: Any, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(row, name, value)
        self._session.add(row)
        self._session.flush()

    def _delete(self, row: Any, where: Any) -> None:
        self._session.exec(delete(row).where(where))


def _blank(row: Any) -> Any:
    """A row to be filled: its class wants every field at once."""
    return row()
