"""GET /export and POST /import: out of one daemon, into an empty one."""

import json
import shutil
from ipaddress import ip_interface
from pathlib import Path

import pytest
from harness import Api, make_kernel

from app.main import create_app
from app.reconcile.executor import Executor
from app.store.session import open_database

FIXTURE = Path(__file__).parents[1] / "documents" / "version-1.json"
LISTS = ("/networks", "/endpoints", "/portmaps", "/ipam/pools", "/ipam/allocations")


@pytest.fixture
def full(api):
    """A bit of everything."""
    api.network("web", subnet6="auto", labels={"a": "b"}, spoof_protection=True, mtu=1400)
    api.network("lab", subnet="10.9.0.0/24", gateway=None, ip_range="10.9.0.128/25")
    api.network("in", internal=True, icc=False)
    api.endpoint("red", labels={"role": "db"}, ephemeral=True)
    api.endpoint("red", network="lab", default_route=True, ifname="lab0", host_ifname="lab-red")
    api.endpoint("blue", address="192.168.15.77", mac="02:00:00:00:00:77", create_namespace=True)
    api.portmap(host_port=8080, target_port=80)
    api.portmap(host_port="9000-9010", target_port=9000, protocol="sctp")
    api.portmap(host_ip="::", host_port=8080, target_port=80)
    api.post("/ipam/allocations", network="web", address="192.168.15.99", note="printer")
    api.endpoint("gone")
    api.delete("/endpoints/gone")
    return api


@pytest.fixture(scope="module")
def other_application():
    return create_app()


@pytest.fixture
def empty(tmp_path, empty_database, other_application):
    """Another host."""
    shutil.copy(empty_database, tmp_path / "other.db")
    made = Api(open_database(f"sqlite:///{tmp_path}/other.db"), make_kernel(), app=other_application)
    made.settle()
    yield made
    made.close()
    made.client.close()
    made.engine.dispose()


def shown(api):
    """What the lists show, without the moments of the statuses."""
    found = {path: api.get(path) for path in LISTS}
    for one in (one for objects in found.values() for one in objects):
        if "status" in one:
            assert one["status"].pop("since")
    return found


def items(api):
    """What the kernel holds."""
    return api.kernel.snapshot()


def test_another_host_becomes_the_same(full, empty):
    document = full.get("/export")
    answer = empty.client.post("/import", json=document)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"networks": 3, "endpoints": 3, "portmaps": 3, "reservations": 1}
    assert shown(empty) == shown(full)
    assert items(empty) == items(full)
    again = empty.get("/export")
    assert {**again, "written_at": None} == {**document, "written_at": None}


def test_an_import_however_long_is_not_taken_for_stuck(full, empty, monkeypatch):
    steps = []
    real = Executor.progress
    monkeypatch.setattr(Executor, "progress", lambda self: (steps.append(1), real(self)))
    answer = empty.client.post("/import", json=full.get("/export"))
    # each object while it is planned, and each step in the kernel
    assert len(steps) > 2 * sum(answer.json().values())
    assert empty.worker.busy_seconds < 10


def test_what_comes_next_is_the_same_too(full, empty):
    empty.client.post("/import", json=full.get("/export"))
    for path in LISTS[:3]:
        tags = [
            [one.client.get(f"{path}/{made['id']}").headers["etag"] for made in one.get(path)] for one in (full, empty)
        ]
        assert tags[0] == tags[1]
    for api in (full, empty):
        api.delete("/networks/web?force=true")
        assert [one["name"] for one in api.get("/endpoints")] == ["red-2"]


def test_the_document_says_what_it_is(full):
    document = full.get("/export")
    assert document["version"] == 1
    assert document["written_by"]
    assert document["written_at"]


def test_an_older_document_is_read(empty):
    document = json.loads(FIXTURE.read_text())
    answer = empty.client.post("/import", json=document)
    assert answer.status_code == 200, answer.text
    again = empty.get("/export")
    for kind in ("networks", "endpoints", "portmaps", "reservations"):
        assert [
            {name: new[name] for name in old} for new, old in zip(again[kind], document[kind], strict=True)
        ] == document[kind]
        assert document[kind]
    assert [one["uid"] for one in again["endpoints"]] == [None] * len(document["endpoints"])


def test_a_newer_document_is_refused_in_words(empty):
    document = json.loads(FIXTURE.read_text()) | {"version": 2}
    empty.refused("POST", "/import", document, 422, "invalid", "version 2", "newer Bridgehead", "upgrade")


def test_an_import_is_for_an_empty_daemon(full):
    document = full.get("/export")
    full.refused("POST", "/import", document, 409, "not_empty", "3 networks", "'web'")


def test_an_import_with_a_key(full, empty):
    document = full.get("/export")
    headers = {"idempotency-key": "k"}
    first, again = (empty.client.post("/import", json=document, headers=headers) for _ in range(2))
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert again.headers["idempotency-replayed"] == "true"
    empty.refused("POST", "/import", {**document, "portmaps": []}, 422, "idempotency_mismatch", headers=headers)


def changed(document, kind, number, **fields):
    document[kind][number].update(fields)


