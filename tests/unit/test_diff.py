"""From observed to desired, and back."""

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from items import item, states
from test_executor import FORWARD, POLICY, ROUTE, VETH

from app.model.commands import commands
from app.model.ops import Op
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    FirewallItem,
    ForeignLink,
    HostPort,
    LoopbackRoute,
    Netns,
    SourceGuard,
    Sysctl,
    TrafficItem,
)
from app.planner.diff import diff, inverse

LINKS = Bridge | Attachment
SYSCTL = Sysctl("7", "net/ipv4/conf/web/route_localnet", "1")
GUARD = SourceGuard("8", VETH.host_ifname, VETH.mac, frozenset({ip_address("10.0.0.2")}))


def applied(state, ops):
    """Strict: what is made must not be there, what goes or changes must be there as the operation says."""
    state = dict(state)
    for op in ops:
        key = op.item.key
        assert state.get(key) == op.before
        if op.after is None:
            del state[key]
        else:
            assert op.before is None or op.before.key == op.after.key
            state[key] = op.after
    return state


@given(states, states)
def test_the_operations_lead_to_what_is_desired(desired, observed):
    ops = diff(desired, observed)
    reached = applied(observed, ops)
    assert reached == desired
    assert diff(desired, reached) == []


@given(states, states)
def test_the_inverses_lead_back_wherever_it_stopped(desired, observed):
    ops = diff(desired, observed)
    for number in range(len(ops) + 1):
        done = ops[:number]
        assert applied(applied(observed, done), inverse(done)) == observed


@given(states)
def test_nothing_to_do_for_what_is_there(state):
    assert diff(state, state) == []


def position(ops, kind, *, removing):
    return [number for number, op in enumerate(ops) if isinstance(op.item, kind) and (op.after is None) is removing]


def before(ops, first, second, *, removing):
    ones, others = position(ops, first, removing=removing), position(ops, second, removing=removing)
    return not ones or not others or max(ones) < min(others)


UP = (
    (HostPort, FirewallItem),
    (FirewallItem, LINKS | Sysctl | LoopbackRoute | DefaultRoute),
    (Netns, Attachment),
    (Bridge, Sysctl | LoopbackRoute),
    (Bridge, Attachment),
    (Attachment, DefaultRoute),
)
DOWN = (
    (LoopbackRoute, FirewallItem | LINKS),
    (TrafficItem, LINKS | ForeignLink | DefaultRoute),
    (Attachment, SourceGuard),
    (FirewallItem, HostPort),
    (DefaultRoute, Attachment),
    (Attachment, Bridge),
    (Attachment, Netns),
)


@given(states, states)
def test_the_order_forth_and_back(desired, observed):
    forth = diff(desired, observed)
    for ops in (forth, inverse(forth)):
        assert all(before(ops, first, second, removing=False) for first, second in UP)
        assert all(before(ops, first, second, removing=True) for first, second in DOWN)
        goes = [op.after is None for op in ops]
        assert goes == sorted(goes, reverse=True)


@given(states, states)
def test_route_localnet_goes_first_and_forwarding_last(desired, observed):
    gone = [op.item for op in diff(desired, observed) if op.after is None]
    forwarding = [number for number, one in enumerate(gone) if isinstance(one, Sysctl) and "forward" in one.path]
    localnet = [number for number, one in enumerate(gone) if isinstance(one, Sysctl) and "localnet" in one.path]
    assert localnet == list(range(len(localnet)))
    assert forwarding == list(range(len(gone) - len(forwarding), len(gone)))


def test_traffic_rules_go_in_one_change_and_a_guard_after_its_port():
    state = {one.key: one for one in (SYSCTL, POLICY, FORWARD, VETH, GUARD)}
    assert [op.item for op in diff({}, state)] == [SYSCTL, FORWARD, POLICY, VETH, GUARD]
    assert [op.item for op in diff(state, {})] == [POLICY, FORWARD, GUARD, SYSCTL, VETH]


def test_a_route_that_moved_is_taken_back_after_its_link_is_there_again():
    moved = replace(ROUTE, ifname="eth1")
    ops = diff({ROUTE.key: moved}, {ROUTE.key: ROUTE, VETH.key: VETH})
    assert [op.item for op in ops] == [VETH, moved]
    assert [op.item for op in inverse(ops)] == [VETH, ROUTE]


@given(states, states)
def test_what_cannot_change_in_place_is_made_anew(desired, observed):
    for op in diff(desired, observed):
        if op.before is not None and op.after is not None:
            assert type(op.before) is type(op.after)
            for name in {Bridge: ("owner",), Attachment: ("owner", "netns", "ifname", "mac")}.get(type(op.item), ()):
                assert getattr(op.before, name) == getattr(op.after, name)


@given(item)
def test_every_operation_but_a_rule_s_has_its_command(one):
    expected = not isinstance(one, FirewallItem)
    assert bool(commands(Op(one, None))) is expected
    if not isinstance(one, ForeignLink):
        assert bool(commands(Op(None, one))) is expected
