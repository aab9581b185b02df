"""Who may do what: roles, scopes, other people's namespaces; and what the audit log says of it."""

import json
import logging

import pytest
from harness import Client, checked_problem

from app.api.audit import AuditRefusals
from app.api.guards import PeerGuard, TokenGuard
from app.api.middleware import BODY_MAX
from app.kernel.fakeworld import Namespace
from app.model.access import Peer, Principal, Role

TOKENS = {
    "all": Principal("token all"),
    "look": Principal("token look", Role.READ),
    "web": Principal("token web", networks=frozenset({"web"}), confined=True),
    "nothing": Principal("token nothing", networks=frozenset(), confined=True),
}


class As:
    """Stands where the connection does: every request comes from this peer."""

    def __init__(self, app, peer):
        self.app, self.peer = app, peer

    async def __call__(self, scope, receive, send):
        scope.setdefault("state", {})["peer"] = self.peer
        await self.app(scope, receive, send)


@pytest.fixture
def by_token(api):
    """The API over TCP, with one of TOKENS."""
    made = []

    def client(token):
        guarded = AuditRefusals(TokenGuard(api.app, TOKENS.get))
        made.append(Client(guarded, {"authorization": f"Bearer {token}"}))
        return made[-1]

    yield client
    for one in made:
        one.close()


@pytest.fixture
def by_user(api):
    """The API over the unix socket, as a user."""
    made = []

    def client(uid, **options):
        guarded = As(PeerGuard(AuditRefusals(api.app), **options), Peer(4711, uid, uid, "curl"))
        made.append(Client(guarded))
        return made[-1]

    yield client
    for one in made:
        one.close()


