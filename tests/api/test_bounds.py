"""Bounds on what a client may make the daemon do, and the Host header."""

import asyncio
import json
import time

import pytest
from harness import Client, checked_problem

from app.api import middleware
from app.api.guards import HostGuard
from app.api.middleware import DEPTH_MAX, Admission, BodyLimit, RateLimit, holder, user
from app.main import for_tcp
from app.model.access import Principal
from app.model.errors import Invalid
from app.settings import Settings


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


def test_json_as_deep_as_it_may_be(api):
    api.refused("POST", "/networks", {"name": "x", "labels": nested(DEPTH_MAX - 1)}, 422, "invalid", "labels")


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"name": "x", "labels": nested(DEPTH_MAX)}),
        '{"a":' * (DEPTH_MAX + 1),
        json.dumps({"name": '"]' * 40, "labels": nested(DEPTH_MAX)}),
    ],
)
def test_json_too_deep(api, body):
    api.refused("POST", "/networks", None, 422, "invalid", DEPTH_MAX, content=body)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"name": "web", "subnet": "10.0.0.0/24", "subnet": "10.1.0.0/24"}', "subnet"),
        ('{"name": "web", "labels": {"a": "b", "c": "d", "a": "b"}}', "a"),
        ('{"name": "web", "n\\u0061me": "lan"}', "name"),
    ],
)
def test_a_key_that_is_there_twice(api, body, key):
    api.refused("POST", "/networks", None, 422, "invalid", f"{key}: given twice", content=body)


def test_refusals_speak_json(api):
    api.refused("POST", "/networks", {"name": None}, 422, "invalid", "not null")
    api.refused(
        "POST", "/networks", {"name": "web", "mtu": {"a": [True, "x"]}}, 422, "invalid", 'not {"a": [true, "x"]}'
    )


def test_brackets_within_strings_do_not_count(api):
    answer = api.client.post("/networks", json={"name": "web", "labels": {"a": '[{\\"[{' * 20, "b": "]"}})
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("text", ['"' + '\\"' * 400_000 + "\\", '"' * 900_000, "[]," * 300_000, '{"' * 400_000])
def test_no_body_takes_long_to_measure(api, text):
    answer = api.client.post("/networks", content="{" * (DEPTH_MAX - 1) + "[]" + text, timeout=5)
    assert answer.status_code in (400, 422)


def test_a_large_document_is_measured_at_once():
    text = json.dumps([{"id": "8e\\\\[", "labels": {'a"]': "}{"}, "bridge": "w" * 200}] * 100_000).encode()
    assert len(text) < middleware.IMPORT_MAX
    scope = {"type": "http", "method": "POST", "path": "/import"}
    start = time.process_time()
    middleware._check_depth(scope, text)
    assert time.process_time() - start < 2
    with pytest.raises(Invalid):
        middleware._check_depth(scope, b"[" * (DEPTH_MAX - 2) + text)


