"""Clients for tests. They work on sockets that were made inside a namespace, and need not be there themselves."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Self

Opener = Callable[[int, int, int], socket.socket]
"""Makes a socket (family, type, protocol) in a namespace."""

PATIENCE = 3.0
"""Seconds that an answer is waited for that must come: it takes well under 1 ms where nothing else runs."""
_ECHO = {4: (8, 0, 3), 6: (128, 129, 1)}
"""ICMP types by IP version: echo request, echo reply, destination unreachable."""
_RAW_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}


def family_of(address: str) -> int:
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6


def ping(opener: Opener, dst: str, count: int, timeout: float, source: str | None) -> bool:
    """Whether one of up to `count` echo requests is answered, each within `timeout`."""
    version = ip_address(dst).version
    with opener(family_of(dst), socket.SOCK_RAW, _RAW_ICMP[version]) as raw:
        if source is not None:
            raw.bind((source, 0))
        identity = int.from_bytes(os.urandom(2), "big")
        return any(_echo(raw, version, dst, identity, number, timeout) for number in range(1, count + 1))


def _echo(raw: socket.socket, version: int, dst: str, identity: int, number: int, timeout: float) -> bool:
    asked, answered, unreachable = _ECHO[version]
    tail = struct.pack("!HH", identity, number)
    request = struct.pack("!BBH", asked, 0, 0) + tail + b"bridgehead"
    try:
        raw.sendto(request[:2] + _checksum(request) + request[4:], (dst, 0))
    except OSError:
        return False  # no route, or a rule that says no: both are no answer
    deadline = time.monotonic() + timeout
    while readable(raw, deadline):
        try:
            packet, peer = raw.recvfrom(2048)
        except OSError:
            return False
        message = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
        if message[0] == answered and message[4:8] == tail and peer[0] == dst:
            return True
        if message[0] == unreachable and tail + b"bridgehead" in message:
            return False
    return False


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def readable(sock: socket.socket, deadline: float) -> bool:
    """Whether there is something to receive before that moment of time.monotonic()."""
    poller = select.poll()  # unlike select(), it takes descriptors above 1023
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def connect(opener: Opener, dst: str, port: int, timeout: float, source: tuple[str, int] | None) -> socket.socket:
    """A TCP connection. Raises OSError."""
    sock = opener(family_of(dst), socket.SOCK_STREAM, 0)
    try:
        sock.settimeout(timeout)
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        sock.connect((dst, port))
    except BaseException:
        sock.close()
        raise
    return sock


def read_line(sock: socket.socket) -> bytes:
    """Up to and with the first line end, or what came before the peer closed. Raises OSError."""
    data = b""
    while not data.endswith(b"\n"):
        piece = sock.recv(1)
        if not piece:
            break
        data += piece
    return data


def get(sock: socket.socket, path: str) -> bytes:
    """The body of an HTTP/1.0 answer. Raises OSError, also for an answer that is none."""
    sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = b""
    while piece := sock.recv(65536):
        answer += piece
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"HTTP/1."):
        raise OSError(f"no HTTP answer: {answer[:80]!r}")
    return body


class UdpFlow:
    """A UDP socket that is kept: one source port, so one conntrack entry."""

    def __init__(self, opener: Opener, dst: str, port: int, sport: int | None) -> None:
        self._socket = opener(family_of(dst), socket.SOCK_DGRAM, 0)
        try:
            if sport is not None:
                self._socket.bind(("", sport))
            # connected, so that an ICMP error ends the wait
            self._socket.connect((dst, port))
        except BaseException:
            self._socket.close()
            raise
        self.sport: int = self._socket.getsockname()[1]
        self.failure: OSError | None = None
        """Why the last `ask` gave None; TimeoutError where nothing came back."""

    def ask(self, payload: bytes = b"hello\n", timeout: float = PATIENCE) -> bytes | None:
        """One datagram and its answer, None where there is none."""
        self.failure = None
        deadline = time.monotonic() + timeout
        try:
            self._forget_old_answers()
            self._socket.send(payload)
            if not readable(self._socket, deadline):
                raise TimeoutError("no answer")
            return self._socket.recv(65536)
        except OSError as failure:
            self.failure = failure
            return None

    def _forget_old_answers(self) -> None:
        while readable(self._socket, 0):
            self._socket.recv(65536, socket.MSG_DONTWAIT)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
