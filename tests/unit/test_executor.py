"""Operations done in order, taken back in reverse; removing goes on."""

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from app.kernel.fake import FakeKernel
from app.kernel.fakeworld import Route
from app.model.errors import KernelRefused, NamespaceMissing
from app.model.host import FirewallReport
from app.model.ops import Op
from app.model.spec import NetnsKind, NetnsRef, Protocol
from app.model.state import Attachment, Bridge, DefaultRoute, HostPort, Netns, NetworkPolicy, PortForward, state_of
from app.planner.diff import diff
from app.reconcile.executor import Executor

RED = NetnsRef(NetnsKind.NAME, "red")
GATEWAY = ip_interface("10.0.0.1/24")
BRIDGE = Bridge("7", "web", "02:00:00:00:00:01", 1500, frozenset({GATEWAY}), ipv6=False)
VETH = Attachment(
    owner="8",
    host_ifname="veth8",
    bridge="web",
    netns=RED,
    namespace_key="name:red",
    ifname="eth0",
    mac="02:00:00:00:00:02",
    mtu=1500,
    addresses=frozenset({ip_interface("10.0.0.2/24")}),
    ipv6=False,
    hairpin=False,
)
ROUTE = DefaultRoute("8", RED, "name:red", ip_address("10.0.0.1"), "eth0")
PORT = HostPort("9", Protocol.UDP, ip_address("0.0.0.0"), 53)
POLICY = NetworkPolicy("7", "web", ip_network("10.0.0.0/24"), routed=True, isolated=True, masquerade=True)
FORWARD = PortForward("9", "web", Protocol.UDP, PORT.address, 53, ip_address("10.0.0.2"), 53)
ALL = state_of(Netns("red", "8"), PORT, POLICY, FORWARD, BRIDGE, VETH, ROUTE)


class Rules:
    """A firewall that keeps what it was told. refuse: it fails; troubled: what others' rules do, by network."""

    name = "rules"

    def __init__(self):
        self.items, self.calls, self.repairs, self.refuse = {}, [], 0, False
        self.troubled, self.looks = {}, 0

    def apply(self, ops):
        if self.refuse:
            raise KernelRefused(errno.EBUSY, "iptables")
        self.calls.append(list(ops))
        for op in ops:
            assert self.items.get(op.item.key) == op.before
            if op.after is None:
                del self.items[op.item.key]
            else:
                self.items[op.item.key] = op.after
        return [f"iptables for {' '.join(op.item.key)}" for op in ops]

    def sync(self, items):
        if self.refuse:
            raise KernelRefused(errno.EBUSY, "iptables")
        former, self.items = self.items, {item.key: item for item in items}
        found = ["rules were not as wanted"] if former != self.items else []
        self.repairs += len(found)
        return found

    def changed(self, *, touched):
        return touched

    def trouble(self, owner):
        return self.troubled.get(owner, "") if self.looks else ""

    def look(self):
        self.looks += 1

    def report(self):
        return FirewallReport(self.name, "", legacy_ipv4=False, legacy_ipv6=False, nftables=False)


@pytest.fixture
def kernel():
    return FakeKernel()


@pytest.fixture
def rules():
    return Rules()


@pytest.fixture
def executor(kernel, rules):
    return Executor(kernel, rules)


def fails(kernel, kind, *, removing=False):
    kernel.refuse(lambda op: isinstance(op.item, kind) and (op.after is None) is removing)


def test_everything_up_and_down_leaves_nothing(executor, kernel, rules):
    before = kernel.snapshot()
    done = executor.run(diff(ALL, {})).done
    assert len(done) == len(ALL)
    assert diff(ALL, {item.key: item for item in kernel.observe(ALL.values())} | rules.items) == []
    assert len(rules.calls) == 1
    executor.run(diff({}, ALL))
    assert kernel.snapshot() == before
    assert rules.items == {}


@pytest.mark.parametrize("kind", [Netns, HostPort, Bridge, Attachment, DefaultRoute])
def test_a_refusal_takes_everything_back_in_reverse(executor, kernel, rules, kind):
    before = kernel.snapshot()
    fails(kernel, kind)
    with pytest.raises(KernelRefused):
        executor.run(diff(ALL, {}))
    assert kernel.snapshot() == before
    assert rules.items == {}
    made = [op.item.key for op in kernel.log if op.after is not None]
    gone = [op.item.key for op in kernel.log if op.after is None]
    assert gone == made[::-1]


def test_the_firewall_s_refusal_takes_everything_back(executor, kernel, rules):
    before = kernel.snapshot()
    rules.refuse = True
    with pytest.raises(KernelRefused, match="EBUSY"):
        executor.run(diff(ALL, {}))
    assert kernel.snapshot() == before


def test_a_change_is_taken_back_too(executor, kernel, rules):
    executor.run(diff(ALL, {}))
    before = kernel.snapshot()
    wider = replace(BRIDGE, mtu=9000)
    fails(kernel, Attachment)
    with pytest.raises(KernelRefused):
        executor.run([Op(BRIDGE, wider), Op(VETH, replace(VETH, mtu=9000))])
    assert kernel.snapshot() == before


