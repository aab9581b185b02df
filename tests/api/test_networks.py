"""/networks: what it makes, and its defaults."""

from ipaddress import ip_interface, ip_network

import pytest


def test_a_bare_body_has_the_contract_s_defaults(api):
    answer = api.client.post("/networks", json={"name": "web"})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/networks/{made['id']}"
    wanted = {
        "name": "web",
        "bridge": "web",
        "subnet": "192.168.15.0/24",
        "gateway": "192.168.15.1",
        "ip_range": "192.168.15.0/24",
        "subnet6": None,
        "gateway6": None,
        "ip_range6": None,
        "mtu": 1400,
        "internal": False,
        "isolated": True,
        "icc": True,
        "masquerade": True,
        "snat_address": None,
        "spoof_protection": False,
        "labels": {},
    }
    assert wanted.items() <= made.items()
    assert made["created_at"] == made["updated_at"]
    assert made["status"]["state"] == "ready"
    bridge = api.kernel.host.links["web"]
    assert bridge.addresses == {ip_interface("192.168.15.1/24")}
    assert (bridge.mtu, bridge.up, bridge.owner) == (1400, True, made["id"])
    assert api.kernel.sysctls["net/ipv4/ip_forward"] == "1"


def test_without_a_default_route_the_mtu_is_1500(api):
    api.kernel.uplink = ""
    assert api.network()["mtu"] == 1500


def test_id_and_name_lead_to_it_and_an_id_wins(api):
    first = api.network()
    second = api.network(first["id"])
    assert api.get("/networks/web")["id"] == first["id"]
    assert api.get(f"/networks/{first['id']}")["name"] == "web"
    api.delete(f"/networks/{first['id']}")
    assert api.get(f"/networks/{first['id']}")["id"] == second["id"]


@pytest.mark.parametrize("name", ["a-name-beyond-fifteen", "default", "-x"[1:] + "-0123456789abcdef"])
def test_a_name_that_is_no_interface_name_gets_a_bridge_of_its_own(api, name):
    bridge = api.network(name)["bridge"]
    assert bridge.startswith("bh-")
    assert len(bridge) == 13
    assert int(bridge[3:], 16) >= 0


def test_a_foreign_interface_of_the_name_is_left_alone(api):
    api.kernel.add_link("web")
    assert api.network()["bridge"].startswith("bh-")
    assert api.kernel.host.links["web"].kind == "dummy"


def test_subnets_come_from_the_pools_past_networks_and_routes(api):
    api.kernel.add_route(ip_network("192.168.16.0/23"), "uplink")
    assert [api.network(name)["subnet"] for name in "abc"] == [
        "192.168.15.0/24",
        "192.168.18.0/24",
        "192.168.19.0/24",
    ]
    api.refused("POST", "/networks", {"name": "d"}, 409, "pool_exhausted", "192.168.15.0/24:24", "192.168.16.0/22:24")
    api.delete("/networks/b")
    assert api.network("d")["subnet"] == "192.168.18.0/24"


def test_the_default_route_is_not_in_the_way(api):
    api.kernel.add_route(ip_network("0.0.0.0/0"), "uplink")
    assert api.network(subnet="10.0.0.0/8")["subnet"] == "10.0.0.0/8"


@pytest.mark.parametrize("subnet", ["10.0.0.0/31", "10.0.0.1/32"])
def test_the_smallest_subnets_without_a_gateway(api, subnet):
    made = api.network(subnet=subnet, gateway=None)
    assert made["gateway"] is None
    assert api.endpoint()["address"] == subnet.partition("/")[0]


def test_without_a_gateway_nothing_is_routed(api):
    made = api.network(gateway=None)
    assert made["gateway"] is None
    assert api.kernel.host.links["web"].addresses == set()
    assert api.kernel.sysctls["net/ipv4/ip_forward"] == "0"
    assert api.endpoint()["gateway"] is None
    assert api.kernel.names["red"].routes == {}


