"""The short way for plain requests: it is taken, costs no thread, and answers what the framework's way answers."""

from functools import partial

import anyio.to_thread
import pytest
from harness import Client

from app.api.direct import Direct
from app.api.paging import by_age, rest_of
from app.main import create_app


def way(application):
    """The middleware of an application's own, made as the framework makes it."""
    middleware = next(one for one in application.user_middleware if one.cls is Direct)
    return Direct(None, **middleware.kwargs)


def test_every_operation_on_objects_has_the_short_way():
    found = way(create_app()).operations
    kinds = ("/networks", "/endpoints", "/portmaps", "/ipam/allocations")
    assert {("GET", kind) for kind in kinds} <= set(found)
    assert {("POST", kind) for kind in kinds} <= set(found)
    assert {(method, f"{kind}/") for kind in kinds[:3] for method in ("GET", "PATCH", "DELETE")} <= set(found)


@pytest.fixture
def threads(monkeypatch):
    """What is handed to threads."""
    handed = []
    run_sync = anyio.to_thread.run_sync

    async def counted(function, *arguments, **options):
        handed.append(function)
        return await run_sync(function, *arguments, **options)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    return handed


def test_no_request_is_handed_to_a_thread(api, threads):
    api.network()
    made = api.endpoint()
    api.portmap()
    api.patch(f"/endpoints/{made['id']}", labels={"a": "b"})
    for path in ("/endpoints", "/endpoints?limit=1", "/endpoints?network=web&label=a", "/networks/web", "/portmaps"):
        api.get(path)
    api.get("/ipam/pools?limit=1")
    api.client.post("/endpoints", json={"network": "web", "namespace": "b"}, headers={"Idempotency-Key": "k"})
    api.delete("/endpoints/red?force=true")
    assert threads == []


def test_plain_requests_never_reach_the_framework(api, monkeypatch):
    reached = []
    router = api.app.router
    handle = router.app

    async def counted(scope, receive, send):
        reached.append((scope["method"], scope["path"]))
        await handle(scope, receive, send)

    monkeypatch.setattr(router, "middleware_stack", counted)
    api.network()
    made = api.endpoint()
    api.get(f"/endpoints/{made['id']}")
    api.get("/endpoints")
    api.patch("/endpoints/red", labels={"a": "b"})
    api.delete("/endpoints/red")
    assert reached == []
    api.get("/endpoints?limit=1")
    assert reached == [("GET", "/endpoints")]


@pytest.fixture
def both(api):
    """The same application by either way: a query that asks for nothing keeps from the short one."""
    api.network(labels={"a": "b"}, subnet6="auto")
    api.endpoint("red", labels={"a": "b"})
    api.endpoint("blue")
    api.portmap("red", host_port=8080, target_port=80)
    api.post("/ipam/allocations", network="web", note="a note")

    def ask(method, path, **options):
        answers = []
        for request in (partial(api.client.request, method, path), partial(longer(api).request, method, path)):
            found = request(**options)
            answers.append((found.status_code, dict(found.headers), found.content))
        return answers

    return ask


def longer(api):
    """A client whose requests the short way leaves alone."""

    async def app(scope, receive, send):
        await api.app({**scope, "headers": [*scope["headers"], (b"if-none-match", b'"none"')]}, receive, send)

    return Client(app)


PATHS = ["/networks", "/endpoints", "/portmaps", "/ipam/pools", "/ipam/allocations", "/export"]


@pytest.mark.parametrize("path", [*PATHS, "/networks/web", "/endpoints/red", "/endpoints/none", "/portmaps/none"])
def test_reads_have_the_same_answer_either_way(both, path):
    short, long = both("GET", path)
    if path == "/export":  # says when it was written
        short, long = short[:1], long[:1]
    assert short == long


REFUSED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"web"',
    b"{}",
    b'{"name": 1}',
    b'{"name": "web", "more": 1}',
    b'{"name": "web"}',
    b'{"name": "x\\udc00"}',
    b'{"namespace": "red", "network": "none"}',
    b'{"namespace": "red", "network": "web", "pid": 1}',
    b'{"endpoint": "none"}',
    b'{"endpoint": "red", "host_port": 8080}',
    b'{"labels": null}',
    b'{"network": "web", "address": "192.0.2.1"}',
]


@pytest.mark.parametrize("body", REFUSED)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/networks"),
        ("POST", "/endpoints"),
        ("POST", "/portmaps"),
        ("POST", "/ipam/allocations"),
        ("PATCH", "/networks/none"),
        ("PATCH", "/endpoints/none"),
        ("DELETE", "/networks/none"),
        ("DELETE", "/networks/web"),
    ],
)
def test_refusals_have_the_same_answer_either_way(both, method, path, body):
    short, long = both(method, path, content=body)
    assert short == long
    assert short[0] >= 400


@pytest.mark.parametrize("number", [100, 10_000])
def test_a_page_is_looked_up_not_searched_for(number, figure):
    asked = []

    def place(one):
        asked.append(one)
        return [one]

    values = list(range(number))
    assert next(iter(rest_of(values, place, [number // 2]))) == number // 2 + 1
    figure(f"{len(asked)} places looked at, of {number}")
    assert len(asked) <= 20


def test_a_page_is_right_where_the_clock_was_set_back():
    values = [5, 6, 7, 1, 2, 3]
    for at, value in enumerate(values):
        assert list(rest_of(values, lambda one: [one], [value])) == values[at + 1 :]


def test_an_endpoint_s_page_looks_at_no_other_network(api):
    api.network()
    api.network("other")
    for number in range(3):
        api.endpoint(f"e{number}")
    api.endpoint("far", network="other")
    catalog = api.catalog
    assert [one.name for one in catalog.endpoints_on(catalog.network("other"))] == ["far"]
    assert [one.name for one in catalog.endpoints_on(catalog.network("web"))] == ["e0", "e1", "e2"]
    api.delete("/endpoints/e1")
    assert [one["name"] for one in api.get("/endpoints?network=web")] == ["e0", "e2"]
    api.delete("/networks/other?force=true")
    assert all(by_age(one) for one in catalog.networks.values())
    assert api.get("/endpoints?network=web&limit=1")[0]["name"] == "e0"
