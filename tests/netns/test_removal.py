"""What goes is gone once the kernel says so: before the deleting call returns, and its names can be used again."""

import errno
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from driven import attachment, bridge, driven, netns, route
from world import delete, endpoint, get, made, network

from app.kernel import removal
from app.kernel.events import EventsLost, KernelEvents
from app.kernel.wire import GOING_GROUPS, LINK_GROUP, RTM_NEWLINK, Packed, attribute
from app.model.errors import KernelRefused
from app.model.ops import Op
from app.model.state import ForeignLink

WEB = bridge("web", "10.5.0.1/24")
NAMES = ("red", "blue", "green", "grey")
PORTS = tuple(attachment(name, f"10.5.0.{number}/24", number=number) for number, name in enumerate(NAMES, 2))
RED = PORTS[0]
NAMESPACES = tuple(netns(name) for name in NAMES)
ALL = (*PORTS, WEB, *NAMESPACES)
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def kernel(sandbox, tmp_path):
    with driven(sandbox, tmp_path) as made:
        yield made


def make_all(kernel):
    kernel.make(WEB, *NAMESPACES, *PORTS)


def gone(kernel, *items):
    return kernel.do("remove", [Op(item, None) for item in items])


def links(sandbox):
    return sandbox.host.links().keys() & {"web", *(item.host_ifname for item in PORTS)}


def names(sandbox):
    return {name for name in NAMES if sandbox.netns(name).exists}


@pytest.fixture
def held(monkeypatch):
    """What a deleting or unmounting call did is done; that it returns is put off to the test's end, or 10 s."""
    gate, returned = threading.Event(), []

    def late(name):
        original = getattr(removal, name)

        def call(*arguments):
            original(*arguments)
            gate.wait(10)
            returned.append(name)

        monkeypatch.setattr(removal, name, call)

    late("_delete")
    late("_unmount")
    yield returned
    gate.set()


@pytest.mark.parametrize("items", [(RED,), (RED, PORTS[1]), (RED, NAMESPACES[0]), PORTS, ALL], ids=len)
def test_what_is_announced_is_gone_though_the_call_has_not_returned(sandbox, kernel, held, items):
    make_all(kernel)
    assert gone(kernel, *items) == []
    assert held == []
    assert kernel.observe(*items).keys().isdisjoint(item.key for item in items)
    kernel.make(*(item for item in (WEB, *NAMESPACES, *PORTS) if item in items))
    assert held == []
    assert kernel.is_kept(*PORTS) or WEB in items
    assert kernel.is_kept(*items)


def test_a_bridge_alone(sandbox, kernel, held):
    kernel.make(WEB)
    assert gone(kernel, WEB) == []
    kernel.make(WEB)
    assert held == []


def test_the_same_names_again_and_again(sandbox, kernel):
    for _round in range(8):
        make_all(kernel)
        assert gone(kernel, *(route(item, "10.5.0.1") for item in PORTS), *ALL) == []
        assert (links(sandbox), names(sandbox)) == (set(), set())


def test_what_is_gone_already_is_as_good(sandbox, kernel):
    make_all(kernel)
    sandbox.host.delete_link(RED.host_ifname)
    sandbox.delete_netns("blue")
    assert gone(kernel, *ALL) == []
    assert gone(kernel, *ALL) == []
    assert (links(sandbox), names(sandbox)) == (set(), set())


@pytest.mark.parametrize("items", [(RED,), (*PORTS, WEB)], ids=["one", "many"])
def test_a_refusal_is_told_and_leaves_the_link_as_it_was(sandbox, kernel, monkeypatch, items):
    make_all(kernel)

    def refuse(request):
        raise KernelRefused(errno.EPERM, request.asked())

    with monkeypatch.context() as patched:
        patched.setattr(removal, "_delete", refuse)
        refused = gone(kernel, *items, NAMESPACES[3] if items == (RED,) else RED)
    told = {op.item for op, refusal in refused if refusal.errno == errno.EPERM}
    assert told == set(items)
    assert all(sandbox.host.links()[name].group == LINK_GROUP for name in links(sandbox))
    assert kernel.is_kept(*items)
    assert names(sandbox) == set(NAMES) - ({"grey"} if items == (RED,) else set())


def test_lost_events_make_it_wait_for_the_call(sandbox, kernel, monkeypatch):
    make_all(kernel)

    def lose(_self):
        raise EventsLost

    monkeypatch.setattr(KernelEvents, "take", lose)
    assert gone(kernel, RED) == []
    assert gone(kernel, *ALL) == []
    assert (links(sandbox), names(sandbox)) == (set(), set())


