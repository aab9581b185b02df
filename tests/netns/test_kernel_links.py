"""Links, addresses and routes as the kernel module makes, changes and reads them back."""

import errno
import re
import struct
from dataclasses import replace
from ipaddress import IPv6Interface, ip_address, ip_interface

import pytest
from driven import attachment, bridge, driven, netns, route

from app.kernel import messages
from app.kernel.announce import unsolicited_advertisement
from app.kernel.wire import LINK_GROUP, ROUTE_PROTOCOL
from app.model.errors import KernelRefused
from app.model.state import ForeignLink

NET, NET6 = "10.5.0.1/24", "fd05::1/64"
WEB = bridge("web", NET, NET6)
RED = attachment("red", "10.5.0.2/24", "fd05::2/64", number=1)
BLUE = attachment("blue", "10.5.0.3/24", "fd05::3/64", number=2)
BOTH = (netns("red"), netns("blue"), RED, BLUE)


@pytest.fixture
def forward_policy():
    """No rules are made here."""
    return "ACCEPT"


@pytest.fixture
def ipv6():
    return True


@pytest.fixture
def kernel(sandbox, tmp_path):
    with driven(sandbox, tmp_path) as made:
        yield made


# --- marks


def test_only_alias_and_group_together_are_a_mark(sandbox, tmp_path):
    host = sandbox.host
    for name, words in (
        ("inner", ["alias", "bridgehead:x"]),
        ("grouped", ["group", str(LINK_GROUP), "alias", "mine"]),
        ("ours", ["alias", "bridgehead:x", "group", str(LINK_GROUP)]),
        ("halfmade", ["group", str(LINK_GROUP)]),
    ):
        host.exec(["ip", "link", "add", name, "type", "bridge"])
        host.exec(["ip", "link", "set", name, *words])
    with driven(sandbox, tmp_path) as kernel:
        found = kernel.observe()
        assert set(found.values()) == {ForeignLink("x", "ours"), ForeignLink("", "halfmade")}
        kernel.remove(*found.values(), ForeignLink("x", "inner"), ForeignLink("", "grouped"))
    assert host.links().keys() >= {"inner", "grouped"}
    assert not host.links().keys() & {"ours", "halfmade"}


def test_an_endpoint_s_inside_is_not_another_daemon_s_leftover(sandbox, kernel, tmp_path):
    kernel.make(WEB, *BOTH)
    red = sandbox.netns("red")
    assert red.links()["eth0"].alias == "bridgehead:ep-red"
    assert red.links()["eth0"].group == 0
    inner = tmp_path / "inner"
    inner.mkdir()

    class Inside:
        host, netns = red, sandbox.netns

    with driven(Inside, inner) as nested:
        assert nested.observe() == {}


def test_an_administrator_s_address_on_the_bridge_stays(sandbox, kernel):
    kernel.make(WEB)
    theirs = {ip_interface("10.5.0.77/24"), ip_interface("fd05::77/64")}
    for address in theirs:
        sandbox.host.exec(["ip", "address", "add", str(address), "dev", "web"])
    assert kernel.is_kept(WEB)
    moved = bridge("web", "10.5.0.9/24", "fd05::9/64")
    kernel.change(WEB, moved)
    assert kernel.is_kept(moved)
    held = {one for one in sandbox.host.addresses()["web"] if not one.is_link_local}
    assert held == theirs | moved.addresses


def test_an_address_that_a_crash_left_goes(sandbox, kernel):
    plain = bridge("web")
    kernel.make(plain)
    kernel.change(plain, bridge("web", NET))  # killed before the commit: nobody wants it
    assert not kernel.is_kept(plain)
    kernel.repair(plain)
    assert kernel.is_kept(plain)
    assert "web" not in sandbox.host.addresses()


# --- IPv6