@pytest.fixture
def audited():
    """The lines of the audit log since then, as what they say."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(json.loads(record.getMessage()))
    log = logging.getLogger("bridgehead.audit")
    former = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(former)


def forbidden(answer, *words):
    return checked_problem(answer, 403, "forbidden", words)


# --- roles and scopes


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/networks", {"name": "new"}),
        ("PATCH", "/networks/web", {"mtu": 1400}),
        ("DELETE", "/networks/web?force=true", None),
        ("POST", "/endpoints", {"network": "web", "namespace": "blue"}),
        ("DELETE", "/endpoints/red", None),
        ("POST", "/portmaps", {"endpoint": "red"}),
        ("POST", "/ipam/allocations", {"network": "web"}),
        ("POST", "/networks", {"nonsense": 1}),
    ],
)
def test_the_role_read_looks_and_changes_nothing(api, by_token, method, path, body):
    api.network()
    api.endpoint()
    before = api.state()
    look = by_token("look")
    forbidden(look.request(method, path, json=body), "token look", "read", "write")
    assert api.state() == before
    for seen in ("/networks", "/endpoints/red", "/portmaps", "/ipam/pools", "/version", "/readyz"):
        assert look.get(seen).status_code == 200


@pytest.fixture
def two(api):
    """Networks `web` and `lan`, an endpoint with a published port and a reservation on each."""
    made = {}
    for name, namespace in (("web", "red"), ("lan", "blue")):
        made[name] = api.network(name)
        api.endpoint(namespace, name)
        made[namespace] = api.portmap(namespace, host_port=8080 if name == "web" else 9090)
        made[f"{name} held"] = api.post("/ipam/allocations", network=name)
    return made


def foreign_requests(two):
    return [
        ("POST", "/networks", {"name": "new"}),
        ("DELETE", "/networks/web?force=true", None),
        ("PATCH", "/networks/lan", {"mtu": 1400}),
        ("PATCH", f"/networks/{two['lan']['id']}", {"labels": {"a": "b"}}),
        ("POST", "/endpoints", {"network": "lan", "namespace": "green"}),
        ("PATCH", "/endpoints/blue", {"name": "mine"}),
        ("DELETE", "/endpoints/blue?force=true", None),
        ("POST", "/portmaps", {"endpoint": "blue", "host_port": 7070}),
        ("PATCH", f"/portmaps/{two['red']['id']}", {"endpoint": "blue"}),
        ("PATCH", f"/portmaps/{two['blue']['id']}", {"endpoint": "red"}),
        ("PATCH", f"/portmaps/{two['blue']['id']}", {"labels": {}}),
        ("DELETE", f"/portmaps/{two['blue']['id']}", None),
        ("POST", "/ipam/allocations", {"network": "lan"}),
        ("DELETE", f"/ipam/allocations/{two['lan held']['id']}", None),
    ]


def test_a_scope_keeps_from_other_networks(api, by_token, two):
    web = by_token("web")
    for method, path, body in foreign_requests(two):
        before = api.state()
        forbidden(web.request(method, path, json=body), "token web", "'web'")
        assert api.state() == before, (method, path)
    forbidden(by_token("nothing").patch("/networks/web", json={"mtu": 1400}), "token nothing")


def test_a_scope_lets_its_own_networks_be_changed(two, by_token):
    web = by_token("web")
    assert web.patch("/networks/web", json={"mtu": 1400}).status_code == 200
    made = web.post("/endpoints", json={"network": "web", "namespace": "green"})
    assert made.status_code == 201
    mapped = web.post("/portmaps", json={"endpoint": "green", "host_port": 7070})
    assert mapped.status_code == 201
    assert web.patch(f"/portmaps/{mapped.json()['id']}", json={"endpoint": "red"}).status_code == 200
    held = web.post("/ipam/allocations", json={"network": "web"})
    assert held.status_code == 201
    for path in (f"/portmaps/{mapped.json()['id']}", f"/ipam/allocations/{held.json()['id']}", "/endpoints/green"):
        assert web.delete(path).status_code == 204
    assert web.get("/networks/lan").status_code == 200


def test_a_scope_by_id(api, two, by_token):
    TOKENS["by id"] = Principal("token by-id", networks=frozenset({two["lan"]["id"]}), confined=True)
    lan = by_token("by id")
    assert lan.patch("/networks/lan", json={"mtu": 1400}).status_code == 200
    forbidden(lan.patch("/networks/web", json={"mtu": 1400}), two["lan"]["id"])
    del TOKENS["by id"]


def test_what_is_not_there_is_not_found_whatever_the_scope(api, by_token):
    web = by_token("web")
    checked_problem(web.patch("/networks/nope", json={}), 404, "not_found")
    checked_problem(web.delete("/portmaps/nope"), 404, "not_found")


def test_a_scoped_token_connects_no_namespace_of_others(api, by_token, two):
    api.kernel.add_namespace("theirs")
    web = by_token("web")
    for where in ({"namespace": "theirs"}, {"namespace": "blue"}, {"netns": "/run/netns/theirs"}, {"netns": "/a/b"}):
        before = api.state()
        forbidden(web.post("/endpoints", json={"network": "web", **where}), "token web")
        assert api.state() == before
    again = web.post("/endpoints", json={"network": "web", "namespace": "red", "name": "second"})
    assert again.status_code == 201


# --- answers that are kept


def keyed(client, path, body):
    return client.post(path, json=body, headers={"idempotency-key": "k"})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/networks", {"name": "new"}),
        ("/endpoints", {"network": "web", "namespace": "green"}),
        ("/portmaps", {"endpoint": "red", "host_port": 7070}),
        ("/ipam/allocations", {"network": "web"}),
    ],
)
def test_a_kept_answer_is_for_who_may_make_the_change(api, by_token, two, monkeypatch, path, body):
    first = keyed(by_token("all"), path, body)
    assert first.status_code == 201
    monkeypatch.setitem(TOKENS, "less", Principal("token all", networks=frozenset({"lan"}), confined=True))
    before = api.state()
    forbidden(keyed(by_token("less"), path, body), "'lan'")
    forbidden(keyed(by_token("web" if path == "/networks" else "nothing"), path, body))
    assert api.state() == before
    monkeypatch.setitem(TOKENS, "still", Principal("token all", networks=frozenset({"web"}), confined=True))
    if path != "/networks":
        again = keyed(by_token("still"), path, body)
        assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
        assert api.state() == before


def test_a_user_s_kept_answer(api, by_user, audited):
    api.network()
    first = keyed(by_user(1000), "/endpoints", {"network": "web", "namespace": "new"})
    assert first.status_code == 201
    before = api.state()
    audited.clear()
    again = keyed(by_user(1000), "/endpoints", {"network": "web", "namespace": "new"})
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    assert api.state() == before
    assert audited == []
    forbidden(keyed(by_user(1001), "/endpoints", {"network": "web", "namespace": "new"}), "uid 1001")


# --- export and import


def test_who_may_export_and_import(api, by_token, by_user):
    api.network()
    api.endpoint()
    assert connect(by_user(1000), namespace="users").status_code == 201
    for fine in (by_token("all"), by_token("look"), by_user(0), by_user(1000)):
        document = fine.get("/export").json()
        assert [one["uid"] for one in document["endpoints"]] == [None, 1000]
    forbidden(by_token("web").get("/export"), "token web")
    api.delete("/networks/web?force=true")
    before = api.state()
    for client, words in ((by_user(1000), "uid 1000"), (by_token("web"), "token web"), (by_token("look"), "read")):
        forbidden(client.post("/import", json=document), words)
    assert api.state() == before
    assert by_user(0).post("/import", json=document).status_code == 200
    # whose a namespace is, is kept
    assert connect(by_user(1000), namespace="users", name="second").status_code == 201


def test_an_import_is_in_the_audit_log(api, by_user, audited):
    api.network()
    document = api.get("/export")
    api.delete("/networks/web")
    audited.clear()
    assert by_user(0).post("/import", json=document).status_code == 200
    assert [(one["who"], one["verb"], one["name"]) for one in audited] == [
        ("uid 0 pid 4711 (curl)", "create", "web"),
    ]


def test_only_who_may_import_may_send_a_large_document(by_user):
    padded = b'{"version": 9}' + b" " * BODY_MAX
    checked_problem(by_user(1000).post("/import", content=padded), 413, "body_too_large")
    checked_problem(by_user(0).post("/import", content=padded), 422, "invalid")
    checked_problem(by_user(0).post("/networks", content=padded), 413, "body_too_large")


# --- other people's namespaces


def connect(client, **where):
    return client.post("/endpoints", json={"network": "web", **where})


def test_a_user_connects_no_namespace_of_others(api, by_user):
    api.network()
    api.kernel.add_namespace("roots")
    api.kernel.add_process(10, Namespace())
    api.endpoint("made")
    user = by_user(1000)
    for where in (
        {"namespace": "roots"},
        {"namespace": "made"},
        {"pid": 10},
        {"netns": "/proc/10/ns/net"},
        {"netns": "/run/netns/roots"},
        {"netns": "/var/run/netns/roots"},
        {"netns": "/run/netns/../netns/roots"},
        {"netns": "/home/user/link"},
    ):
        before = api.state()
        forbidden(connect(user, **where), "uid 1000 pid 4711 (curl)", "--allow-foreign-namespaces")
        assert api.state() == before, where


def test_a_user_connects_namespaces_of_its_own(api, by_user):
    api.network()
    api.kernel.add_namespace("mine").uid = 1000
    api.kernel.add_process(10, Namespace(uid=1000))
    user = by_user(1000)
    for number, where in enumerate(
        ({"namespace": "mine"}, {"pid": 10}, {"netns": "/proc/10/ns/net"}, {"namespace": "new"}, {"namespace": "new"})
    ):
        answer = connect(user, **where, name=f"e{number}")
        assert answer.status_code == 201, answer.text
    assert answer.json()["namespace"] == "new"
    forbidden(connect(by_user(1001), namespace="new", name="other"), "uid 1001")
    forbidden(connect(by_user(1001), namespace="mine", name="other"), "uid 1001")


def test_a_namespace_with_an_endpoint_of_somebody_else_is_not_its_own(api, by_user):
    api.network()
    user = by_user(1000)
    assert connect(user, namespace="new").status_code == 201
    assert connect(by_user(0), namespace="new", name="roots").status_code == 201
    forbidden(connect(user, namespace="new", name="third"), "uid 1000")


def test_who_made_a_namespace_is_known_after_a_restart(make_api):
    api = make_api()
    api.network()
    guarded = Client(As(PeerGuard(api.app), Peer(1, 1000, 1000, "sh")))
    assert connect(guarded, namespace="new").status_code == 201
    guarded.close()
    api.close()
    again = make_api()
    guarded = Client(As(PeerGuard(again.app), Peer(1, 1000, 1000, "sh")))
    assert connect(guarded, namespace="new", name="second").status_code == 201
    guarded.close()


def test_root_and_the_setting_allow_every_namespace(api, by_user):
    api.network()
    api.kernel.add_namespace("roots")
    assert connect(by_user(0), namespace="roots").status_code == 201
    assert connect(by_user(1000, allow_foreign=True), namespace="roots", name="users").status_code == 201


# --- the audit log


def test_every_change_is_in_the_audit_log(api, by_user, audited):
    root = by_user(0)
    network = root.post("/networks", json={"name": "web"}).json()
    made = audited.pop()
    assert (made["who"], made["verb"], made["kind"]) == ("uid 0 pid 4711 (curl)", "create", "network")
    assert (made["id"], made["name"], made["outcome"], made["before"]) == (network["id"], "web", "ok", None)
    assert made["after"]["name"] == "web"
    assert made["after"]["plans"][0]["subnet"] == network["subnet"]
    root.patch("/networks/web", json={"mtu": 1280})
    changed = audited.pop()
    assert changed["verb"] == "change"
    assert set(changed["before"]) == set(changed["after"]) == {"mtu", "updated_at"}
    assert (changed["before"]["mtu"], changed["after"]["mtu"]) == (1400, 1280)
    root.post("/endpoints", json={"network": "web", "namespace": "red"})
    root.post("/portmaps", json={"endpoint": "red", "host_port": 8080})
    root.post("/ipam/allocations", json={"network": "web"})
    assert [line["kind"] for line in audited] == ["endpoint", "portmap", "allocation"]
    audited.clear()
    root.delete("/networks/web?force=true")
    assert {(line["verb"], line["kind"]) for line in audited} >= {
        ("delete", kind) for kind in ("network", "endpoint", "portmap")
    }
    assert all(line["after"] is None and line["before"] for line in audited)


def test_what_is_refused_is_in_the_audit_log(api, by_user, by_token, audited):
    api.network()
    audited.clear()
    by_user(1000).post("/networks", json={"name": "web"})
    by_token("look").delete("/networks/web")
    by_token("wrong").delete("/networks/web")
    by_token("all").delete("/networks/nope")
    by_token("all").post("/networks", content=b"{")
    told = [(line["who"].partition(" ")[0], line["verb"], line["kind"], line["outcome"]) for line in audited]
    assert told == [
        ("uid", "POST", "network", "name_taken"),
        ("token", "DELETE", "network", "forbidden"),
        ("address", "DELETE", "network", "unauthorized"),
        ("token", "DELETE", "network", "not_found"),
        ("token", "POST", "network", "invalid"),
    ]
    assert audited[3]["name"] == "nope"
    by_token("all").get("/networks/nope")
    assert len(audited) == 5


def test_a_line_is_one_line_whatever_a_client_sends(api, by_user, audited, caplog):
    by_user(0).delete("/networks/a%0Ab")
    assert audited[-1]["name"] == "a\nb"
    assert all("\n" not in record.getMessage() for record in caplog.records if record.name == "bridgehead.audit")