def test_a_document_may_take_its_time(api, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_WITHIN", 0.05)

    async def slow():
        yield b'{"version": 1, "networks": [], "endpoints": [],'
        await asyncio.sleep(0.2)
        yield b'"portmaps": [], "reservations": []}'

    assert api.client.post("/import", content=slow()).status_code == 200


def test_a_body_that_does_not_come(api, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_WITHIN", 0.05)

    async def slow():
        yield b"{"
        await asyncio.sleep(5)

    answer = api.client.post("/networks", content=slow())
    checked_problem(answer, 408, "too_slow")
    assert answer.headers["connection"] == "close"


# --- rates


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_rate(api):
    clock = Clock()
    client = Client(RateLimit(api.app, user, 2.0, 5, clock))
    answers = [client.get("/healthz").status_code for _number in range(7)]
    assert answers == [200] * 5 + [429] * 2
    refused = client.get("/healthz")
    checked_problem(refused, 429, "too_many_requests", ["2 requests a second"])
    assert refused.headers["retry-after"] == "1"
    clock.now += 1
    assert [client.get("/healthz").status_code for _number in range(3)] == [200, 200, 429]
    client.close()


def test_root_is_not_bounded_and_others_do_not_share(api):
    from test_access import As

    from app.model.access import Peer

    limit = RateLimit(api.app, user, 1.0, 1, Clock())
    clients = {uid: Client(As(limit, Peer(1, uid, uid))) for uid in (0, 1000, 1001)}
    answers = {uid: [client.get("/healthz").status_code for _number in range(3)] for uid, client in clients.items()}
    assert answers == {0: [200] * 3, 1000: [200, 429, 429], 1001: [200, 429, 429]}
    for client in clients.values():
        client.close()


def test_each_token_has_its_rate_and_whoever_has_none_its_address(api):
    limit = RateLimit(api.app, holder(Tokens().find), 1.0, 1, Clock())
    clients = [Client(limit, {"authorization": f"Bearer {one}"}) for one in ("wrong", "s3cret", "guess", "s3cret")]
    assert [client.get("/healthz").status_code for client in clients] == [200, 200, 429, 429]
    for client in clients:
        client.close()


def test_so_many_at_once():
    started = []

    async def slow(scope, receive, send):
        started.append(1)
        await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = Client(Admission(slow, 3))
    answers = client.gather(*[("GET", "/", None)] * 5)
    assert sorted(answer.status_code for answer in answers) == [204, 204, 204, 429, 429]
    assert len(started) == 3
    assert client.get("/").status_code == 204
    client.close()


# --- the Host header


class At:
    """Stands where the server does: it listens on this address."""

    def __init__(self, app, address):
        self.app, self.address = app, address

    async def __call__(self, scope, receive, send):
        scope["server"] = (self.address, 8015)
        await self.app(scope, receive, send)


@pytest.mark.parametrize(
    ("address", "host", "taken"),
    [
        ("127.0.0.1", "127.0.0.1:8015", True),
        ("127.0.0.1", "localhost:8015", True),
        ("127.0.0.1", "LOCALHOST.", True),
        ("127.0.0.1", "[::1]:8015", True),
        ("::1", "[::1]:8015", True),
        ("203.0.113.2", "203.0.113.2", True),
        ("203.0.113.2", "bridge.example", True),
        ("203.0.113.2", "Bridge.Example:8015", True),
        ("203.0.113.2", "localhost", False),
        ("203.0.113.2", "203.0.113.3", False),
        ("203.0.113.2", "127.0.0.1", False),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost.evil.example:8015", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "localhost@evil.example", False),
    ],
)
def test_the_host_header(api, address, host, taken):
    client = Client(At(HostGuard(api.app, ["bridge.example"]), address))
    answer = client.get("/networks", headers={"host": host})
    client.close()
    if taken:
        assert answer.status_code == 200
    else:
        checked_problem(answer, 421, "misdirected", ["--host-name"])


# --- pages of other origins


class Tokens:
    def find(self, secret):
        return Principal("token default") if secret == "s3cret" else None


PREFLIGHT = {"origin": "https://panel.example", "access-control-request-method": "POST"}


def over_tcp(api, **settings):
    gate = for_tcp(api.app, Settings(host_name=["bridgehead"], **settings), Tokens())
    return Client(gate, {"authorization": "Bearer s3cret"})


def test_no_page_of_another_origin_is_let_in(api):
    client = over_tcp(api)
    assert client.request("OPTIONS", "/networks", headers=PREFLIGHT).status_code == 405
    answer = client.get("/networks", headers={"origin": "https://panel.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    client.close()


def test_an_origin_that_is_let_in(api):
    client = over_tcp(api, cors_origin=["https://panel.example"])
    preflight = client.request("OPTIONS", "/networks", headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://panel.example"
    answer = client.get("/networks", headers={"origin": "https://panel.example"})
    assert answer.headers["access-control-allow-origin"] == "https://panel.example"
    other = client.get("/networks", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    client.close()


def test_the_body_limit_is_the_applications_own(api):
    assert any(one.cls is BodyLimit for one in api.app.user_middleware)


@pytest.mark.parametrize("path", ["/endpoints?namespace=a&namespace=b", "/networks?limit=1&limit=2"])
def test_a_parameter_that_is_given_twice_and_taken_once(api, path):
    name = path.partition("?")[2].partition("=")[0]
    api.refused("GET", path, None, 422, "invalid", name, "2 times")
    assert api.get("/networks?label=a&label=b") == []