def test_ipv6_works_at_once(sandbox, kernel):
    kernel.make(WEB, *BOTH)
    red = sandbox.netns("red")
    assert red.ping("fd05::1", timeout=0.5)
    assert red.ping("fd05::3", timeout=0.5)
    assert sandbox.host.ping("fd05::2", timeout=0.5)
    assert kernel.is_kept(WEB, *BOTH)
    # EUI-64 of 02:00:00:00:02:01
    assert ip_interface("fe80::ff:fe00:201/64") in red.addresses()["eth0"]
    for place, name in ((sandbox.host, "web"), (red, "eth0")):
        shown = place.exec(["ip", "-6", "address", "show", "dev", name]).stdout
        assert "tentative" not in shown
        for key, value in (("accept_ra", "0"), ("accept_dad", "0"), ("dad_transmits", "0"), ("autoconf", "0")):
            assert place.sysctl(f"net/ipv6/conf/{name}/{key}") == value
    assert sandbox.host.sysctl("net/ipv6/conf/veth1/disable_ipv6") == "1"


def test_an_address_is_usable_though_the_host_wants_duplicates_detected(sandbox, kernel):
    for key in ("accept_dad", "dad_transmits"):
        sandbox.host.write_sysctl(f"net/ipv6/conf/all/{key}", 1)
    inside = sandbox.add_netns("red")
    inside.write_sysctl("net/ipv6/conf/all/accept_dad", 1)
    kernel.make(WEB, RED)
    for place, name in ((sandbox.host, "web"), (inside, "eth0")):
        shown = place.exec(["ip", "-6", "address", "show", "dev", name, "scope", "global"]).stdout
        assert "fd05::" in shown
        assert "tentative" not in shown
    assert inside.ping("fd05::1", timeout=0.5)


def test_without_a_subnet_ipv6_is_off_and_stays_off(sandbox, kernel):
    web, red = bridge("web", NET), attachment("red", "10.5.0.2/24", number=1)
    kernel.make(web, netns("red"), red)
    inside = sandbox.netns("red")
    for place, name in ((sandbox.host, "web"), (sandbox.host, "veth1"), (inside, "eth0")):
        assert place.sysctl(f"net/ipv6/conf/{name}/disable_ipv6") == "1"
        place.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", 0)
    kernel.repair(web, netns("red"), red)
    assert kernel.is_kept(web, netns("red"), red)
    assert sandbox.host.sysctl("net/ipv6/conf/web/disable_ipv6") == "1"
    assert inside.sysctl("net/ipv6/conf/eth0/disable_ipv6") == "1"


def test_ipv6_that_somebody_turned_off_comes_back(sandbox, kernel):
    kernel.make(WEB, *BOTH)
    red = sandbox.netns("red")
    red.write_sysctl("net/ipv6/conf/eth0/disable_ipv6", 1)
    sandbox.host.write_sysctl("net/ipv6/conf/web/disable_ipv6", 1)
    kernel.repair(WEB, *BOTH)
    assert kernel.is_kept(WEB, *BOTH)
    assert red.ping("fd05::1", timeout=0.5)


@pytest.mark.parametrize("router", [False, True])
def test_an_unsolicited_advertisement_is_taken(sandbox, kernel, router):
    kernel.make(WEB, *BOTH)
    red = sandbox.netns("red")
    assert red.ping("fd05::1", timeout=0.5)
    frame = unsolicited_advertisement("02:00:00:00:09:09", IPv6Interface(NET6), router=router)
    assert struct.unpack_from("!I", frame, 58)[0] == (0xA0000000 if router else 0x20000000)

    def send():
        import socket

        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("web", 0))
            sender.send(frame)

    sandbox.host.run(send)
    shown = red.exec(["ip", "-6", "neighbour", "show", "fd05::1"]).stdout
    assert "02:00:00:00:09:09" in shown


def test_a_moved_gateway_and_a_new_endpoint_are_announced(sandbox, kernel):
    kernel.make(WEB, *BOTH)
    red, blue = sandbox.netns("red"), sandbox.netns("blue")
    assert red.ping("fd05::3", timeout=0.5)
    kernel.remove(BLUE)
    other = replace(BLUE, mac="02:00:00:00:02:33")
    kernel.make(other)
    assert other.mac in red.exec(["ip", "-6", "neighbour", "show", "fd05::3"]).stdout
    assert red.ping("fd05::3", timeout=0.5)
    assert blue.ping("fd05::2", timeout=0.5)