def test_removing_goes_on_past_a_refusal_and_tells(executor, kernel, rules):
    executor.run(diff(ALL, {}))
    fails(kernel, Attachment, removing=True)
    outcome = executor.run(diff({}, ALL))
    assert [op.item for op, _refusal in outcome.refused] == [VETH]
    assert len(outcome.done) == len(ALL) - 1
    assert "web" not in kernel.host.links
    assert rules.items == {}


def test_a_namespace_s_own_default_route_is_tolerated(executor, kernel):
    kernel.add_namespace("red").routes[4] = Route(ip_address("9.9.9.9"), "own0", ours=False)
    outcome = executor.run(diff(ALL, {}))
    assert [op.item for op, _refusal in outcome.refused] == [ROUTE]


def test_run_each_goes_on(executor, kernel, rules):
    fails(kernel, HostPort)
    outcome = executor.run_each(diff(ALL, {}))
    assert [op.item for op, _refusal in outcome.refused] == [PORT]
    assert len(outcome.done) == len(ALL) - 1


def test_an_undo_goes_on_past_a_refusal(executor, kernel, rules):
    done = executor.run(diff(ALL, {})).done
    fails(kernel, Attachment, removing=True)
    executor.undo(done)
    assert "web" not in kernel.host.links
    assert rules.items == {}


def test_flows_of_both_sides_are_flushed(executor, kernel, rules):
    executor.run(diff(ALL, {}))
    kernel.flushed.clear()
    moved = replace(FORWARD, target_ip=ip_address("10.0.0.3"))
    executor.run([Op(FORWARD, moved)])
    assert kernel.flushed == [FORWARD, moved]


def test_making_twice_is_refused_by_the_kernel(kernel):
    kernel.apply(Op(None, BRIDGE))
    with pytest.raises(KernelRefused, match="EEXIST"):
        kernel.apply(Op(None, BRIDGE))
    kernel.add_namespace("red")
    with pytest.raises(KernelRefused, match="ENODEV"):
        kernel.apply(Op(None, replace(VETH, bridge="nope")))


def test_a_route_that_moved_comes_back_with_its_link(executor, kernel):
    second = replace(
        VETH,
        owner="9",
        host_ifname="veth9",
        ifname="eth1",
        mac="02:00:00:00:00:03",
        addresses=frozenset({ip_interface("10.0.0.3/24")}),
    )
    state = ALL | state_of(second)
    executor.run(diff(state, {}))
    before = kernel.snapshot()
    moved = replace(ROUTE, owner="9", ifname="eth1")
    done = executor.run([Op(VETH, None), Op(ROUTE, moved)]).done
    executor.undo(done)
    assert kernel.snapshot() == before
    assert not executor.stuck


def test_an_undo_goes_on_past_what_nobody_expected(executor, kernel, rules):
    done = executor.run(diff(ALL, {})).done
    kernel.refuse(lambda op: isinstance(op.item, Attachment), OSError(errno.EIO, "I/O error"))
    executor.undo(done)
    assert executor.stuck
    assert "web" not in kernel.host.links
    assert rules.items == {}


def test_an_undo_in_a_namespace_that_is_gone_is_said_without_a_traceback(executor, kernel, caplog):
    executor.run(diff(ALL, {}))
    kernel._drop(kernel.names.pop("red"), "eth0")
    executor.undo([Op(VETH, None)])
    assert executor.stuck
    assert "cannot undo link veth8: namespace 'red' cannot be opened" in caplog.text
    assert "Traceback" not in caplog.text


def test_healing_goes_on_past_what_nobody_expected(executor, kernel):
    kernel.refuse(lambda op: isinstance(op.item, HostPort), OSError(errno.EIO, "I/O error"))
    outcome = executor.run_each(diff(ALL, {}))
    assert [op.item for op, _refusal in outcome.refused] == [PORT]
    assert "I/O error" in outcome.refused[0][1].detail
    assert len(outcome.done) == len(ALL) - 1


@pytest.mark.parametrize("kind", [Netns, Attachment, DefaultRoute])
def test_a_namespace_that_is_gone_is_fatal_to_its_own_object_only(executor, kernel, kind):
    kernel.refuse(lambda op: isinstance(op.item, kind), NamespaceMissing("process 5 has ended"))
    before = kernel.snapshot()
    with pytest.raises(NamespaceMissing):
        executor.run(diff(ALL, {}), own="8")
    assert kernel.snapshot() == before
    outcome = executor.run(diff(ALL, {}), own="7")
    assert kind in [type(op.item) for op, _refusal in outcome.refused]
    assert "web" in kernel.host.links


def test_another_object_s_refusal_is_fatal_where_nothing_is_gone(executor, kernel):
    fails(kernel, Attachment)
    with pytest.raises(KernelRefused, match="EPERM"):
        executor.run(diff(ALL, {}), own="7")


def test_flows_that_cannot_be_forgotten_are_told(executor, kernel):
    def broken(_forwards):
        raise OSError(errno.EIO, "I/O error")

    kernel.flush = broken
    executor.flush([FORWARD])
    assert executor.stuck
