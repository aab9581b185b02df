"""The host's settings: set only when a network needs them, and put back with the last one that does."""

from pathlib import Path

import pytest
from frames import advertise
from lab import IPV4, IPV6

dual = pytest.mark.parametrize("family", [IPV6], ids=str)
FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
ACCEPT_RA = "net/ipv6/conf/eth0/accept_ra"


@pytest.fixture
def forward_policy():
    return "ACCEPT"


def everything(place, family="*"):
    """All settings of a namespace's interfaces but our own links', and its ip_forward."""
    ours = {"web", "lan"} | {name for name in place.links() if name.startswith("veth")}

    def read():
        root = Path("/proc/sys/net")
        paths = [*root.glob(f"{family}/conf/*/*"), *root.glob(f"{family}/ip_forward")]
        # stable_secret cannot be read before it is written
        kept = (path for path in paths if path.parent.name not in ours and path.name != "stable_secret")
        return {str(path.relative_to(root)): path.read_text().strip() for path in kept}

    return place.run(read)


def changed(before, after):
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def forwarding(lab):
    return {version: lab.host.sysctl(path) for version, path in FORWARDING.items()}


@dual
def test_forwarding_of_each_ip_version_comes_and_goes_with_who_needs_it(lab, baseline, family):
    """By a gateway and not internal; every interface's own setting follows and goes back to what it was."""
    for path in ("net/ipv4/conf/eth0/forwarding", "net/ipv6/conf/eth0/forwarding"):
        lab.host.write_sysctl(path, 1)
    baseline.take()
    none, only4, both = {4: "0", 6: "0"}, {4: "1", 6: "0"}, {4: "1", 6: "1"}
    before = everything(lab.host)
    lab.network("web", gateway=None, gateway6=None)
    lab.network("lan", internal=True)
    assert forwarding(lab) == none
    for path, change, wanted in (
        ("networks/web", {"gateway": IPV4.web_gateway}, only4),
        ("networks/web", {"gateway6": IPV6.web_gateway}, both),
        ("networks/web", {"internal": True}, none),
        ("networks/lan", {"internal": False}, both),
        ("networks/web", {"internal": False}, both),
        ("networks/lan", {"internal": True}, both),
        ("networks/web", {"gateway6": None}, only4),
        ("networks/web", {"gateway": None}, none),
    ):
        lab.patch(path, **change)
        assert forwarding(lab) == wanted, (path, change)
        if wanted == none:
            assert changed(before, everything(lab.host)) == set(), (path, change)
    lab.patch("networks/web", gateway=IPV4.web_gateway, gateway6=IPV6.web_gateway)
    lab.delete("networks/lan")
    assert forwarding(lab) == both
    lab.delete("networks/web")
    assert changed(before, everything(lab.host)) == set()


@dual
def test_who_forwarded_before_forwards_after(lab, baseline, family):
    for path in FORWARDING.values():
        lab.host.write_sysctl(path, 1)
    # one interface that an administrator keeps from forwarding
    lab.host.write_sysctl("net/ipv6/conf/lo/forwarding", 0)
    lab.host.write_sysctl("net/ipv4/conf/lo/forwarding", 0)
    before = everything(lab.host)
    baseline.take()
    red = lab.red()
    assert red.ping(IPV6.server)
    assert changed(before, everything(lab.host)) == set()
    lab.delete("networks/web?force=true")
    assert changed(before, everything(lab.host)) == set()


@dual
def test_a_network_of_ipv4_alone_touches_nothing_of_ipv6(lab, family):
    """Neither the host's settings nor its tables; its own links have no IPv6 at all."""
    before = everything(lab.host, "ipv6")
    routes = [route for route in lab.host.routes() if route.version == 6]
    lab.network("web", subnet6=None)
    red = lab.endpoint("red", address6=None)
    lab.portmap("red", 8080, target_port=80, host_ip="0.0.0.0")
    assert red.ping(IPV4.server)
    assert changed(before, everything(lab.host, "ipv6")) == set()
    assert [route for route in lab.host.routes() if route.version == 6] == routes
    assert "ip6" not in lab.host.exec(["nft", "list", "tables"]).stdout
    assert loaded6(lab) == ""
    for place in (lab.host, red):
        for name in place.links().keys() - {"lo", "eth0" if place is lab.host else ""}:
            assert {one.version for one in place.addresses().get(name, ())} <= {4}, name
            assert place.sysctl(f"net/ipv6/conf/{name}/disable_ipv6") == "1", name
    lab.network("lan", subnet6="auto")
    green = lab.endpoint("green", "lan", address6=None)
    link_locals = [one for one in green.addresses()["eth0"] if one.is_link_local]
    assert len(link_locals) == 1
    assert red.sysctl("net/ipv6/conf/eth0/disable_ipv6") == "1"
    assert lab.host.sysctl(FORWARDING[6]) == "1"


def loaded6(lab):
    """Legacy tables of IPv6 that were looked at."""

    def read():
        try:
            return Path("/proc/thread-self/net/ip6_tables_names").read_text()
        except FileNotFoundError:
            return ""

    return lab.host.run(read)


# --- a default route that a router advertised


@dual
def test_a_learnt_default_route_outlives_forwarding(lab, baseline, family, daemon):
    learnt = advertise(lab)
    baseline.take()
    before = everything(lab.host)
    red = lab.red()
    assert lab.host.sysctl(ACCEPT_RA) == "2"
    assert lab.host.sysctl(FORWARDING[6]) == "1"
    assert lab.host.default_route(6) == learnt
    assert red.ping(IPV6.server)
    daemon.restart()
    lab.patch("networks/web", gateway6=None)
    assert lab.host.sysctl(ACCEPT_RA) == "1"
    assert lab.host.default_route(6) == learnt
    lab.patch("networks/web", gateway6=IPV6.web_gateway)
    assert lab.host.sysctl(ACCEPT_RA) == "2"
    lab.delete("networks/web?force=true")
    assert changed(before, everything(lab.host)) == set()
    assert lab.host.default_route(6) == learnt


@dual
def test_no_network_of_ipv4_alone_asks_for_router_advertisements(lab, baseline, family):
    advertise(lab)
    baseline.take()
    lab.network("web", subnet6=None)
    assert lab.host.sysctl(ACCEPT_RA) == "1"


# --- route_localnet


@pytest.mark.parametrize("family", [IPV4], ids=str)
def test_route_localnet_is_for_bridges_with_a_port_of_the_loopback(lab, family):
    lab.red()
    lab.green()
    assert localnet(lab) == ("0", "0")
    far = lab.portmap("red", 8080, host_ip=IPV4.host)
    assert localnet(lab) == ("0", "0")
    near = lab.portmap("red", 8081, host_ip="127.0.0.1")
    everywhere = lab.portmap("red", 8082, host_ip="0.0.0.0")
    assert localnet(lab) == ("1", "0")
    lab.patch(f"portmaps/{everywhere['id']}", endpoint="green")
    assert localnet(lab) == ("1", "1")
    lab.delete(f"portmaps/{near['id']}")
    assert localnet(lab) == ("0", "1")
    lab.patch(f"portmaps/{everywhere['id']}", host_ip=IPV4.host)
    assert localnet(lab) == ("0", "0")
    lab.delete(f"portmaps/{far['id']}")


def localnet(lab):
    return tuple(lab.host.sysctl(f"net/ipv4/conf/{name}/route_localnet") for name in ("web", "lan"))