NOWHERE = "00000000-0000-4000-8000-000000000000"
WRONG = {
    "name": (("networks", 1, {"name": "web"}), 409, "name_taken"),
    "bridge": (("networks", 1, {"bridge": "web"}), 409, "interface_exists"),
    "host's bridge": (("networks", 1, {"bridge": "uplink"}), 409, "interface_exists"),
    "subnet": (("networks", 1, {"subnet": "192.168.15.0/25", "ip_range": "192.168.15.0/25"}), 409, "subnet_overlap"),
    "host's route": (
        ("networks", 1, {"subnet": "203.0.113.0/25", "ip_range": "203.0.113.0/25"}),
        409,
        "subnet_overlap",
    ),
    "gateway": (("networks", 0, {"gateway": "10.0.0.1"}), 422, "address_outside_subnet"),
    "source": (("networks", 0, {"snat_address": "192.0.2.1"}), 422, "invalid"),
    "families": (("networks", 1, {"subnet": "fd00:9::/64", "ip_range": "fd00:9::/64"}), 422, "invalid"),
    "no such network": (("endpoints", 0, {"network": NOWHERE}), 404, "not_found"),
    "address": (("endpoints", 2, {"address": "192.168.15.2"}), 409, "address_taken"),
    "address outside": (("endpoints", 2, {"address": "10.0.0.1"}), 422, "address_outside_subnet"),
    "no address6": (("endpoints", 0, {"address6": None}), 422, "invalid"),
    "address6 of none": (("endpoints", 1, {"address6": "fd00::1"}), 422, "invalid"),
    "endpoint's name": (("endpoints", 1, {"name": "red"}), 409, "name_taken"),
    "ifname": (("endpoints", 1, {"ifname": "eth0"}), 422, "invalid"),
    "host_ifname": (("endpoints", 1, {"host_ifname": "web"}), 409, "interface_exists"),
    "path for a name": (("endpoints", 0, {"netns": "../red"}), 422, "invalid"),
    "key to elsewhere": (("endpoints", 0, {"namespace_key": "name:../red"}), 422, "invalid"),
    "no path": (("endpoints", 0, {"netns_kind": "path", "netns": "red"}), 422, "invalid"),
    "no pid": (("endpoints", 0, {"netns_kind": "pid"}), 422, "invalid"),
    "no such endpoint": (("portmaps", 0, {"endpoint": NOWHERE}), 404, "not_found"),
    "port": (("portmaps", 1, {"host_port": "8000-8090", "protocol": "tcp"}), 409, "port_taken"),
    "host_ip": (("portmaps", 0, {"host_ip": "192.0.2.1"}), 422, "invalid"),
    "target": (("portmaps", 1, {"target_port": 65530}), 422, "invalid"),
    "reservation": (("reservations", 0, {"address": "192.168.15.77"}), 409, "address_taken"),
    "reservation outside": (("reservations", 0, {"address": "192.0.2.1"}), 422, "address_outside_subnet"),
    "id": (("endpoints", 0, {"id": "red"}), 422, "invalid"),
    "unknown": (("networks", 0, {"color": "red"}), 422, "invalid"),
    "no zone": (("networks", 0, {"created_at": "2026-01-02T03:04:05"}), 422, "invalid"),
}


@pytest.mark.parametrize("what", WRONG)
def test_one_wrong_thing_and_nothing_is_made(full, empty, what):
    (place, status, code) = WRONG[what]
    document = full.get("/export")
    kind, number, fields = place
    document[kind][number].update(fields)
    empty.refused("POST", "/import", document, status, code)


def test_an_id_twice(full, empty):
    document = full.get("/export")
    document["portmaps"][0]["id"] = document["networks"][0]["id"]
    empty.refused("POST", "/import", document, 422, "invalid", document["networks"][0]["id"])


def test_what_the_kernel_refuses_leaves_nothing(full, empty):
    document = full.get("/export")
    empty.kernel.add_link("lab-red2", ip_interface("198.51.100.1/24"))
    empty.kernel.refuse(lambda op: getattr(op.item, "host_ifname", "") == "lab-red")
    empty.refused("POST", "/import", document, 502, "kernel_refused")
    empty.kernel.relent()
    assert empty.client.post("/import", json=document).status_code == 200


def test_a_namespace_that_is_not_there_is_waited_for(full, empty):
    document = full.get("/export")
    changed(document, "endpoints", 2, netns_kind="path", netns="/run/some/ns", namespace_key="path:/run/some/ns")
    assert empty.client.post("/import", json=document).status_code == 200
    states = {one["name"]: one["status"]["state"] for one in empty.get("/endpoints")}
    assert states == {"red": "ready", "red-2": "ready", "blue": "degraded"}


def test_a_large_document(full, empty):
    document = full.get("/export")
    lab = document["networks"][1]
    lab.update(subnet="10.9.0.0/16", ip_range="10.9.0.0/16")
    document["reservations"] += [
        {
            "id": f"{number:08x}-0000-4000-8000-000000000000",
            "network": lab["id"],
            "address": f"10.9.{1 + (number >> 8)}.{number & 255}",
            "note": "x" * 300,
            "created_at": "2026-01-02T03:04:05Z",
        }
        for number in range(4000)
    ]
    assert len(json.dumps(document)) > 1 << 20
    assert empty.client.post("/import", json=document).json()["reservations"] == 4001
