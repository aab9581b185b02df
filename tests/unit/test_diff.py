"""From observed to desired, and back."""

from hypothesis import given
from items import item, states

from app.model.commands import commands
from app.model.ops import Op
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    FirewallItem,
    ForeignLink,
    HostPort,
    Netns,
    NetworkPolicy,
    PortForward,
    SourceGuard,
    Sysctl,
    TrafficItem,
)
from app.planner.diff import diff

LINKS = Bridge | Attachment


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
def test_the_inverses_in_reverse_lead_back(desired, observed):
    ops = diff(desired, observed)
    assert applied(applied(observed, ops), [op.inverse for op in reversed(ops)]) == observed


@given(states)
def test_nothing_to_do_for_what_is_there(state):
    assert diff(state, state) == []


def position(ops, kind, *, removing):
    return [number for number, op in enumerate(ops) if isinstance(op.item, kind) and (op.after is None) is removing]


def before(ops, first, second, *, removing):
    ones, others = position(ops, first, removing=removing), position(ops, second, removing=removing)
    return not ones or not others or max(ones) < min(others)


@given(states, states)
def test_the_order_up(desired, observed):
    ops = diff(desired, observed)
    for first, second in (
        (HostPort, FirewallItem),
        (FirewallItem, LINKS | Sysctl | DefaultRoute),
        (Netns, Attachment),
        (Bridge, Sysctl),
        (Bridge, Attachment),
        (Attachment, DefaultRoute),
    ):
        assert before(ops, first, second, removing=False)


@given(states, states)
def test_the_order_down(desired, observed):
    ops = diff(desired, observed)
    for first, second in (
        (TrafficItem, LINKS | ForeignLink | DefaultRoute),
        (PortForward, Sysctl),
        (Sysctl, NetworkPolicy),
        (Attachment, SourceGuard),
        (FirewallItem, HostPort),
        (DefaultRoute, Attachment),
        (Attachment, Bridge),
        (Attachment, Netns),
        (Sysctl, Bridge),
    ):
        assert before(ops, first, second, removing=True)
    goes = [op.after is None for op in ops]
    assert goes == sorted(goes, reverse=True)


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
