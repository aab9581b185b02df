"""Endpoints in namespaces of every kind, their routes and their neighbours' memory."""

from ipaddress import ip_interface

import pytest
from world import QUIET, delete, endpoint, get, made, network, patch, refused

from app.sandbox import SERVER, eventually

WEB_GATEWAY, LAN_GATEWAY = "192.168.15.1", "192.168.16.1"


@pytest.fixture
def web(api):
    return network(api, "web", subnet="192.168.15.0/24")


@pytest.fixture
def lan(api):
    return network(api, "lan", subnet="192.168.16.0/24")


@pytest.fixture
def own(sandbox, baseline):
    """A namespace `red` that is not the daemon's; to be asked for before the daemon."""
    red = sandbox.add_netns("red")
    baseline.take()
    return red


# --- whose namespace


def test_a_process_is_an_endpoints_namespace(sandbox, api, web):
    with sandbox.process() as (pid, inside):
        given = made(api, "endpoints", network="web", pid=pid)
        assert (given["pid"], given["namespace"], given["name"][:3]) == (pid, None, "ep-")
        assert inside.ping(SERVER)
        assert sandbox.host.ping(given["address"])
        delete(api, f"endpoints/{given['id']}")
        assert set(inside.links()) == {"lo"}


def test_a_path_is_an_endpoints_namespace(sandbox, api, web):
    with sandbox.process() as (pid, inside):
        given = made(api, "endpoints", network="web", netns=f"/proc/{pid}/ns/net")
        assert given["netns"] == f"/proc/{pid}/ns/net"
        assert inside.ping(SERVER)
        delete(api, f"endpoints/{given['id']}")
        assert set(inside.links()) == {"lo"}


def test_pid_and_path_of_one_namespace_share_its_names_and_route(sandbox, api, web, lan):
    with sandbox.process() as (pid, inside):
        first = made(api, "endpoints", network="web", pid=pid)
        second = made(api, "endpoints", network="lan", netns=f"/proc/{pid}/ns/net")
        assert (first["ifname"], second["ifname"]) == ("eth0", "eth1")
        assert inside.default_route() == (WEB_GATEWAY, "eth0")
        delete(api, f"endpoints/{first['id']}")
        assert inside.default_route() == (LAN_GATEWAY, "eth1")
        delete(api, f"endpoints/{second['id']}")


def test_an_endpoint_whose_process_ended_can_be_deleted(sandbox, api, web):
    with sandbox.process() as (pid, _inside):
        given = made(api, "endpoints", network="web", pid=pid)
    eventually(lambda: given["host_ifname"] not in sandbox.host.links())
    delete(api, f"endpoints/{given['id']}")
    assert get(api, "endpoints") == []
    assert endpoint(api, "red", address=given["address"])["address"] == given["address"]


def test_a_foreign_namespace_survives_its_last_endpoint(own, api, web):
    own.add_address("lo", ip_interface("10.1.1.1/32"))
    red, before = own, own.inode
    for body in ({"namespace": "red"}, {"netns": "/run/netns/red"}):
        assert made(api, "endpoints", network="web", **body)["namespace"] == "red"
        assert red.ping(SERVER)
        delete(api, "endpoints/red")
        assert red.inode == before
        assert set(red.links()) == {"lo"}
        assert ip_interface("10.1.1.1/32") in red.addresses()["lo"]
    own.exec(["ip", "address", "del", "10.1.1.1/32", "dev", "lo"])


def test_a_made_namespace_goes_with_its_last_endpoint(sandbox, api, web, lan):
    endpoint(api, "red", "web")
    second = endpoint(api, "red", "lan")
    assert second["name"] == "red-2"
    before = sandbox.netns("red").inode
    delete(api, "endpoints/red")
    assert sandbox.netns("red").inode == before
    delete(api, "endpoints/red-2")
    assert sandbox.netns_names() == []
    endpoint(api, "red", "web")
    assert sandbox.netns("red").ping(SERVER)


