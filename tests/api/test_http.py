"""Bodies that cannot be read or are too large, unknown paths, the token."""

import json

import pytest
from harness import Client, checked_problem

from app.api.guards import TokenGuard
from app.api.middleware import BODY_MAX
from app.model.access import Principal

TOKEN = "s3cret-token"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b'{"name": "x",}',
        b'{"name": NaN}',
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b"[" * 100_000,
        b'{"labels": ' + b'{"a":' * 50_000,
        b'{"name": "x", "mtu": 1' + b"0" * 5000 + b"}",
        b"\0",
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)
@pytest.mark.parametrize("path", ["/networks", "/endpoints"])
def test_what_is_no_json(api, path, body):
    before = api.state()
    answer = api.client.post(path, content=body)
    assert answer.status_code in (400, 422)
    checked_problem(answer, answer.status_code, "invalid")
    assert api.state() == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/networks", {"name": "x\udc00"}),
        ("/networks", {"name": "x", "labels": {"a": "\ud800"}}),
        ("/networks", {"name": "x", "labels": {"\ud800": "a"}}),
        ("/networks", {"name": "x", "\ud800": 1}),
        ("/networks", {"name": "x", "subnet": "\ud800"}),
        ("/networks", {"name": "x", "bridge": "\ud800"}),
        ("/networks", {"name": "x", "gateway": "\ud800"}),
        ("/networks", {"name": "x", "mtu": "\ud800"}),
        ("/endpoints", {"network": "\ud800", "namespace": "red"}),
        ("/endpoints", {"network": "web", "namespace": "\ud800"}),
        ("/endpoints", {"network": "web", "netns": "/\ud800"}),
        ("/endpoints", {"network": "web", "namespace": "red", "mac": "\ud800"}),
        ("/portmaps", {"endpoint": "\ud800"}),
        ("/portmaps", {"endpoint": "red", "protocol": "\ud800"}),
        ("/ipam/allocations", {"network": "web", "note": "\ud800"}),
    ],
)
def test_lone_surrogates(api, path, body):
    api.network()
    api.refused("POST", path, None, 422, "invalid", content=json.dumps(body))


def test_surrogates_in_a_path(api):
    assert api.client.get("/networks/%ED%A0%80").status_code == 404
    assert api.client.get("/networks/%FF%00").status_code == 404
    assert api.client.get("/networks?label=%ED%A0%80").status_code == 200


def test_any_content_type_is_json(api):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = api.client.post("/networks", content=b'{"name": "web"}', headers=headers)
    assert answer.status_code == 201


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_body_declared_too_large(api, method):
    path = "/networks" if method == "POST" else "/networks/web"
    api.refused(method, path, None, 413, "body_too_large", BODY_MAX, content=b" " * (BODY_MAX + 1))


def test_a_body_streamed_too_large_is_not_read_to_its_end(api):
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield b" " * 65536

    api.refused("POST", "/networks", None, 413, "body_too_large", BODY_MAX, content=endless())
    assert len(sent) == BODY_MAX // 65536 + 1


def test_the_largest_body_is_taken(api):
    body = b'{"name": "web"}'
    answer = api.client.post("/networks", content=body + b" " * (BODY_MAX - len(body)))
    assert answer.status_code == 201


@pytest.mark.parametrize("path", ["/", "/nope", "/networks/a/b", "/ipam", "/networks/"])
def test_unknown_paths(api, path):
    """None is redirected: a client that follows would have asked for something else."""
    for method in ("GET", "DELETE"):
        checked_problem(api.client.request(method, path), 404, "not_found", [path])


@pytest.mark.parametrize(("method", "path"), [("PUT", "/networks/web"), ("DELETE", "/networks"), ("POST", "/version")])
def test_unknown_methods(api, method, path):
    api.refused(method, path, None, 405, "method_not_allowed", method)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/networks", "GET, POST"),
        ("/networks/web", "GET, PATCH, DELETE"),
        ("/ipam/allocations/x", "GET, DELETE"),
        ("/version", "GET"),
        ("/import", "POST"),
    ],
)
def test_which_methods_are_known(api, path, allowed):
    assert api.client.request("PUT", path).headers["allow"] == allowed


@pytest.mark.parametrize("query", ["?force=maybe", "?force="])
def test_bad_queries(api, query):
    api.network()
    api.refused("DELETE", f"/networks/web{query}", None, 422, "invalid", "force")


@pytest.fixture
def guarded(api):
    client = Client(TokenGuard(api.app, {TOKEN: Principal("token default")}.get))
    yield client
    client.close()


WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    f"Basic {TOKEN}",
    TOKEN,
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN} {TOKEN}",
    b"Bearer \xff\xfe",
]


@pytest.mark.parametrize("header", WRONG)
@pytest.mark.parametrize(("method", "path"), [("GET", "/networks"), ("POST", "/networks"), ("GET", "/nope")])
def test_without_the_token(api, guarded, header, method, path):
    before = api.state()
    headers = {} if header is None else {"authorization": header}
    content = b'{"name": "web"}' if method == "POST" else None
    answer = guarded.request(method, path, headers=headers, content=content)
    checked_problem(answer, 401, "unauthorized", ["Authorization: Bearer"])
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert TOKEN not in answer.text
    assert api.state() == before


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_token(guarded, scheme):
    answer = guarded.post("/networks", json={"name": "web"}, headers={"authorization": f"{scheme} {TOKEN}"})
    assert answer.status_code == 201


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/docs", "/docs/favicon.png"])
def test_what_needs_no_token(guarded, path):
    assert guarded.get(path).status_code == 200


def test_a_bug_is_a_500_without_its_traceback(api):
    def broken(_context):
        raise RuntimeError("secret words")

    api.worker.submit = lambda _service, submit=api.worker.submit: submit(broken)
    answer = api.client.post("/networks", json={"name": "web"})
    checked_problem(answer, 500, "internal")
    assert "secret" not in answer.text


def test_an_unknown_query_parameter_is_refused(api):
    for path in ("/endpoints?nmespace=red", "/networks?foo=1", "/version?x=1"):
        api.refused("GET", path, None, 422, "invalid", path.partition("?")[2].partition("=")[0])
