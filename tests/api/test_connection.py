"""Connections, by a real server on a unix socket: heads that are large, slow, or no HTTP; who the peer is."""

import asyncio
import os
import socket
import threading
from contextlib import contextmanager

import pytest
from starlette.responses import JSONResponse, Response

from app.host import http, serve
from app.host.http import HEAD_MAX
from app.sandbox import eventually

LARGE = 64 << 20


async def show_peer(scope, receive, send):
    if scope["path"] == "/large":
        await Response(b"x" * LARGE)(scope, receive, send)
        return
    peer = scope["state"]["peer"]
    await JSONResponse({"pid": peer.pid, "uid": peer.uid, "comm": peer.comm})(scope, receive, send)


class Gate:
    async def drain(self, seconds):
        pass


@pytest.fixture
def path(tmp_path):
    """The server's socket."""
    return str(tmp_path / "s")


@pytest.fixture(autouse=True)
def server(path):
    """Answers there."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        bound.listen(16)
        with serving(serve.Served(path, bound, show_peer, Gate())) as running:
            yield running


@contextmanager
def serving(served):
    server = serve._server(served)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[served.bound])))
    thread.start()
    yield server
    server.should_exit = True
    thread.join()


@contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        yield client


def answer(client):
    """All that comes until the server closes."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass  # it closed while something that it had not read was on its way
    return b"".join(parts)


def get(*headers):
    return b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + b"".join(one + b"\r\n" for one in headers) + b"\r\n"


def test_the_peer(path):
    with connected(path) as client:
        client.sendall(get())
        found = answer(client)
    assert found.startswith(b"HTTP/1.1 200")
    assert b'"pid":%d,"uid":%d' % (os.getpid(), os.getuid()) in found


def test_a_head_as_large_as_it_may_be(path):
    with connected(path) as client:
        client.sendall(get(*[b"x-%d: " % number + b"a" * 1000 for number in range(60)]))
        assert answer(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        get(*[b"x-%d: " % number + b"a" * 1000 for number in range(70)]),
        get(b"x: " + b"a" * (HEAD_MAX + 1)),
        get(*[b"%d:" % number for number in range(20_000)]),
        b"GET /" + b"a" * (HEAD_MAX + 1) + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["many", "one", "small ones", "line"],
)
@pytest.mark.parametrize("step", [1 << 20, 5000])
def test_a_head_that_is_too_large(path, head, step):
    with connected(path) as client:
        try:
            for at in range(0, len(head), step):
                client.sendall(head[at : at + step])
        except (BrokenPipeError, ConnectionResetError):
            pass
        found = answer(client)
    assert found.startswith(b"HTTP/1.1 431"), found[:200]
    assert b"application/problem+json" in found
    assert b'"code": "invalid"' in found


def test_a_head_that_never_ends_is_not_kept(path):
    with connected(path) as client:
        client.sendall(b"GET / HTTP/1.1\r\nx: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(b"a" * (64 << 20))


@pytest.mark.parametrize("text", [b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_what_is_no_http(path, text):
    with connected(path) as client:
        client.sendall(text)
        found = answer(client)
    assert found.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in found


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_come(path, monkeypatch, sent):
    monkeypatch.setattr(http, "HEAD_WITHIN", 0.1)
    with connected(path) as client:
        client.sendall(sent)
        found = answer(client)
    assert found.startswith(b"HTTP/1.1 408")
    assert b'"code": "too_slow"' in found


def test_a_slow_second_head(path, monkeypatch):
    monkeypatch.setattr(http, "HEAD_WITHIN", 0.3)
    with connected(path) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert b"HTTP/1.1 408" in answer(client)


def test_connections_are_bounded(path, monkeypatch):
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 2)
    with connected(path) as first, connected(path) as second:
        for one in (first, second):
            one.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert one.recv(65536).startswith(b"HTTP/1.1 200")
        with connected(path) as third:
            assert answer(third).startswith(b"HTTP/1.1 429")
        first.sendall(get())
        assert b"HTTP/1.1 200" in answer(first)


def test_a_client_that_does_not_take_its_answer(server, path, monkeypatch):
    monkeypatch.setattr(http, "WRITE_WITHIN", 0.2)
    with connected(path) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        eventually(lambda: server.server_state.total_requests == 1 and not server.server_state.connections)
        assert len(answer(client)) < LARGE


def test_pipelined_requests_are_answered_in_order(path):
    with connected(path) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 3 + get())
        assert answer(client).count(b"HTTP/1.1 200") == 4