def test_create_namespace_false_takes_only_what_is_there(sandbox, api, web):
    body = {"network": "web", "namespace": "red", "create_namespace": False}
    refused(api.post("/endpoints", json=body), 404, "namespace_missing", "red")
    assert sandbox.netns_names() == []
    sandbox.add_netns("red")
    made(api, "endpoints", **body)
    assert sandbox.netns("red").ping(SERVER)
    delete(api, "endpoints/red")
    sandbox.delete_netns("red")


# --- default routes


def test_the_default_route_moves_with_the_oldest_endpoint(sandbox, api, web, lan):
    red = sandbox.netns("red")
    endpoint(api, "red", "lan", name="a")
    endpoint(api, "red", "web", name="b")
    assert red.default_route() == (LAN_GATEWAY, "eth0")
    assert red.ping(SERVER)
    delete(api, "endpoints/a")
    assert red.default_route() == (WEB_GATEWAY, "eth1")
    assert red.ping(SERVER)
    endpoint(api, "red", "lan", name="c")
    assert red.default_route() == (WEB_GATEWAY, "eth1")


def test_patch_default_route(sandbox, api, web, lan):
    red = sandbox.netns("red")
    endpoint(api, "red", "web", name="a")
    endpoint(api, "red", "lan", name="b")
    found = []
    for name, wanted in (("b", True), ("a", True), ("a", None), ("b", None), ("a", False), ("b", False)):
        patch(api, f"endpoints/{name}", default_route=wanted)
        found.append(red.default_route())
        assert red.ping(SERVER, timeout=QUIET) == (found[-1] is not None)
    by_web, by_lan = (WEB_GATEWAY, "eth0"), (LAN_GATEWAY, "eth1")
    assert found == [by_lan, by_web, by_lan, by_web, by_lan, None]


def test_a_gateway_that_comes_and_goes_moves_the_default_route(sandbox, api, lan):
    network(api, "web", subnet="192.168.15.0/24", gateway=None)
    endpoint(api, "red", "web", name="a")
    endpoint(api, "red", "lan", name="b")
    red = sandbox.netns("red")
    found = [red.default_route()]
    for gateway in ("192.168.15.200", "192.168.15.201", None):
        patch(api, "networks/web", gateway=gateway)
        found.append(red.default_route())
        assert red.ping(SERVER)
    by_lan = (LAN_GATEWAY, "eth1")
    assert found == [by_lan, ("192.168.15.200", "eth0"), ("192.168.15.201", "eth0"), by_lan]


def test_a_namespaces_own_default_route_is_left_alone(sandbox, api, web):
    red = sandbox.add_netns("red")
    sandbox.host.add_veth("v-red", "mgmt", red)
    red.add_address("mgmt", ip_interface("10.9.0.2/24"))
    red.add_default_route(ip_interface("10.9.0.1/24").ip, "mgmt")
    given = endpoint(api, "red")
    assert red.default_route() == ("10.9.0.1", "mgmt")
    assert given["status"]["state"] == "degraded", given["status"]
    assert red.ping(WEB_GATEWAY)
    delete(api, "endpoints/red")
    assert red.default_route() == ("10.9.0.1", "mgmt")
    sandbox.host.delete_link("v-red")
    sandbox.delete_netns("red")


def test_a_gateway_moves_on_the_live_network(sandbox, api, web):
    endpoint(api, "red")
    red = sandbox.netns("red")
    for gateway in ("192.168.15.200", "192.168.15.201", WEB_GATEWAY):
        patch(api, "networks/web", gateway=gateway)
        assert sandbox.host.addresses()["web"] == {ip_interface(f"{gateway}/24")}
        assert red.default_route() == (gateway, "eth0")
        assert red.ping(SERVER)


# --- links


def test_an_ifname_that_exists_is_refused(own, api, web):
    own.add_bridge("mine")
    before = own.links()
    answer = api.post("/endpoints", json={"network": "web", "namespace": "red", "ifname": "mine"})
    refused(answer, 409, "interface_exists", "mine")
    assert own.links() == before
    assert get(api, "endpoints") == []
    own.delete_link("mine")


