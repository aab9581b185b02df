"""Host ports, each reserved by a bound socket that never listens."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from app.kernel.sockdiag import SockDiag
from app.model.errors import BridgeheadError, KernelRefused, PortTaken, TooManyPorts
from app.model.spec import IPAddress, Protocol
from app.model.state import HostPort, ItemKey

_KINDS = {
    Protocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    Protocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    Protocol.SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}

_SELECTABLE = 1024
"""FD_SETSIZE: libnftables ends the process where its socket has a higher number."""

_Port = tuple[str, int]
"""Protocol and address as one text, which hashes at once; and the port."""
_SPARE = 512
"""Descriptors that stay for all that is no port: the database, namespaces in passing, and the clients' connections,
without which nobody could take a mapping back."""


def raise_descriptor_limit() -> None:
    """Each published port holds a descriptor: takes the hard limit of RLIMIT_NOFILE as the soft one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _room() -> int:
    """How many ports can be held at most."""
    return max(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE)


class PortReservations:
    """The bound sockets, in the namespace of the thread that binds them."""

    def __init__(self) -> None:
        self._held: dict[ItemKey, HostPort] = {}
        self._sockets: dict[_Port, tuple[ItemKey, int | None]] = {}
        # descriptors: as objects, ten thousand sockets take some MB

    def held(self) -> list[HostPort]:
        return list(self._held.values())

    def held_of(self, keys: Iterable[ItemKey]) -> list[HostPort]:
        """Those of these keys that are held."""
        return [self._held[key] for key in keys if key in self._held]

    def change(self, before: HostPort | None, after: HostPort | None) -> None:
        """Reserves what is new of `after` and releases the rest of `before`; a port in both stays bound.

        Raises PortTaken with the holder's name, TooManyPorts, or KernelRefused, and has changed nothing then.
        """
        if before is None and after is not None and after.count == 1:
            self._take(after)  # as below: most are one, and a start takes ten thousand of them
            return
        wanted, former = _ports(after), _ports(before)
        self._require_room([port for port in wanted if port not in self._sockets])
        # 0.0.0.0 and an address of the host exclude one another, held by ourselves or not
        numbers = {port for _place, port in wanted - former}
        in_the_way = {one for one in former - wanted if one[1] in numbers}
        self._release(in_the_way, before)
        bound: dict[_Port, int | None] = {}
        try:
            for port in [one for one in wanted if one not in self._sockets]:  # a difference would walk every one held
                bound[port] = _bound(after, port)
        except BridgeheadError:
            for one in bound.values():
                _close(one)
            self._hold(before, {port: _bound(before, port) for port in in_the_way})
            raise
        self._release(former - wanted, before)
        if before is not None:
            self._held.pop(before.key, None)
        if after is not None:
            self._held[after.key] = after
            self._hold(after, bound)
            # one that another mapping held until now changes hands without being free in between
            self._hold(after, {port: self._sockets[port][1] for port in wanted})

    def _take(self, item: HostPort) -> None:
        key, port = item.key, (_place(item.protocol, item.address), item.port)
        held = self._sockets.get(port)
        if held is None:
            self._require_room([port])
        self._sockets[port] = (key, held[1] if held is not None else _bound(item, port))
        self._held[key] = item

    def _require_room(self, new: Collection[_Port]) -> None:
        """Former ports and new ones are held together for a moment. Raises TooManyPorts."""
        most = _room()
        room = max(0, most - len(self._sockets))
        if len(new) > room:
            raise TooManyPorts(
                f"{len(new)} more ports want {len(new)} descriptors, one each, and {len(self._sockets)} are held: "
                f"{room} more can be had within the daemon's limit of open files, {most + _SPARE}. Publish fewer "
                "ports, or start the daemon with a higher limit (systemd: LimitNOFILE)"
            )

    def _hold(self, holder: HostPort | None, bound: Mapping[_Port, int | None]) -> None:
        if holder is not None:
            self._sockets |= {port: (holder.key, one) for port, one in bound.items()}

    def _release(self, released: Collection[_Port], holder: HostPort | None) -> None:
        for port in released:
            held = self._sockets.get(port)
            if holder is not None and held is not None and held[0] == holder.key:
                del self._sockets[port]
                _close(held[1])

    def close(self) -> None:
        for _holder, bound in self._sockets.values():
            _close(bound)
        self._sockets.clear()
        self._held.clear()


