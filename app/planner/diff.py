"""From desired and observed items to operations, in an order that is safe at every step."""

from __future__ import annotations

from collections.abc import Sequence

from app.model.ops import Op
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    HostPort,
    Item,
    LoopbackRoute,
    Netns,
    NetworkPolicy,
    PortForward,
    SourceGuard,
    State,
    Sysctl,
)


def _ranks(*kinds: type) -> dict[type, int]:
    return {kind: rank for rank, kind in enumerate(kinds)}


# up: the firewall before links and settings, so that nothing is reachable without its rules
_UP = _ranks(
    Netns,
    HostPort,
    NetworkPolicy,
    PortForward,
    SourceGuard,
    Bridge,
    Sysctl,
    LoopbackRoute,
    Attachment,
    DefaultRoute,
    ForeignLink,
)
# down: route_localnet, and its IPv6 twin, before row 9's drop, which goes with a policy; all traffic's rules in one
# change, before the links; a link before what guards it; the port after what leads from it
_DOWN = _ranks(
    Sysctl,
    LoopbackRoute,
    PortForward,
    NetworkPolicy,
    DefaultRoute,
    Attachment,
    SourceGuard,
    ForeignLink,
    Bridge,
    HostPort,
    Netns,
)
_LAST = len(_DOWN)
_FORWARDING = frozenset({"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"})
_REMADE_IF = {
    Bridge: ("owner",),
    Attachment: ("owner", "netns", "ifname", "mac"),
}
"""What cannot change in place: an item that differs in it is removed and made anew."""


def diff(desired: State, observed: State) -> list[Op]:
    """The operations that turn `observed` into `desired`: first what goes, then what comes or changes."""
    down: list[Op] = []
    up: list[Op] = []
    for key, before in observed.items():
        after = desired.get(key)
        if after is None or _must_be_remade(before, after):
            down.append(Op(before, None))
    for key, after in desired.items():
        before_or_none = observed.get(key)
        if before_or_none is None or _must_be_remade(before_or_none, after):
            up.append(Op(None, after))
        elif before_or_none != after:
            up.append(Op(before_or_none, after))
    return _ordered(down, up)


def inverse(done: Sequence[Op]) -> list[Op]:
    """The operations that take these back, in an order that is as safe: a link comes back before a route by it."""
    ops = [op.inverse for op in reversed(done)]
    return _ordered([op for op in ops if op.after is None], [op for op in ops if op.after is not None])


def _ordered(down: list[Op], up: list[Op]) -> list[Op]:
    return sorted(down, key=lambda op: _down(op.item)) + sorted(up, key=lambda op: _UP[type(op.after)])


def _down(item: Item) -> int:
    """A setting of the whole host, forwarding, goes last of all: no network's rules or links need it by then."""
    of_host = isinstance(item, Sysctl) and item.path in _FORWARDING
    return _LAST if of_host else _DOWN[type(item)]


def _must_be_remade(before: Item, after: Item) -> bool:
    if type(before) is not type(after):
        return True
    return any(getattr(before, name) != getattr(after, name) for name in _REMADE_IF.get(type(after), ()))
