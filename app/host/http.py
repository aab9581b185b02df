"""One HTTP connection: uvicorn's, with bounds on what a client may make us keep, and with who the client is."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.model.access import Peer

HEAD_MAX = 64 << 10
"""Bytes of a request before its body: the request line and the headers."""
HEAD_WITHIN = 30.0
"""Seconds that a client has for the head of its request, from the connection or the last answer on."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
)
_WORDS = (
    b'{"type": "urn:bridgehead:problem:invalid", "title": "Invalid request", "status": 431, "code": "invalid", '
    b'"detail": "the request line and headers are larger than %d bytes, the most that is taken"}' % HEAD_MAX
)
_PEERCRED = struct.Struct("=iII")


class Connection(HttpToolsProtocol):
    """The ASGI scope's `state` has `peer`, None over TCP."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._peer: Peer | None = None
        self._head = 0
        self._in_head = True
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = _peer_of(transport)
        self._late = self.loop.call_later(HEAD_WITHIN, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadline()

    def _forget_deadline(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self._in_head and not self.transport.is_closing():
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD_MAX and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE % (len(_WORDS), _WORDS))
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["peer"] = self._peer
        self._in_head, self._head = True, 0
        if self._late is None:
            self._late = self.loop.call_later(HEAD_WITHIN, self._give_up)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_deadline()
        super().on_headers_complete()


def _peer_of(transport: asyncio.Transport) -> Peer | None:
    pseudo = transport.get_extra_info("socket")
    if pseudo is None or pseudo.family != socket.AF_UNIX:
        return None
    # uvloop's own object cannot be asked
    with socket.socket(fileno=os.dup(pseudo.fileno())) as own:
        return Peer(*_PEERCRED.unpack(own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)))
