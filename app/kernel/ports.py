"""Host ports, each reserved by a bound socket that never listens."""

from __future__ import annotations

import errno
import os
import resource
import socket
from pathlib import Path

from app.kernel.netlink import SockDiag
from app.model.errors import KernelRefused, PortTaken
from app.model.spec import IPAddress, Protocol
from app.model.state import HostPort, ItemKey

_KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}


def raise_descriptor_limit() -> None:
    """Each published port holds a descriptor: takes the hard limit of RLIMIT_NOFILE as the soft one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class PortReservations:
    """The bound sockets, in the namespace of the thread that binds them."""

    def __init__(self) -> None:
        self._sockets: dict[ItemKey, tuple[HostPort, socket.socket]] = {}

    def held(self) -> list[HostPort]:
        return [port for port, _socket in self._sockets.values()]

    def reserve(self, port: HostPort) -> None:
        """Raises PortTaken with the holder's name, or KernelRefused."""
        if port.key not in self._sockets:
            self._sockets[port.key] = (port, _bind(port.protocol, port.address, port.port))

    def release(self, port: HostPort) -> None:
        held = self._sockets.pop(port.key, None)
        if held is not None:
            held[1].close()

    def close(self) -> None:
        for _port, bound in self._sockets.values():
            bound.close()
        self._sockets.clear()


def probe(protocol: Protocol, address: IPAddress, port: int) -> None:
    """Raises PortTaken where a process holds the port, KernelRefused where the address is not the host's."""
    _bind(protocol, address, port).close()


def _bind(protocol: Protocol, address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    bound = socket.socket(family, _KINDS[protocol] | socket.SOCK_CLOEXEC)
    try:
        if protocol is Protocol.TCP:
            # connections of a former listener in TIME_WAIT do not hold the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((str(address), port))
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
    return bound


def _holder(protocol: Protocol, address: IPAddress, port: int) -> str:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    inodes: set[int] = set()
    with SockDiag() as diag:
        for version in (family, socket.AF_INET6):
            inodes |= {
                inode
                for local, inode in diag.inodes(version, _NUMBERS[protocol], port)
                if int(local) == 0 or int(address) == 0 or local == address
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
