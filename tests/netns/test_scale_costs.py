"""What a look at many endpoints costs, in what no machine changes: sends, entries of namespaces, settings read."""

import pytest
from driven import attachment, bridge, driven, netns, route, setting

from app.kernel import libc, sysctl
from app.kernel.mirror import HostMirror
from app.kernel.netlink import Rtnl
from app.kernel.parse import parse_link_settings
from app.kernel.wire import Netlink

WEB = bridge("web", "10.5.0.1/16", "fd05::1/64")
LOCALNET = setting("net/ipv4/conf/web/route_localnet")
ONCE = 2
"""Sends of a look that are there without endpoints, at most."""


@pytest.fixture
def ipv6():
    return True


@pytest.fixture
def kernel(sandbox, tmp_path):
    with driven(sandbox, tmp_path) as made:
        made.make(WEB, LOCALNET)
        yield made


def endpoints(kernel, count, *addresses, gateways):
    """As many, each in a namespace of its own; all items of them."""
    items = []
    for number in range(1, count + 1):
        made = attachment(f"n{number}", *(one.format(number + 1) for one in addresses), number=number)
        items += [netns(made.netns.value), made, *(route(made, gateway) for gateway in gateways)]
    kernel.make(*items)
    return items


@pytest.fixture
def counted(sandbox, monkeypatch):
    """What a work does: sends, entries of namespaces, settings read, walks over all links."""

    def count(work):
        done = {"entries": 0, "settings": 0, "walks": 0}

        def counting(name, real):
            def wrapper(*arguments, **options):
                done[name] += 1
                return real(*arguments, **options)

            return wrapper

        def inside():
            with monkeypatch.context() as patch:
                patch.setattr(libc, "setns", counting("entries", libc.setns))
                patch.setattr(sysctl, "read", counting("settings", sysctl.read))
                patch.setattr(HostMirror, "links", counting("walks", HostMirror.links))
                before = Netlink.sent
                work()
                return {**done, "sends": Netlink.sent - before}

        return sandbox.host.run(inside)

    return count


@pytest.mark.parametrize(
    ("addresses", "gateways", "each"),
    [(["10.5.0.{}/16"], ["10.5.0.1"], 3), (["10.5.0.{}/16", "fd05::{}/64"], ["10.5.0.1", "fd05::1"], 4)],
    ids=["ipv4", "dual-stack"],
)
@pytest.mark.parametrize("count", [20, 200])
def test_a_full_look(kernel, counted, figure, count, addresses, gateways, each):
    items = [WEB, LOCALNET, *endpoints(kernel, count, *addresses, gateways=gateways)]
    assert kernel.is_kept(*items)
    cost = counted(lambda: kernel.kernel.observe(items))
    figure(f"{count} endpoints: {cost}")
    assert cost["sends"] <= each * count + ONCE
    assert cost["entries"] <= 2 * count  # into each, and out again
    assert cost["settings"] <= 3  # of the bridge


@pytest.mark.parametrize("count", [2, 40])
def test_a_tick_of_the_timer(kernel, counted, figure, count):
    endpoints(kernel, count, "10.5.0.{}/16", gateways=["10.5.0.1"])
    cost = counted(lambda: kernel.kernel.observe_items([LOCALNET]))
    figure(f"{count} endpoints: {cost}")
    assert cost == {"sends": 0, "entries": 0, "settings": 1, "walks": 0}


@pytest.mark.parametrize("off", ["0", "1"])
@pytest.mark.parametrize("strict", ["0", "1", "2"])
def test_a_link_s_settings_by_its_message(sandbox, kernel, strict, off):
    made = attachment("red", "10.5.0.2/16", number=1)
    kernel.make(netns("red"), made)
    red = sandbox.netns("red")
    red.run(lambda: sysctl.write("net/ipv4/conf/eth0/rp_filter", strict))
    red.run(lambda: sysctl.write("net/ipv6/conf/eth0/disable_ipv6", off))
    raws = red.run(_raw_links)
    assert (off == "0", int(strict)) in [parse_link_settings(raw) for raw in raws if b"eth0\0" in raw]


def _raw_links():
    with Rtnl() as rtnl:
        return rtnl.raw_links()


def test_two_endpoints_of_one_namespace_are_one_visit(kernel, counted):
    other = bridge("back", "10.6.0.1/16")
    one = attachment("red", "10.5.0.2/16", number=1)
    two = attachment("red", "10.6.0.2/16", number=2, bridge="back", ifname="eth1")
    items = [WEB, other, netns("red"), one, two, route(one, "10.5.0.1")]
    kernel.make(*items[1:])
    assert kernel.is_kept(*items)
    assert counted(lambda: kernel.kernel.observe(items))["entries"] == 2
