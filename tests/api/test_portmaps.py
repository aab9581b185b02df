"""/portmaps: what it makes, its defaults, and whom a port belongs to."""

from ipaddress import ip_address

import pytest
from harness import UPLINK

from app.model.spec import Protocol


@pytest.fixture
def api(api):
    api.network()
    api.endpoint()
    return api


def held(api):
    return [line for line in api.kernel.snapshot().splitlines() if line.startswith("port ")]


def test_a_bare_body_has_the_contract_s_defaults(api):
    answer = api.client.post("/portmaps", json={"endpoint": "red", "host_port": 8080})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/portmaps/{made['id']}"
    wanted = {
        "endpoint": api.get("/endpoints/red")["id"],
        "endpoint_name": "red",
        "protocol": "tcp",
        "host_ip": "0.0.0.0",
        "host_port": 8080,
        "target_port": 8080,
        "labels": {},
    }
    assert wanted.items() <= made.items()
    assert made["status"]["state"] == "ready"
    assert held(api) == ["port tcp 0.0.0.0 8080"]
    assert api.kernel.sysctls["net/ipv4/conf/web/route_localnet"] == "1"
    assert api.get(f"/portmaps/{made['id']}") == made


def test_automatic_ports_skip_mappings_and_processes(api):
    api.kernel.hold_port(Protocol.TCP, ip_address("127.0.0.1"), 49154, "nc")
    assert [api.portmap()["host_port"] for _number in range(3)] == [49153, 49155, 49156]
    assert api.portmap(protocol="udp")["host_port"] == 49153
    assert api.portmap(target_port=80)["target_port"] == 80


def test_one_port_on_two_addresses_and_protocols(api):
    api.portmap(host_ip=UPLINK, host_port=53)
    api.portmap(host_ip="127.0.0.1", host_port=53)
    api.portmap(host_port=53, protocol="udp")
    assert len(held(api)) == 3


@pytest.mark.parametrize(("first", "second"), [("0.0.0.0", UPLINK), (UPLINK, "0.0.0.0"), (UPLINK, UPLINK)])
def test_a_port_of_another_mapping_is_taken(api, first, second):
    made = api.portmap(host_ip=first, host_port=8080)
    body = {"endpoint": "red", "host_ip": second, "host_port": 8080}
    api.refused("POST", "/portmaps", body, 409, "port_taken", f"tcp/{second}:8080", made["id"], "red")


@pytest.mark.parametrize(("process", "wanted"), [("0.0.0.0", UPLINK), (UPLINK, "0.0.0.0"), (UPLINK, UPLINK)])
def test_a_port_of_a_process_is_taken(api, process, wanted):
    api.kernel.hold_port(Protocol.TCP, ip_address(process), 8080, "process 'nginx' (pid 7)")
    body = {"endpoint": "red", "host_ip": wanted, "host_port": 8080}
    api.refused("POST", "/portmaps", body, 409, "port_taken", f"tcp/{wanted}:8080", "process 'nginx' (pid 7)")


def test_patch_onto_a_taken_port_is_refused_and_the_old_one_kept(api):
    made = api.portmap(host_port=8080)
    api.portmap(host_port=8081)
    api.kernel.hold_port(Protocol.TCP, ip_address("0.0.0.0"), 8082, "nc")
    for port in (8081, 8082):
        body = {"host_port": port}
        api.refused("PATCH", f"/portmaps/{made['id']}", body, 409, "port_taken", port)
    assert held(api)[0].endswith("8080")


def test_patch_moves_it(api):
    api.endpoint("blue")
    made = api.portmap(host_port=8080, target_port=80)
    path = f"/portmaps/{made['id']}"
    changed = api.patch(path, endpoint="blue", host_ip=UPLINK, host_port=9090, target_port=81, labels={"a": "b"})
    assert changed["endpoint_name"] == "blue"
    assert (changed["host_ip"], changed["host_port"], changed["target_port"]) == (UPLINK, 9090, 81)
    assert changed["updated_at"] > made["updated_at"]
    assert held(api) == [f"port tcp {UPLINK} 9090"]
    assert api.get(path) == changed
    assert api.kernel.sysctls["net/ipv4/conf/web/route_localnet"] == "0"


def test_patch_from_everywhere_to_one_address_of_the_same_port(api):
    made = api.portmap(host_port=8080)
    api.patch(f"/portmaps/{made['id']}", host_ip=UPLINK)
    assert held(api) == [f"port tcp {UPLINK} 8080"]


def test_a_changed_udp_mapping_flushes_its_flows(api):
    made = api.portmap(host_port=53, protocol="udp")
    api.kernel.flushed.clear()
    api.patch(f"/portmaps/{made['id']}", target_port=54)
    assert {one.target_port for one in api.kernel.flushed} == {53, 54}


def test_delete_frees_the_port(api):
    before = api.state()
    made = api.portmap(host_port=8080)
    api.delete(f"/portmaps/{made['id']}")
    assert api.state() == before
    api.refused("DELETE", f"/portmaps/{made['id']}", None, 404, "not_found", made["id"])


def test_lists_are_filtered(api):
    api.network("db")
    api.endpoint("blue", network="db")
    api.portmap(host_port=1, labels={"a": "b"})
    api.portmap("blue", host_port=2)

    def ports(query):
        return [one["host_port"] for one in api.get(f"/portmaps?{query}")]

    assert ports("") == [1, 2]
    assert ports("network=db") == [2]
    assert ports("endpoint=red") == [1]
    assert ports("label=a") == [1]
    assert ports("limit=1") == [1]
    api.refused("GET", "/portmaps?endpoint=nope", None, 404, "not_found", "nope")


def test_an_internal_network_publishes_nothing(api):
    api.network("closed", internal=True)
    api.endpoint("blue", network="closed")
    body = {"endpoint": "blue", "host_port": 80}
    api.refused("POST", "/portmaps", body, 409, "internal_network", "closed", "blue")
    made = api.portmap(host_port=80)
    body = {"endpoint": "blue"}
    api.refused("PATCH", f"/portmaps/{made['id']}", body, 409, "internal_network", "closed")


def test_a_network_without_a_gateway_publishes_nothing(api):
    api.network("flat", gateway=None)
    api.endpoint("blue", network="flat")
    body = {"endpoint": "blue", "host_port": 80}
    api.refused("POST", "/portmaps", body, 409, "no_gateway", "flat", "blue")