# --- default routes


@pytest.mark.parametrize(("version", "via", "moved"), [(4, "10.5.0.1", "10.5.0.9"), (6, "fd05::1", "fd05::9")])
def test_a_default_route_comes_moves_and_goes(sandbox, kernel, version, via, moved):
    kernel.make(WEB, *BOTH)
    red = sandbox.netns("red")
    kernel.make(route(RED, via))
    assert red.default_route(version) == (via, "eth0")
    assert kernel.is_kept(RED, route(RED, via))
    kernel.change(route(RED, via), route(RED, moved))
    assert red.default_route(version) == (moved, "eth0")
    assert len([one for one in red.routes() if one.destination is None and one.version == version]) == 1
    kernel.remove(route(RED, moved))
    assert red.default_route(version) is None


@pytest.mark.parametrize(("version", "via"), [(4, "10.5.0.1"), (6, "fd05::1")])
@pytest.mark.parametrize("words", ["metric 5", "metric 5000", "proto ra metric 5000"])
def test_a_namespace_s_own_default_route_is_not_beaten(sandbox, kernel, version, via, words):
    kernel.make(WEB, *BOTH)
    red = sandbox.netns("red")
    own = "10.5.0.3" if version == 4 else "fd05::3"
    red.exec(["ip", f"-{version}", "route", "add", "default", "via", own, *words.split()])
    with pytest.raises(KernelRefused) as refusal:
        kernel.make(route(RED, via))
    assert refusal.value.errno == errno.EEXIST
    assert red.default_route(version) == (own, "eth0")
    kernel.remove(route(RED, own))
    assert red.default_route(version) == (own, "eth0")


@pytest.mark.parametrize("version", [4, 6])
def test_a_default_route_moves_to_another_endpoint_and_back(sandbox, kernel, version):
    db = bridge("db", "10.6.0.1/24", "fd06::1/64", number=2)
    second = attachment("red", "10.6.0.2/24", "fd06::2/64", number=3, bridge="db", ifname="eth1", owner="ep-second")
    kernel.make(WEB, db, netns("red"), RED, second)
    red = sandbox.netns("red")
    first, other = ("10.5.0.1", "10.6.0.1") if version == 4 else ("fd05::1", "fd06::1")
    kernel.make(route(RED, first))
    kernel.change(route(RED, first), route(second, other))
    assert red.default_route(version) == (other, "eth1")
    kernel.remove(second)
    assert red.default_route(version) is None
    # it went with its link: there is nothing to replace
    kernel.change(route(second, other), route(RED, first))
    assert red.default_route(version) == (first, "eth0")
    assert kernel.is_kept(WEB, db, RED, route(RED, first))


def test_ours_moves_beside_a_foreign_one_that_came_later(sandbox, kernel):
    kernel.make(WEB, *BOTH, route(RED, "10.5.0.1"))
    red = sandbox.netns("red")
    red.exec(["ip", "route", "add", "default", "via", "10.5.0.3", "metric", "50"])
    kernel.change(route(RED, "10.5.0.1"), route(RED, "10.5.0.9"))
    assert {str(one.via) for one in red.routes() if one.destination is None and one.version == 4} == {
        "10.5.0.3",
        "10.5.0.9",
    }


# --- bridge ports


def six(place):
    """The ways of the IPv6 default routes."""
    shown = place.exec(["ip", "-6", "-oneline", "route", "show", "default"]).stdout
    return sorted(re.findall(r"via (\S+) dev (\S+)", shown))


