"""Links and addresses as the kernel module makes, changes and reads them back."""

import struct
from dataclasses import replace
from ipaddress import IPv6Interface, ip_interface

import pytest
from driven import BLUE, BOTH, NET, NET6, RED, WEB, attachment, bridge, driven, netns

from app.kernel.announce import unsolicited_advertisement
from app.kernel.wire import LINK_GROUP
from app.model.errors import KernelRefused, NamespaceMissing
from app.model.state import ForeignLink

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
    assert red.ping("fd05::1")
    assert red.ping("fd05::3")
    assert sandbox.host.ping("fd05::2")
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
    assert inside.ping("fd05::1", count=3)


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
    assert red.ping("fd05::1", count=3)


@pytest.mark.parametrize("router", [False, True])
def test_an_unsolicited_advertisement_is_taken(sandbox, kernel, router):
    kernel.make(WEB, *BOTH)
    red = sandbox.netns("red")
    assert red.ping("fd05::1", count=3)
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
    assert red.ping("fd05::3", count=3)
    kernel.remove(BLUE)
    other = replace(BLUE, mac="02:00:00:00:02:33")
    kernel.make(other)
    assert other.mac in red.exec(["ip", "-6", "neighbour", "show", "fd05::3"]).stdout
    assert red.ping("fd05::3", count=3)
    assert blue.ping("fd05::2", count=3)


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


def test_a_namespace_that_was_there_is_missing_and_not_made_by_a_change(sandbox, kernel):
    """Its endpoints are not in what would be made: a look at all of them comes first."""
    red = netns("red")
    kernel.make(red)
    sandbox.delete_netns("red")
    with pytest.raises(NamespaceMissing, match="was deleted"):
        kernel.change(red, replace(red, owner="ep-other"))
    assert "red" not in sandbox.netns_names()
    kernel.make(red)
    assert "red" in sandbox.netns_names()


def down(sandbox, item, *words):
    """Sets a link down, and changes it then: of which the kernel tells nobody."""
    for rest in (["down"], list(words)):
        sandbox.host.exec(["ip", "link", "set", item.host_ifname, *rest])


def test_a_port_that_lost_its_options_while_it_was_down_comes_up_with_them(sandbox, kernel):
    guarded = replace(RED, locked=True, isolated=True)
    kernel.make(WEB, netns("red"), guarded)
    down(sandbox, guarded, *["type", "bridge_slave", "isolated", "off", "locked", "off", "learning", "on"])
    kernel.repair(guarded)
    link = sandbox.host.links()[RED.host_ifname]
    assert (link.up, link.locked, link.isolated, link.learning) == (True, True, True, False)


def test_a_link_that_somebody_took_over_while_it_was_down_is_left_alone(sandbox, kernel):
    kernel.make(WEB, netns("red"), RED)
    down(sandbox, RED, "group", "default", "alias", "theirs")
    before = sandbox.host.links()[RED.host_ifname]
    with pytest.raises(KernelRefused):
        kernel.change(RED, replace(RED, hairpin=True))
    assert sandbox.host.links()[RED.host_ifname] == before
    sandbox.host.exec(["ip", "link", "del", RED.host_ifname])


def test_nothing_is_plugged_into_a_bridge_that_somebody_took_over_while_it_was_down(sandbox, kernel):
    kernel.make(WEB, netns("red"))
    for words in (["down"], ["alias", "theirs"]):
        sandbox.host.exec(["ip", "link", "set", "web", *words])
    with pytest.raises(KernelRefused):
        kernel.make(RED)
    assert RED.host_ifname not in sandbox.host.links()
    sandbox.host.exec(["ip", "link", "del", "web"])