def test_a_list_has_a_limit_and_label_filters(api):
    api.network("a", labels={"team": "x", "tier": "1"})
    api.network("b", labels={"team": "x"})
    api.network("c", labels={"team": "y=z"})

    def names(query):
        return [one["name"] for one in api.get(f"/networks{query}")]

    assert names("") == ["a", "b", "c"]
    assert names("?limit=2") == ["a", "b"]
    assert names("?label=team=x") == ["a", "b"]
    assert names("?label=team=x&label=tier=1") == ["a"]
    assert names("?label=tier") == ["a"]
    assert names("?label=team=y=z") == ["c"]
    assert names("?label=team=") == []


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "label==x", "label="])
def test_a_list_refuses_a_bad_query(api, query):
    api.refused("GET", f"/networks?{query}", None, 422, "invalid")


def test_patch_changes_the_live_network(api):
    made = api.network()
    api.endpoint()
    changed = api.patch("/networks/web", mtu=9000, isolated=False, masquerade=False, labels={"a": "b"})
    wanted = {"mtu": 9000, "isolated": False, "masquerade": False, "labels": {"a": "b"}}
    assert wanted.items() <= changed.items()
    assert changed["updated_at"] > made["updated_at"]
    assert changed["created_at"] == made["created_at"]
    assert api.get("/networks/web") == changed
    assert api.kernel.host.links["web"].mtu == 9000
    assert api.kernel.names["red"].links["eth0"].mtu == 9000


def test_patch_sets_moves_and_takes_the_gateway(api):
    api.network(gateway=None)
    api.endpoint(address="192.168.15.9")
    routes = api.kernel.names["red"].routes
    api.patch("/networks/web", gateway="192.168.15.5")
    assert str(routes[4].via) == "192.168.15.5"
    api.patch("/networks/web", gateway="192.168.15.6")
    assert str(routes[4].via) == "192.168.15.6"
    assert api.kernel.host.links["web"].addresses == {ip_interface("192.168.15.6/24")}
    assert api.endpoint("blue", address="192.168.15.5")["gateway"] == "192.168.15.6"
    api.patch("/networks/web", gateway=None)
    assert api.kernel.names["red"].routes == {}
    assert api.kernel.sysctls["net/ipv4/ip_forward"] == "0"


def test_patch_ip_range_and_null_is_the_whole_subnet(api):
    api.network(ip_range="192.168.15.64/26")
    assert api.endpoint()["address"] == "192.168.15.64"
    api.patch("/networks/web", ip_range="192.168.15.128/25")
    assert api.endpoint("blue")["address"] == "192.168.15.128"
    assert api.patch("/networks/web", ip_range=None)["ip_range"] == "192.168.15.0/24"


def test_patch_internal_closes_and_opens(api):
    api.network()
    api.endpoint()
    portmap = api.portmap(host_port=8080)
    assert api.patch("/networks/web", internal=True)["internal"] is True
    assert api.kernel.names["red"].routes == {}
    assert api.get(f"/portmaps/{portmap['id']}")["status"]["state"] == "degraded"
    api.patch("/networks/web", internal=False)
    assert api.get(f"/portmaps/{portmap['id']}")["status"]["state"] == "ready"
    assert str(api.kernel.names["red"].routes[4].via) == "192.168.15.1"


def test_an_empty_patch_changes_nothing_but_the_time(api):
    made = api.network()
    changed = api.patch("/networks/web")
    assert {**changed, "updated_at": made["updated_at"]} == made


def test_delete_gives_everything_back(api):
    before = api.state()
    api.network()
    api.delete("/networks/web")
    assert api.state() == before
    assert api.network()["subnet"] == "192.168.15.0/24"


def test_delete_in_use_is_refused_and_forced(api):
    before = api.state()
    api.network()
    api.endpoint()
    api.portmap(host_port=8080)
    api.refused("DELETE", "/networks/web", None, 409, "network_in_use", "web", "red", "force")
    api.delete("/networks/web?force=true")
    assert api.state() == before