@pytest.mark.parametrize("foreign", ["fd09::1", "fd00::1"])
def test_an_equal_ipv6_default_route_is_neither_taken_nor_shared(sandbox, kernel, foreign):
    """The kernel makes one route of several ways of routes of equal metric, in the order they came."""
    kernel.make(WEB, *BOTH[:3])
    ours, red = route(RED, "fd05::1"), sandbox.netns("red")
    kernel.make(ours)
    for line in (
        "link add own0 type veth peer name own1",
        "link set own1 up",
        "link set own0 up",
        f"-6 address add {foreign}0/64 dev own0 nodad",
        f"-6 route append default via {foreign} dev own0 metric 1024",
    ):
        red.exec(["ip", *line.split()])
    assert six(red) == sorted([("fd05::1", "eth0"), (foreign, "own0")])
    assert not kernel.is_kept(RED, ours)
    for moved in (ours, replace(ours, via=ip_address("fd05::9"))):
        with pytest.raises(KernelRefused) as refusal:
            kernel.change(ours, moved)
        assert refusal.value.errno == errno.EEXIST
        assert six(red) == [(foreign, "own0")]
        red.exec(["ip", *f"-6 route append default via fd05::1 dev eth0 metric 1024 proto {ROUTE_PROTOCOL}".split()])
    kernel.remove(ours)
    assert six(red) == [(foreign, "own0")]
    red.exec(["ip", "-6", "route", "delete", "default"])
    kernel.make(ours)
    assert kernel.is_kept(RED, ours)


def port(sandbox, name="veth1"):
    link = sandbox.host.links()[name]
    return link.hairpin, link.isolated, link.locked, link.learning


def test_isolated_ports_reach_the_bridge_and_not_one_another(sandbox, kernel):
    red, blue = replace(RED, isolated=True), replace(BLUE, isolated=True)
    kernel.make(WEB, netns("red"), netns("blue"), red, blue)
    assert port(sandbox) == (False, True, False, True)
    assert kernel.is_kept(red, blue)
    inside = sandbox.netns("red")
    assert inside.ping("10.5.0.1", timeout=0.5)
    assert not inside.ping("10.5.0.3", timeout=0.15)
    assert not inside.ping("fd05::3", timeout=0.15)
    kernel.change(red, RED)
    kernel.change(blue, BLUE)
    assert kernel.is_kept(RED, BLUE)
    inside.exec(["ip", "neighbour", "flush", "all"])
    assert inside.ping("10.5.0.3", timeout=0.5)
    sandbox.host.exec(["bridge", "link", "set", "dev", "veth1", "isolated", "on"])
    assert not kernel.is_kept(RED)


def test_a_locked_port_lets_its_own_mac_out_only(sandbox, kernel):
    red = replace(RED, locked=True)
    kernel.make(WEB, netns("red"), netns("blue"), red, BLUE)
    assert port(sandbox) == (False, False, True, False)
    assert kernel.is_kept(red, BLUE)
    inside = sandbox.netns("red")
    assert inside.ping("10.5.0.1", timeout=0.5)
    assert sandbox.netns("blue").ping("fd05::2", timeout=0.5)
    inside.exec(["ip", "link", "set", "eth0", "address", "02:00:00:00:02:77"])
    assert not inside.ping("10.5.0.1", timeout=0.15)
    kernel.change(red, RED)
    inside.exec(["ip", "neighbour", "flush", "all"])
    assert inside.ping("10.5.0.1", timeout=0.5)
    assert "static" not in sandbox.host.exec(["bridge", "fdb", "show", "dev", "veth1"]).stdout
    inside.exec(["ip", "link", "set", "eth0", "address", RED.mac])
    assert kernel.is_kept(RED)
    kernel.change(RED, red)
    assert kernel.is_kept(red)
    assert inside.ping("10.5.0.1", timeout=0.5)


def test_a_lock_forgets_what_the_port_learnt(sandbox, kernel):
    kernel.make(WEB, netns("red"), RED)
    inside = sandbox.netns("red")
    inside.exec(["ip", "link", "set", "eth0", "address", "02:00:00:00:02:77"])
    assert inside.ping("10.5.0.1", timeout=0.5)
    kernel.change(RED, replace(RED, locked=True))
    assert not inside.ping("10.5.0.1", timeout=0.15)
    assert "02:00:00:00:02:77" not in sandbox.host.exec(["bridge", "fdb", "show", "dev", "veth1"]).stdout


