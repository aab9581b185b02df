"""One HTTP connection: uvicorn's, with bounds on what a client may make us keep, and with who the client is."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.model.access import Peer

HEAD_MAX = 64 << 10
"""Bytes of a request before its body: the request line and the headers."""
HEAD_WITHIN = 30.0
"""Seconds that a client has for the head of its request, from the connection or its first byte on."""
WRITE_WITHIN = 30.0
"""Seconds that a client has to take in what is on its way to it, before more is kept for it."""
CONNECTIONS_MAX = 2048
"""On one listener; users of the unix socket other than root leave half of them to root."""
_ANSWER = (
    "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
    "content-length: {length}\r\n\r\n{body}"
)
_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
"""Attributes of a certificate's subject (RFC 4514)."""
_PEERCRED = struct.Struct("=iII")


class _HeadTooLarge(Exception):
    """Raised within the parser, which stops at it."""


class Connection(HttpToolsProtocol):
    """The ASGI scope's `state` has `peer`, None over TCP, and `certificate`, the subject of the client's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._peer: Peer | None = None
        self._certificate = ""
        self._head = self._unparsed = 0
        self._in_head = True
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = _peer_of(transport)
        self._certificate = _subject_of(transport)
        self._await_head()
        unprivileged = self._peer is not None and self._peer.uid != 0
        if len(self.connections) > (CONNECTIONS_MAX // 2 if unprivileged else CONNECTIONS_MAX):
            self._refuse(
                429, "Too many requests", "too_many_requests", "too many connections are open; close some, or try later"
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadline()
        self._forget_stall()

    def _await_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_WITHIN, self._give_up)

    def _forget_deadline(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(WRITE_WITHIN, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()

    def _forget_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _give_up(self) -> None:
        self._late = None
        if self._in_head:
            words = f"the request line and headers were not there within {HEAD_WITHIN:g} seconds"
            self._refuse(408, "Request took too long", "too_slow", words)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        # the parser keeps what it has of a header that does not end
        if self._in_head and not self.transport.is_closing():
            self._unparsed += len(data)
            if self._unparsed > HEAD_MAX:
                self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"].update(peer=self._peer, certificate=self._certificate)
        self._in_head, self._head, self._unparsed = True, 0, 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def _count(self, more: int) -> None:
        self._head += more
        if self._head > HEAD_MAX:
            raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_deadline()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._head > HEAD_MAX:
            self._refuse_head()
        else:
            self._refuse(400, "Invalid request", "invalid", "this is no HTTP/1.1 request")

    def _refuse_head(self) -> None:
        words = f"the request line and headers are larger than {HEAD_MAX} bytes, the most that is taken"
        self._refuse(431, "Request header fields too large", "invalid", words)

    def _refuse(self, status: int, title: str, code: str, detail: str) -> None:
        if self.transport.is_closing():
            return
        problem = {"type": f"urn:bridgehead:problem:{code}", "title": title, "status": status, "code": code}
        body = json.dumps(problem | {"detail": detail})
        self.transport.write(_ANSWER.format(status=status, title=title, length=len(body), body=body).encode())
        self.transport.close()


def _peer_of(transport: asyncio.Transport) -> Peer | None:
    pseudo = transport.get_extra_info("socket")
    if pseudo is None or pseudo.family != socket.AF_UNIX:
        return None
    # uvloop's own object cannot be asked
    with socket.socket(fileno=os.dup(pseudo.fileno())) as own:
        pid, uid, gid = _PEERCRED.unpack(own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    try:
        comm = Path(f"/proc/{pid}/comm").read_bytes().decode(errors="replace").rstrip("\n")
    except OSError:
        comm = ""  # it has ended, or is in another pid namespace
    return Peer(pid, uid, gid, comm)


def _subject_of(transport: asyncio.Transport) -> str:
    """Of the client's certificate, which was verified by now, as `CN=ops,O=Example`; empty where there is none."""
    found = transport.get_extra_info("peercert") or {}
    parts = [part for several in found.get("subject", ()) for part in several]
    return ",".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in parts)


def _escaped(value: str) -> str:
    """So that no value passes for another attribute."""
    return re.sub(r'([\\,+"<>;=])', r"\\\1", value)
