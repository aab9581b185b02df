"""A client that costs little: what is measured shall be the daemon."""

import gc
import json
import select
import socket
import time
from typing import NamedTuple

_TIMEOUT = 600.0


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes

    @property
    def next(self):
        """The address of a list's next part (RFC 8288), None at its end."""
        for line in self.head.split(b"\r\n"):
            if line.lower().startswith(b"link:") and b'rel="next"' in line:
                return line.partition(b"<")[2].partition(b">")[0].decode()
        return None


class Client:
    """One kept connection over the daemon's unix socket, HTTP/1.1 by hand."""

    def __init__(self, path):
        self._path = str(path)
        self._socket = None

    def _connected(self):
        """The daemon hangs up on who is silent for long; that is noticed before the clock starts."""
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            self.close()
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(_TIMEOUT)
            self._socket.connect(self._path)
        return self._socket

    def fileno(self):
        return self._connected().fileno()

    def send(self, request):
        self._socket.sendall(request)

    def receive(self):
        """The next answer, whole. Raises OSError."""
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._piece()
        head = bytes(data[:end])
        length = _length(head)
        while len(data) < end + 4 + length:
            data += self._piece()
        return Answer(int(head[9:12]), head, bytes(data[end + 4 :]))

    def _piece(self):
        piece = self._socket.recv(1 << 18)
        if not piece:
            raise ConnectionResetError("the daemon hung up")
        return piece

    def exchange(self, method, path, body=None):
        """The answer, and the seconds that it took. Raises RuntimeError for an error."""
        request = packed(method, path, body)
        self._connected()
        gc.disable()  # a pause of ours is none of the daemon's
        start = time.perf_counter()
        self.send(request)
        answer = self.receive()
        took = time.perf_counter() - start
        gc.enable()
        return checked(answer, f"{method} {path}"), took

    def ask(self, method, path, body=None):
        """The answer's body, and the seconds that it took. Raises RuntimeError for an error."""
        answer, took = self.exchange(method, path, body)
        return (json.loads(answer.body) if answer.body else None), took

    def close(self):
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _length(head):
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    return 0


def packed(method, path, body=None):
    """A request's bytes."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bridgehead\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def checked(answer, asked):
    """The answer. Raises RuntimeError where it is an error."""
    if answer.status >= 400:
        raise RuntimeError(f"{asked}: {answer.status} {answer.body.decode()}")
    return answer


def together(path, requests, clients):
    """Seconds that all requests take, sent by several clients, each its next one once it has an answer.

    One thread drives them, so that the clients do not take turns with one another. Raises RuntimeError.
    """
    waiting = list(reversed(requests))
    poller = select.poll()
    connections = {}
    for _number in range(clients):
        client = Client(path)
        connections[client.fileno()] = client
        poller.register(client.fileno(), select.POLLIN)
    gc.disable()
    start = time.perf_counter()
    for client in connections.values():
        client.send(waiting.pop())
    left = len(requests)
    try:
        while left:
            for descriptor, _event in poller.poll(_TIMEOUT * 1000):
                checked(connections[descriptor].receive(), "one of many")
                left -= 1
                if waiting:
                    connections[descriptor].send(waiting.pop())
        return time.perf_counter() - start
    finally:
        gc.enable()
        for client in connections.values():
            client.close()
