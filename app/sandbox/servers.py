"""Servers for tests: a socket made inside a namespace, answered by a thread that stays outside."""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections.abc import Callable
from threading import Thread
from typing import Self

Peer = tuple[str, int]
"""A client's address and port, as the server sees them."""

_IP_PKTINFO = 8
_PKTINFO, _PKTINFO6 = struct.Struct("=i4s4s"), struct.Struct("=16sI")


def ask_for_destination(bound: socket.socket) -> None:
    """Has a datagram socket tell which address each datagram was sent to."""
    if bound.family == socket.AF_INET:
        bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def reply_from(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """The control message that makes the answer leave with the address the question came to."""
    if level == socket.IPPROTO_IP:
        _index, _local, destination = _PKTINFO.unpack(data)
        return level, kind, _PKTINFO.pack(0, destination, bytes(4))
    destination, index = _PKTINFO6.unpack(data)
    link_local = destination[0] == 0xFE and destination[1] >> 6 == 2
    return level, kind, _PKTINFO6.pack(destination, index if link_local else 0)


class Server:
    """One thread and the sockets it answers; both end with the block."""

    def __init__(self, banner: bytes) -> None:
        self.banner = banner
        self.peers: list[Peer] = []
        """Every client so far, in the order they came: of TCP its connections, of UDP its datagrams."""
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = Thread(target=self._serve, name="sandbox-server", daemon=True)

    def _watch(self, source: socket.socket, on_ready: Callable[[socket.socket], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, on_ready)

    def _serve(self) -> None:
        while True:
            for key, _events in self._selector.select():
                if key.fileobj == self._wake:
                    return
                if isinstance(key.fileobj, socket.socket):
                    key.data(key.fileobj)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        if self._thread.ident is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._wake)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def last_peer(self) -> str | None:
        """The latest client's address."""
        return self.peers[-1][0] if self.peers else None


class TcpServer(Server):
    """Greets each connection with the banner, a line, then echoes; with `http`, answers a request with it."""

    def __init__(self, listener: socket.socket, banner: bytes, *, http: bool) -> None:
        super().__init__(banner)
        self._http = http
        self.port: int = listener.getsockname()[1]
        listener.setblocking(False)
        self._watch(listener, self._accept)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, peer = listener.accept()
        except OSError:
            return  # it went away between the poll and here
        self.peers.append((peer[0], peer[1]))
        connection.setblocking(False)
        self._watch(connection, self._answer)
        if not self._http:
            self._send(connection, self.banner)

    def _answer(self, connection: socket.socket) -> None:
        try:
            received = connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            self._drop(connection)
        elif self._http:
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(self.banner)}\r\n\r\n"
            if self._send(connection, head.encode() + self.banner):
                self._drop(connection)
        else:
            self._send(connection, received)

    def _send(self, connection: socket.socket, data: bytes) -> bool:
        try:
            connection.sendall(data)
        except OSError:
            self._drop(connection)
            return False
        return True


class UdpServer(Server):
    """Answers each datagram with the banner and the datagram, from the address that it was sent to."""

    def __init__(self, bound: socket.socket, banner: bytes) -> None:
        super().__init__(banner)
        self.port: int = bound.getsockname()[1]
        self.received: list[bytes] = []
        ask_for_destination(bound)
        bound.setblocking(False)
        self._watch(bound, self._answer)

    def _answer(self, bound: socket.socket) -> None:
        try:
            data, control, _flags, peer = bound.recvmsg(65536, 256)
            self.peers.append((peer[0], peer[1]))
            self.received.append(data)
            bound.sendmsg([self.banner, data], [reply_from(*item) for item in control], 0, peer)
        except OSError:
            return  # an ICMP error of an earlier answer, or no way back