def test_an_automatic_ifname_steps_aside(own, api, web):
    own.add_bridge("eth0")
    assert endpoint(api, "red")["ifname"] == "eth1"
    assert own.ping(SERVER)
    own.delete_link("eth0")


def test_mtu_is_that_of_the_network_and_changes_with_it(sandbox, api):
    network(api, "web", mtu=1400)
    given = endpoint(api, "red")
    for mtu in (1400, 1300, 9000):
        patch(api, "networks/web", mtu=mtu)
        host, red = sandbox.host.links(), sandbox.netns("red").links()
        assert [host["web"].mtu, host[given["host_ifname"]].mtu, red["eth0"].mtu] == [mtu] * 3


def test_mtu_is_by_default_that_of_the_uplink(sandbox, baseline, daemon, api):
    sandbox.host.exec(["ip", "link", "set", "eth0", "mtu", "1442"])
    baseline.take()
    assert network(api, "web")["mtu"] == 1442
    endpoint(api, "red")
    assert sandbox.netns("red").links()["eth0"].mtu == 1442


def test_macs_are_kept(sandbox, daemon, api, web):
    given = endpoint(api, "red", mac="02:00:5e:10:00:01")
    other = endpoint(api, "blue")
    bridge = sandbox.host.links()["web"].mac
    assert given["mac"] == sandbox.netns("red").links()["eth0"].mac == "02:00:5e:10:00:01"
    assert int(other["mac"][:2], 16) & 3 == 2
    delete(api, "endpoints/red")
    daemon.restart()
    assert sandbox.netns("blue").links()["eth0"].mac == other["mac"] == get(api, "endpoints/blue")["mac"]
    assert sandbox.host.links()["web"].mac == bridge


@pytest.mark.parametrize("ipv6", [True])
def test_ipv6_is_off_on_bridge_and_endpoint(sandbox, baseline, daemon, api):
    eventually(lambda: any(address.is_link_local for address in sandbox.host.addresses()["eth0"]))
    baseline.take()
    network(api, "web")
    given = endpoint(api, "red")
    red = sandbox.netns("red")
    off = "net/ipv6/conf/{}/disable_ipv6"
    assert sandbox.host.sysctl(off.format("eth0")) == "0"
    for place, name in ((sandbox.host, "web"), (sandbox.host, given["host_ifname"]), (red, "eth0")):
        assert place.sysctl(off.format(name)) == "1", name
        assert all(address.version == 4 for address in place.addresses().get(name, ())), name


# --- neighbours


def knows(place, address, mac):
    return mac in place.exec(["ip", "neighbour", "show", address]).stdout


def test_neighbours_learn_a_new_mac_at_once(sandbox, api, web):
    """Their entry is fresh: without an announcement they would use the old MAC for many seconds."""
    red = sandbox.netns("red")
    endpoint(api, "red")
    for name in ("blue", "green", "blue"):
        given = endpoint(api, name, address="192.168.15.77")
        assert red.ping("192.168.15.77", timeout=0.5), f"red, {name}"
        assert sandbox.host.ping("192.168.15.77", timeout=0.5), f"host, {name}"
        assert knows(red, "192.168.15.77", given["mac"])
        assert knows(sandbox.host, "192.168.15.77", given["mac"])
        delete(api, f"endpoints/{name}")


def test_neighbours_learn_a_moved_gateway_at_once(sandbox, api, web):
    """From an endpoint to the bridge."""
    endpoint(api, "red")
    red, last = sandbox.netns("red"), "192.168.15.77"
    endpoint(api, "blue", address=last)
    assert red.ping(last)
    delete(api, "endpoints/blue")
    patch(api, "networks/web", gateway=last)
    assert red.ping(last, timeout=0.5)
    assert red.ping(SERVER, timeout=0.5)
