"""IPv6 beside IPv4: what it makes, its defaults, and what it costs."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from harness import UPLINK6

from app.model.spec import Protocol
from app.model.state import Bridge, LoopbackRoute, NetworkPolicy, Sysctl

FORWARDING = "net/ipv6/conf/all/forwarding"


def wanted_by_the_network(api, kind):
    """The items of one kind that the networks want now."""
    from app.reconcile.render import render
    from app.store.session import transaction

    with transaction(api.engine) as store:
        items = [item for one in store.networks() for item in render(store, ("network", one.id)).items.values()]
    return [item for item in items if isinstance(item, kind)]


@pytest.fixture
def six(api):
    api.network(subnet6="fd00:15::/64")
    return api


def test_a_network_of_both_versions(api):
    made = api.network(subnet6="fd00:15::/64")
    wanted = {
        "subnet": "192.168.15.0/24",
        "gateway": "192.168.15.1",
        "subnet6": "fd00:15::/64",
        "gateway6": "fd00:15::1",
        "ip_range6": "fd00:15::/64",
    }
    assert wanted.items() <= made.items()
    assert api.kernel.host.links["web"].addresses == {ip_interface("192.168.15.1/24"), ip_interface("fd00:15::1/64")}
    assert api.kernel.sysctls[FORWARDING] == "1"
    assert [bridge.ipv6 for bridge in wanted_by_the_network(api, Bridge)] == [True]
    api.delete("/networks/web")
    assert api.kernel.sysctls[FORWARDING] == "0"


def test_without_subnet6_ipv6_is_off(api):
    api.network()
    assert api.kernel.sysctls[FORWARDING] == "0"
    assert [bridge.ipv6 for bridge in wanted_by_the_network(api, Bridge)] == [False]


def test_automatic_prefixes_are_unique_local_and_differ(api):
    subnets = [ip_network(api.network(name, subnet6="auto")["subnet6"]) for name in ("a", "b", "c")]
    assert len(set(subnets)) == 3
    for subnet in subnets:
        assert subnet.prefixlen == 64
        assert subnet.subnet_of(ip_network("fd00::/8"))


def test_an_automatic_prefix_avoids_networks_and_routes(api, monkeypatch):
    api.network("a", subnet6="fd00:1::/64")
    api.kernel.add_route(ip_network("fd00:2::/64"), "uplink")
    drawn = iter(ip_network(f"fd00:{number}::/64") for number in (1, 2, 3))
    monkeypatch.setattr("app.model.ipam.random_ula", lambda: next(drawn))
    assert api.network("b", subnet6="auto")["subnet6"] == "fd00:3::/64"


@pytest.mark.parametrize("subnet6", ["fd00::/127", "fd00::1/128"])
def test_the_smallest_without_a_gateway(api, subnet6):
    made = api.network(subnet="10.0.0.0/31", gateway=None, subnet6=subnet6, gateway6=None)
    assert made["gateway6"] is None
    assert api.endpoint()["address6"] == subnet6.partition("/")[0]
    assert api.kernel.sysctls[FORWARDING] == "0"


def test_null_is_none_without_subnet6(api):
    made = api.network(subnet6=None, gateway6=None, ip_range6=None, snat_address=None)
    assert (made["subnet6"], made["gateway6"], made["ip_range6"]) == (None, None, None)
    api.patch("/networks/web", gateway6=None, ip_range6=None)


def test_an_endpoint_of_both_versions(six):
    made = six.endpoint()
    wanted = {"address": "192.168.15.2", "prefix_len": 24, "gateway": "192.168.15.1"}
    wanted |= {"address6": "fd00:15::2", "prefix_len6": 64, "gateway6": "fd00:15::1"}
    assert wanted.items() <= made.items()
    red = six.kernel.names["red"]
    assert red.links["eth0"].addresses == {ip_interface("192.168.15.2/24"), ip_interface("fd00:15::2/64")}
    assert {version: str(route.via) for version, route in red.routes.items()} == {4: "192.168.15.1", 6: "fd00:15::1"}


def test_each_version_goes_round_by_itself(six):
    assert six.endpoint("a", address="192.168.15.77")["address6"] == "fd00:15::2"
    made = six.endpoint("b", address6="fd00:15::abcd")
    assert (made["address"], made["address6"]) == ("192.168.15.2", "fd00:15::abcd")
    six.delete("/endpoints/a")
    made = six.endpoint("c")
    assert (made["address"], made["address6"]) == ("192.168.15.3", "fd00:15::3")
    assert six.endpoint("d", address6="FD00:15:0::4")["address6"] == "fd00:15::4"


def test_ip_range6_is_where_automatic_ones_come_from(api):
    api.network(subnet6="fd00:15::/64", ip_range6="fd00:15::8:0/126")
    held = [api.endpoint(f"n{number}")["address6"] for number in range(4)]
    assert held == [f"fd00:15::8:{number}" for number in range(4)]
    body = {"network": "web", "namespace": "more"}
    api.refused("POST", "/endpoints", body, 409, "pool_exhausted", "fd00:15::8:0/126", "ip_range6")
    assert api.patch("/networks/web", ip_range6=None)["ip_range6"] == "fd00:15::/64"
    api.endpoint("more")


def test_addresses_are_free_again(six):
    before = six.state()
    six.endpoint(address6="fd00:15::9")
    six.delete("/endpoints/red")
    assert six.state()[2] == before[2]
    assert six.endpoint(address6="fd00:15::9")["address6"] == "fd00:15::9"


def test_pools_and_allocations_are_of_each_version(six):
    made = six.endpoint()
    reserved = six.post("/ipam/allocations", network="web", address="fd00:15::5", note="printer")
    assert six.post("/ipam/allocations", network="web")["address"] == "192.168.15.3"
    pools = six.get("/ipam/pools")
    assert [(one["subnet"], one["size"], one["used"], one["reserved"]) for one in pools] == [
        ("192.168.15.0/24", 254, 1, 2),
        ("fd00:15::/64", 2**64 - 1, 1, 2),
    ]
    assert pools[1]["free"] == 2**64 - 4
    assert len(six.get("/ipam/pools?limit=1")) == 1
    held = [(one["address"], one["id"]) for one in six.get("/ipam/allocations") if ":" in one["address"]]
    network = six.get("/networks/web")["id"]
    assert held == [("fd00:15::1", network), ("fd00:15::2", made["id"]), ("fd00:15::5", reserved["id"])]
    six.refused("DELETE", f"/ipam/allocations/{made['id']}", None, 409, "endpoint_in_use", "red")
    six.delete(f"/ipam/allocations/{reserved['id']}")
    assert six.endpoint("blue", address6="fd00:15::5")["address6"] == "fd00:15::5"


def test_patch_sets_moves_and_takes_gateway6(api):
    api.network(subnet6="fd00:15::/64", gateway6=None)
    api.endpoint(address6="fd00:15::9")
    routes = api.kernel.names["red"].routes
    assert set(routes) == {4}
    assert api.patch("/networks/web", gateway6="fd00:15::1")["gateway6"] == "fd00:15::1"
    assert str(routes[6].via) == "fd00:15::1"
    api.patch("/networks/web", gateway6="fd00:15::fe", gateway="192.168.15.254")
    assert {version: str(route.via) for version, route in routes.items()} == {4: "192.168.15.254", 6: "fd00:15::fe"}
    assert api.endpoint("blue", address6="fd00:15::1")["gateway6"] == "fd00:15::fe"
    api.patch("/networks/web", gateway6=None)
    assert set(api.kernel.names["red"].routes) == {4}
    assert api.kernel.sysctls[FORWARDING] == "0"
    assert [(one.subnet.version, one.routed) for one in wanted_by_the_network(api, NetworkPolicy)] == [
        (4, True),
        (6, False),
    ]


def test_only_ipv6_is_routed_where_only_it_has_a_gateway(api):
    api.network(gateway=None, subnet6="fd00:15::/64")
    api.endpoint()
    assert set(api.kernel.names["red"].routes) == {6}
    assert api.kernel.sysctls["net/ipv4/ip_forward"] == "0"
    assert api.kernel.sysctls[FORWARDING] == "1"


def test_internal_closes_both(six):
    six.endpoint()
    six.patch("/networks/web", internal=True)
    made = six.get("/endpoints/red")
    assert (made["gateway"], made["gateway6"], made["address6"]) == (None, None, "fd00:15::2")
    assert six.kernel.names["red"].routes == {}
    assert {one.routed for one in wanted_by_the_network(six, NetworkPolicy)} == {False}


def test_ports_of_ipv6(six):
    six.endpoint()
    made = six.portmap(host_ip="::", host_port=8080)
    assert (made["host_ip"], made["host_port"], made["status"]["state"]) == ("::", 8080, "ready")
    six.portmap(host_port=8080)
    for host_ip in (UPLINK6, "::1"):
        body = {"endpoint": "red", "host_ip": host_ip, "host_port": 8080}
        six.refused("POST", "/portmaps", body, 409, "port_taken", f"tcp/[{host_ip}]:8080", made["id"])
    six.portmap(host_ip=UPLINK6, host_port=81)
    six.portmap(host_ip="::1", host_port=81)
    body = {"endpoint": "red", "host_ip": "::", "host_port": 81}
    six.refused("POST", "/portmaps", body, 409, "port_taken", "tcp/[::]:81")
    six.kernel.hold_port(Protocol.UDP, ip_address("::"), 53, "process 'dns' (pid 7)")
    body = {"endpoint": "red", "protocol": "udp", "host_ip": UPLINK6, "host_port": 53}
    six.refused("POST", "/portmaps", body, 409, "port_taken", "process 'dns' (pid 7)")


@pytest.mark.parametrize("host_ip", ["::", "::1"])
def test_a_port_of_the_ipv6_loopback_wants_its_route(six, host_ip):
    six.endpoint()
    six.portmap(host_ip=UPLINK6, host_port=79)
    six.portmap(host_ip="0.0.0.0", host_port=80)
    assert wanted_by_the_network(six, LoopbackRoute) == []
    made = six.portmap(host_ip=host_ip, host_port=80)
    assert wanted_by_the_network(six, LoopbackRoute) == [LoopbackRoute("", "web")]
    assert six.kernel.loopbacks == {"web"}
    six.patch(f"/portmaps/{made['id']}", host_ip=UPLINK6)
    assert six.kernel.loopbacks == set()


def test_ports_of_ipv6_need_no_route_localnet(six):
    six.endpoint()
    six.portmap(host_ip="::", host_port=80)
    six.portmap(host_ip="::1", host_port=81)
    assert wanted_by_the_network(six, Sysctl) == []
    six.portmap(host_ip="127.0.0.1", host_port=80)
    assert [one.path for one in wanted_by_the_network(six, Sysctl)] == ["net/ipv4/conf/web/route_localnet"]


def test_a_mapping_changes_its_version(six):
    six.endpoint()
    made = six.portmap(host_port=8080)
    changed = six.patch(f"/portmaps/{made['id']}", host_ip=UPLINK6)
    assert changed["host_ip"] == UPLINK6
    assert six.kernel.sysctls["net/ipv4/conf/web/route_localnet"] == "0"


def test_a_restart_finds_both(six, make_api):
    six.endpoint()
    six.portmap(host_ip="::", host_port="8000-8010")
    before = six.state()
    six.close()
    again = make_api()
    assert again.state()[2] == before[2]
    for path in ("/networks", "/endpoints", "/portmaps", "/ipam/pools"):
        shown = [{**one, "status": None} for one in again.get(path)]
        assert shown == [{**one, "status": None} for one in six.get(path)]


def test_everything_goes(six):
    six.delete("/networks/web")
    before = six.state()
    six.network(subnet6="auto")
    six.endpoint()
    six.portmap(host_ip="::", host_port=80)
    six.post("/ipam/allocations", network="web")
    six.delete("/networks/web?force=true")
    assert six.state() == before
