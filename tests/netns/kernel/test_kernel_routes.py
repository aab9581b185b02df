"""Default routes inside a namespace: ours comes, moves and goes, and never beats another's."""

import errno
import re
from dataclasses import replace
from ipaddress import ip_address

import pytest
from driven import BOTH, RED, WEB, attachment, bridge, netns, route

from app.kernel.wire import ROUTE_PROTOCOL
from app.model.errors import KernelRefused


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