@pytest.mark.parametrize(
    "damage",
    [
        ["link", "set", "dev", "veth1", "locked", "off"],
        ["link", "set", "dev", "veth1", "learning", "on"],
        ["fdb", "delete", RED.mac, "dev", "veth1", "master"],
    ],
)
def test_a_damaged_lock_is_seen_and_mended(sandbox, kernel, damage):
    red = replace(RED, locked=True)
    kernel.make(WEB, netns("red"), red)
    sandbox.host.exec(["bridge", *damage])
    assert not kernel.is_kept(red)
    kernel.repair(red)
    assert kernel.is_kept(red)
    assert sandbox.netns("red").ping("10.5.0.1", timeout=0.5)


def test_a_lock_that_nobody_wants_is_taken_off(sandbox, kernel):
    kernel.make(WEB, netns("red"), RED)
    sandbox.host.exec(["bridge", "link", "set", "dev", "veth1", "locked", "on"])
    assert not kernel.is_kept(RED)
    kernel.repair(RED)
    assert kernel.is_kept(RED)


def test_a_port_on_another_bridge_comes_back_with_its_options(sandbox, kernel):
    red = replace(RED, locked=True, isolated=True, hairpin=True)
    kernel.make(WEB, netns("red"), red)
    sandbox.host.add_bridge("other")
    sandbox.host.exec(["ip", "link", "set", "veth1", "master", "other"])
    kernel.repair(red)
    assert kernel.is_kept(red)
    assert port(sandbox) == (True, True, True, False)


def test_a_kernel_that_cannot_lock_ports_says_so(sandbox, kernel, monkeypatch):
    kernel.make(WEB, netns("red"))
    # what a kernel before 5.18 does: it passes over the option
    monkeypatch.setitem(messages.PORT_OPTIONS, "locked", 5)  # IFLA_BRPORT_GUARD
    with pytest.raises(KernelRefused, match=r"locked since Linux 5\.18") as refusal:
        kernel.make(replace(RED, locked=True))
    assert refusal.value.errno == errno.EOPNOTSUPP
    assert "veth1" not in sandbox.host.links()


# --- reverse path filter inside


@pytest.mark.parametrize(("mode", "own"), [(0, "0"), (1, "2"), (2, "0")])
def test_a_strict_filter_inside_is_loosened_on_our_link(sandbox, kernel, mode, own):
    inside = sandbox.add_netns("red")
    inside.write_sysctl("net/ipv4/conf/all/rp_filter", mode)
    kernel.make(WEB, RED)
    assert inside.sysctl("net/ipv4/conf/eth0/rp_filter") == own
    assert inside.sysctl("net/ipv4/conf/all/rp_filter") == str(mode)


def test_a_filter_that_became_strict_inside_is_loosened_again(sandbox, kernel):
    inside = sandbox.add_netns("red")
    kernel.make(WEB, RED)
    assert kernel.is_kept(RED)
    inside.write_sysctl("net/ipv4/conf/all/rp_filter", 1)
    assert not kernel.is_kept(RED)
    kernel.repair(RED)
    assert inside.sysctl("net/ipv4/conf/eth0/rp_filter") == "2"
    assert kernel.is_kept(RED)


def test_a_pair_that_was_left_half_made_is_finished(sandbox, kernel):
    """Killed before the inner end had its alias: its settings come before that."""
    kernel.make(WEB, netns("red"), RED)
    inside = sandbox.netns("red")
    inside.exec(["ip", "link", "set", "eth0", "alias", ""])
    sandbox.host.write_sysctl(f"net/ipv6/conf/{RED.host_ifname}/disable_ipv6", 0)
    before = inside.exec(["cat", "/sys/class/net/eth0/ifindex"]).stdout
    assert not kernel.is_kept(RED)
    kernel.repair(RED)
    assert kernel.is_kept(RED)
    assert sandbox.host.sysctl(f"net/ipv6/conf/{RED.host_ifname}/disable_ipv6") == "1"
    assert inside.exec(["cat", "/sys/class/net/eth0/ifindex"]).stdout == before