def _close(bound: int | None) -> None:
    if bound is not None:
        os.close(bound)


@lru_cache(maxsize=256)
def _place(protocol: Protocol, address: IPAddress) -> str:
    """Of a port but for its number; thousands share theirs, and writing an address takes as long as binding to it."""
    return f"{protocol.value}/{address}"


_text_of = lru_cache(maxsize=256)(str)
"""An address's."""


def _ports(item: HostPort | None) -> set[_Port]:
    if item is None:
        return set()
    place = _place(item.protocol, item.address)
    return {(place, port) for port in range(item.port, item.port + item.count)}


def _bound(item: HostPort | None, port: _Port) -> int | None:
    return None if item is None else _bind(item.protocol, item.address, port[1])


def probe(protocol: Protocol, address: IPAddress, port: int) -> None:
    """Raises PortTaken where a process holds the port, KernelRefused where the address is not the host's."""
    _close(_bind(protocol, address, port))


def _open(protocol: Protocol, address: IPAddress) -> socket.socket | None:
    """None where the kernel has no sockets of the protocol: then no process of the host can hold its ports either."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    kind, number = _KINDS[protocol]
    try:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    except OSError as refusal:
        if protocol is Protocol.SCTP and refusal.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        if refusal.errno in (errno.EMFILE, errno.ENFILE):
            raise TooManyPorts(f"no descriptor is left for port {protocol}/{address}: {refusal.strerror}") from None
        raise KernelRefused(refusal.errno or errno.EIO, f"socket {protocol}, IPv{address.version}") from refusal


def _bind(protocol: Protocol, address: IPAddress, port: int) -> int | None:
    """A descriptor that the caller closes, None where the kernel has no such sockets."""
    bound = _open(protocol, address)
    if bound is None:
        return None
    try:
        if protocol is not Protocol.UDP:
            # connections of a former listener in TIME_WAIT do not hold the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version == 6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((_text_of(address), port))
        # from here on nobody shares it
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as refusal:
        bound.close()
        if refusal.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"host port {protocol}/{address}:{port} is held by {_holder(protocol, address, port)}; "
                "free it, or publish another host_port"
            ) from None
        raise KernelRefused(refusal.errno or errno.EIO, f"bind {protocol} {address}:{port}") from refusal
    return _out_of_the_way(bound)


def _out_of_the_way(bound: socket.socket) -> int:
    """The socket under a number of 1024 or more: those below are for libraries that use select(2)."""
    try:
        moved = fcntl.fcntl(bound.fileno(), fcntl.F_DUPFD_CLOEXEC, _SELECTABLE)
    except OSError as refusal:
        if refusal.errno in (errno.EINVAL, errno.EMFILE):  # the process may not have that many
            return bound.detach()
        bound.close()
        raise KernelRefused(refusal.errno or errno.EIO, "dup") from refusal
    bound.close()
    return moved


def _holder(protocol: Protocol, address: IPAddress, port: int) -> str:
    # an IPv6 socket without IPV6_V6ONLY holds the port of IPv4 too, never the other way round
    families = (socket.AF_INET, socket.AF_INET6) if address.version == 4 else (socket.AF_INET6,)
    with SockDiag() as diag:
        inodes = {
            held.inode
            for family in families
            for held in diag.bound(family, _KINDS[protocol][1], port)
            if held.collides(address)
        }
    return _process_of(inodes) or "a process that cannot be seen from here"


def _process_of(inodes: set[int]) -> str | None:
    """Name and pid of the process with one of these sockets: a walk over /proc, for the error's sake only."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(descriptor) in wanted for descriptor in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                return f"process '{name}' (pid {process.name})"
        except OSError:
            continue  # it ended while we looked
    return None
