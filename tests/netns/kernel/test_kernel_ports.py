"""Bridge ports: isolated, locked, and mended where somebody changed them."""

import errno
from dataclasses import replace

import pytest
from driven import BLUE, RED, WEB, netns

from app.kernel import messages
from app.model.errors import KernelRefused


def port(sandbox, name="veth1"):
    link = sandbox.host.links()[name]
    return link.hairpin, link.isolated, link.locked, link.learning


def test_isolated_ports_reach_the_bridge_and_not_one_another(sandbox, kernel):
    red, blue = replace(RED, isolated=True), replace(BLUE, isolated=True)
    kernel.make(WEB, netns("red"), netns("blue"), red, blue)
    assert port(sandbox) == (False, True, False, True)
    assert kernel.is_kept(red, blue)
    inside = sandbox.netns("red")
    assert inside.ping("10.5.0.1")
    assert not inside.ping("10.5.0.3", timeout=0.15)
    assert not inside.ping("fd05::3", timeout=0.15)
    kernel.change(red, RED)
    kernel.change(blue, BLUE)
    assert kernel.is_kept(RED, BLUE)
    inside.exec(["ip", "neighbour", "flush", "all"])
    assert inside.ping("10.5.0.3")
    sandbox.host.exec(["bridge", "link", "set", "dev", "veth1", "isolated", "on"])
    assert not kernel.is_kept(RED)


def test_a_locked_port_lets_its_own_mac_out_only(sandbox, kernel):
    red = replace(RED, locked=True)
    kernel.make(WEB, netns("red"), netns("blue"), red, BLUE)
    assert port(sandbox) == (False, False, True, False)
    assert kernel.is_kept(red, BLUE)
    inside = sandbox.netns("red")
    assert inside.ping("10.5.0.1")
    assert sandbox.netns("blue").ping("fd05::2", count=3)
    inside.exec(["ip", "link", "set", "eth0", "address", "02:00:00:00:02:77"])
    assert not inside.ping("10.5.0.1", timeout=0.15)
    kernel.change(red, RED)
    inside.exec(["ip", "neighbour", "flush", "all"])
    assert inside.ping("10.5.0.1")
    assert "static" not in sandbox.host.exec(["bridge", "fdb", "show", "dev", "veth1"]).stdout
    inside.exec(["ip", "link", "set", "eth0", "address", RED.mac])
    assert kernel.is_kept(RED)
    kernel.change(RED, red)
    assert kernel.is_kept(red)
    assert inside.ping("10.5.0.1")


def test_a_lock_forgets_what_the_port_learnt(sandbox, kernel):
    kernel.make(WEB, netns("red"), RED)
    inside = sandbox.netns("red")
    inside.exec(["ip", "link", "set", "eth0", "address", "02:00:00:00:02:77"])
    assert inside.ping("10.5.0.1")
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
    assert sandbox.netns("red").ping("10.5.0.1")


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
