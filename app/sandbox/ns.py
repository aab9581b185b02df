"""A handle on one network namespace of a sandbox: traffic, settings and commands inside it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from app.kernel import libc, sysctl
from app.kernel.parse import Link, Route
from app.model.spec import IPAddress
from app.model.state import IPInterface
from app.sandbox import clients
from app.sandbox.clients import PATIENCE, UdpFlow
from app.sandbox.inside import CLONE_FS, enter, in_thread
from app.sandbox.rtnl import PlainRtnl
from app.sandbox.sctp import SctpFlow, SctpServer
from app.sandbox.servers import Server, TcpServer, UdpServer

T = TypeVar("T")

ANY, ANY6 = "0.0.0.0", "::"  # noqa: S104 - of a namespace that nobody else is in


class Ns:
    """Holds nothing open: a namespace that the daemon removes is not kept alive by its handle.

    opened: a context that gives a descriptor of the namespace; mounts: one of the mount namespace that
    commands in here see.
    """

    def __init__(self, name: str, opened: Callable[[], int], mounts: int) -> None:
        self.name = name
        self._open = opened
        self._mounts = mounts
        self.failure: OSError | None = None
        """Why the last tcp(), http() or udp() gave None: ConnectionRefusedError, TimeoutError, ..."""

    def __repr__(self) -> str:
        return f"Ns({self.name!r})"

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the namespace. Raises FileNotFoundError where it is gone."""
        descriptor = self._open()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @property
    def inode(self) -> int:
        """What tells this namespace from another that had its name."""
        with self.opened() as descriptor:
            return os.fstat(descriptor).st_ino

    @property
    def exists(self) -> bool:
        with suppress(OSError), self.opened():
            return True
        return False

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, done inside, in a thread of its own."""
        with self.opened() as descriptor:

            def inside() -> T:
                enter(descriptor, self._mounts)
                return work()

            return in_thread(inside)

    def open_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace; it may be used from anywhere, and keeps the namespace alive."""
        with self.opened() as descriptor:

            def inside() -> socket.socket:
                # no mounts are needed, and this is the way of every packet
                libc.unshare(CLONE_FS)
                libc.setns(descriptor, libc.CLONE_NEWNET)
                return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)

            return in_thread(inside)

    # --- traffic ---

    def ping(self, dst: str, count: int = 1, timeout: float = PATIENCE, source: str | None = None) -> bool:
        """Whether one of up to `count` echo requests is answered, each within `timeout` seconds."""
        return clients.ping(self.open_socket, dst, count, timeout, source)

    def connect(
        self, dst: str, port: int, timeout: float = PATIENCE, source: str | None = None, sport: int = 0
    ) -> socket.socket:
        """A TCP connection to keep; the server's banner waits in it. Raises OSError."""
        bind = (source or "", sport) if source or sport else None
        return clients.connect(self.open_socket, dst, port, timeout, bind)

    def tcp(self, dst: str, port: int, timeout: float = PATIENCE, source: str | None = None) -> bytes | None:
        """The banner of the server that answers, None where none does (`failure` says why)."""
        return self._asked(dst, port, timeout, source, clients.read_line)

    def http(
        self, dst: str, port: int, path: str = "/", timeout: float = PATIENCE, source: str | None = None
    ) -> bytes | None:
        """The page of the server that answers, None where none does (`failure` says why)."""
        return self._asked(dst, port, timeout, source, lambda sock: clients.get(sock, path))

    def _asked(
        self, dst: str, port: int, timeout: float, source: str | None, talk: Callable[[socket.socket], bytes]
    ) -> bytes | None:
        self.failure = None
        try:
            with self.connect(dst, port, timeout, source) as connection:
                return talk(connection)
        except OSError as failure:
            self.failure = failure
            return None

    def udp_flow(self, dst: str, port: int, sport: int | None = None) -> UdpFlow:
        """A UDP socket to keep, for flows with a fixed source port. Raises OSError."""
        return UdpFlow(self.open_socket, dst, port, sport)

    def udp(
        self,
        dst: str,
        port: int,
        payload: bytes = b"hello\n",
        sport: int | None = None,
        timeout: float = PATIENCE,
    ) -> bytes | None:
        """The answer to one datagram: the server's banner, then the payload. None where there is none."""
        return self._told(lambda: self.udp_flow(dst, port, sport), payload, timeout)

    def sctp_flow(self, dst: str, port: int, sport: int | None = None) -> SctpFlow:
        """An SCTP client to keep, for flows with a fixed source port. Raises OSError."""
        return SctpFlow(self.open_socket, dst, port, sport)

    def sctp(
        self,
        dst: str,
        port: int,
        payload: bytes = b"hello\n",
        sport: int | None = None,
        timeout: float = PATIENCE,
    ) -> bytes | None:
        """The answer to one INIT: the server's banner, then the payload. None where there is none."""
        return self._told(lambda: self.sctp_flow(dst, port, sport), payload, timeout)

    def _told(self, opened: Callable[[], UdpFlow | SctpFlow], payload: bytes, timeout: float) -> bytes | None:
        self.failure = None
        try:
            with opened() as flow:
                answer = flow.ask(payload, timeout)
                self.failure = flow.failure
                return answer
        except OSError as failure:
            self.failure = failure
            return None

    def ask(self, protocol: str, dst: str, port: int, timeout: float = PATIENCE) -> bytes | None:
        """The banner of the server that answers by `tcp`, `udp` or `sctp`, None where none does."""
        if protocol == "tcp":
            return self.tcp(dst, port, timeout)
        return (self.udp if protocol == "udp" else self.sctp)(dst, port, b"", timeout=timeout)

    def flow(self, protocol: str, dst: str, port: int, sport: int | None = None) -> UdpFlow | SctpFlow:
        """A client of `udp` or `sctp` that keeps its source port. Raises OSError."""
        return (self.udp_flow if protocol == "udp" else self.sctp_flow)(dst, port, sport)

    @property
    def banner(self) -> bytes:
        """What this namespace's servers answer with unless told otherwise."""
        return f"{self.name}\n".encode()

    def tcp_server(
        self, port: int, address: str = ANY, *, http: bool = False, banner: bytes | None = None
    ) -> TcpServer:
        """A context manager; port 0 takes a free one, `.port`. It listens from this call on."""
        listener = self._bound(socket.SOCK_STREAM, address, port)
        listener.listen(256)
        return TcpServer(listener, self.banner if banner is None else banner, http=http)

    def udp_server(self, port: int, address: str = ANY, *, banner: bytes | None = None) -> UdpServer:
        """A context manager; port 0 takes a free one, `.port`."""
        return UdpServer(self._bound(socket.SOCK_DGRAM, address, port), self.banner if banner is None else banner)

    def sctp_server(self, port: int, address: str = ANY, *, banner: bytes | None = None) -> SctpServer:
        """A context manager; it answers INITs for that port."""
        raw = self._bound(socket.SOCK_RAW, address, 0, socket.IPPROTO_SCTP)
        return SctpServer(raw, port, self.banner if banner is None else banner)

    def server(self, protocol: str, port: int, address: str = ANY, *, banner: bytes | None = None) -> Server:
        """A context manager, of `tcp`, `udp` or `sctp`."""
        if protocol == "tcp":
            return self.tcp_server(port, address, banner=banner)
        return (self.udp_server if protocol == "udp" else self.sctp_server)(port, address, banner=banner)

    def _bound(self, kind: int, address: str, port: int, protocol: int = 0) -> socket.socket:
        bound = self.open_socket(clients.family_of(address), kind, protocol)
        try:
            if bound.family == socket.AF_INET6 and kind != socket.SOCK_RAW:
                # so that an IPv4 server may have the same port
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_STREAM:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((address, port))
        except BaseException:
            bound.close()
            raise
        return bound

    # --- links, addresses, routes, settings ---

    @contextmanager
    def rtnl(self) -> Iterator[PlainRtnl]:
        """A netlink socket of this namespace."""
        with self.opened() as descriptor:

            def inside() -> PlainRtnl:
                libc.unshare(CLONE_FS)
                libc.setns(descriptor, libc.CLONE_NEWNET)
                return PlainRtnl(self.name)

            connection = in_thread(inside)
        with connection:
            yield connection

    def links(self) -> dict[str, Link]:
        with self.rtnl() as rtnl:
            return {link.name: link for link in rtnl.links()}

    def addresses(self) -> dict[str, set[IPInterface]]:
        """The addresses by interface name; an interface without any is absent."""
        found: dict[str, set[IPInterface]] = {}
        with self.rtnl() as rtnl:
            names = {link.index: link.name for link in rtnl.links()}
            for index, address in rtnl.addresses():
                found.setdefault(names.get(index, "?"), set()).add(address)
        return found

    def routes(self) -> list[Route]:
        with self.rtnl() as rtnl:
            return list(rtnl.routes())

    def default_route(self, version: int = 4) -> tuple[str, str] | None:
        """Gateway and interface name of the default route."""
        with self.rtnl() as rtnl:
            names = {link.index: link.name for link in rtnl.links()}
            for route in rtnl.routes():
                if route.destination is None and route.version == version:
                    return str(route.via), names.get(route.oif or 0, "?")
        return None

    def sysctl(self, path: str) -> str | None:
        """A setting such as `net/ipv4/ip_forward`, None where there is none."""
        return self.run(lambda: sysctl.read(path))

    def write_sysctl(self, path: str, value: str | int) -> None:
        self.run(lambda: sysctl.write(path, str(value)))

    def add_veth(self, name: str, peer: str, peer_ns: Ns, *, master: str | None = None, mtu: int = 1500) -> None:
        """A veth pair without the daemon's mark, both ends up."""
        with peer_ns.opened() as descriptor, self.rtnl() as rtnl, peer_ns.rtnl() as peer_rtnl:
            bridge = rtnl.index_of(master) if master else 0
            rtnl.add_plain_veth(name, peer, descriptor, master=bridge, mtu=mtu)
            peer_rtnl.set_up(peer_rtnl.index_of(peer))

    def add_bridge(self, name: str) -> None:
        """A bridge without the daemon's mark, up."""
        with self.rtnl() as rtnl:
            rtnl.add_plain_bridge(name)

    def delete_link(self, name: str) -> None:
        with self.rtnl() as rtnl:
            rtnl.delete_link(rtnl.index_of(name))

    def set_up(self, name: str, *, up: bool = True) -> None:
        with self.rtnl() as rtnl:
            rtnl.set_up(rtnl.index_of(name), up=up)

    def add_address(self, ifname: str, address: IPInterface) -> None:
        with self.rtnl() as rtnl:
            rtnl.add_address(rtnl.index_of(ifname), address)

    def add_default_route(self, via: IPAddress, ifname: str) -> None:
        with self.rtnl() as rtnl:
            rtnl.add_plain_route(None, rtnl.index_of(ifname), via)

    # --- commands ---

    def exec(
        self, args: Sequence[str], *, timeout: float = 20.0, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command inside, with its output. With `check`, raises CalledProcessError, output in its notes."""
        # Setting mounts resets the working directory; a child has its parent thread's namespaces
        cwd = os.getcwd()

        def inside() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                list(args), cwd=cwd, input=stdin, capture_output=True, text=True, timeout=timeout, check=check
            )

        try:
            return self.run(inside)
        except subprocess.CalledProcessError as failure:
            failure.add_note(f"{failure.stdout}{failure.stderr}".strip())
            raise

    def spawn(self, args: Sequence[str]) -> subprocess.Popen[bytes]:
        """A command that runs on inside; its input is a pipe, its output is dropped. The caller ends it."""
        cwd, nowhere = os.getcwd(), subprocess.DEVNULL
        return self.run(
            lambda: subprocess.Popen(list(args), cwd=cwd, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere)
        )