# --- what is somebody else's


def add_foreign(sandbox, name, group, alias="mine"):
    sandbox.host.add_bridge(name)
    sandbox.host.exec(["ip", "link", "set", name, "group", str(group), "alias", alias])


@pytest.mark.parametrize("groups", [GOING_GROUPS[:1], GOING_GROUPS], ids=["the first", "all"])
def test_others_keep_their_links_in_these_groups(sandbox, kernel, groups):
    for group in (LINK_GROUP, *groups):
        add_foreign(sandbox, f"f{group}", group)
    make_all(kernel)
    assert gone(kernel, *ALL, *(ForeignLink("", f"f{group}") for group in groups)) == []
    assert links(sandbox) == set()
    assert {f"f{group}" for group in (LINK_GROUP, *groups)} <= sandbox.host.links().keys()


def test_a_foreign_link_that_joins_the_group_at_the_last_moment_stays(sandbox, kernel, monkeypatch):
    add_foreign(sandbox, "late", 7)
    foreign = sandbox.host.links()["late"].index
    make_all(kernel)
    move = removal.Groups.move

    def joined(groups, indices, group):
        return move(groups, [*indices, foreign] if group in GOING_GROUPS else indices, group)

    monkeypatch.setattr(removal.Groups, "move", joined)
    assert gone(kernel, *ALL) == []
    assert links(sandbox) == set()
    assert sandbox.host.links()["late"].group in GOING_GROUPS


def test_another_s_namespace_of_the_same_name_stays(sandbox, kernel):
    make_all(kernel)
    sandbox.delete_netns("red")
    inode = sandbox.add_netns("red").inode
    assert gone(kernel, *ALL) == []
    assert names(sandbox) == {"red"}
    assert sandbox.netns("red").inode == inode


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("change", ["another bridge", "renamed", "elsewhere", "host"])
def test_links_that_somebody_moved(sandbox, kernel, change, many):
    make_all(kernel)
    host, red = sandbox.host, sandbox.netns("red")
    if change == "another bridge":
        host.add_bridge("other")
        host.exec(["ip", "link", "set", RED.host_ifname, "master", "other"])
    elif change == "renamed":
        red.exec(["sh", "-c", "ip link set eth0 down && ip link set eth0 name other"])
    else:
        where = sandbox.add_netns("far") if change == "elsewhere" else host
        with where.opened() as descriptor, red.rtnl() as inner:
            body = struct.pack("=BxHiII", 0, 0, inner.index_of("eth0"), 0, 1)  # down
            body += attribute(_IFLA_IFNAME, b"moved0\0") + attribute(_IFLA_NET_NS_FD, struct.pack("=I", descriptor))
            inner.change(Packed(body), RTM_NEWLINK, 0, lambda: "move")
    items = ALL if many else (RED, NAMESPACES[0])
    assert gone(kernel, *items) == []
    assert RED.host_ifname not in links(sandbox)
    assert "moved0" not in host.links()


# --- killed on the way


def test_what_was_on_its_way_out_is_known_and_goes(sandbox, kernel):
    make_all(kernel)
    for name in ("web", RED.host_ifname):
        sandbox.host.exec(["ip", "link", "set", name, "group", str(GOING_GROUPS[5])])
    found = kernel.observe(WEB, *PORTS)
    assert found[WEB.key] == ForeignLink(WEB.owner, "web")
    assert found[RED.key] == ForeignLink(RED.owner, RED.host_ifname)
    assert gone(kernel, *found.values()) == []
    assert links(sandbox) == set()


# --- over the API


FIELDS = {"ifname": "eth7", "host_ifname": "veth7", "address": "192.168.15.7"}


@pytest.mark.parametrize("firewall", ["nftables"])
def test_everything_can_be_had_again_right_after_a_delete(api):
    for _round in range(5):
        network(api, "web", subnet="192.168.15.0/24", bridge="br7")
        for _again in range(3):
            endpoint(api, "red", name="red", **FIELDS)
            delete(api, "endpoints/red")
        for number in range(6):
            endpoint(api, f"ns{number}")
        delete(api, "networks/web?force=true")


@pytest.mark.parametrize("firewall", ["nftables"])
def test_many_clients_have_everything_again(api):
    network(api, "web", subnet="192.168.15.0/24")

    def churn(number):
        for _round in range(6):
            body = {"network": "web", "namespace": f"ns{number}", "host_ifname": f"veth{number}"}
            made(api, "endpoints", name=f"e{number}", address=f"192.168.15.{number + 10}", **body)
            delete(api, f"endpoints/e{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert get(api, "endpoints") == []
