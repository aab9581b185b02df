"""From desired and observed items to operations, in an order that is safe at every step."""

from __future__ import annotations

from app.model.ops import Op
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    HostPort,
    Item,
    Netns,
    NetworkPolicy,
    PortForward,
    SourceGuard,
    State,
    Sysctl,
)


def _ranks(*kinds: type) -> dict[type, int]:
    return {kind: rank for rank, kind in enumerate(kinds)}


# up: the firewall before links and settings; down: the firewall before links, but row 9's drop (a policy's) after
# route_localnet, and what guards a link after it; the port last
_UP = _ranks(
    Netns,
    HostPort,
    NetworkPolicy,
    PortForward,
    SourceGuard,
    Bridge,
    Sysctl,
    Attachment,
    DefaultRoute,
    ForeignLink,
)
_DOWN = _ranks(
    PortForward,
    Sysctl,
    NetworkPolicy,
    DefaultRoute,
    Attachment,
    SourceGuard,
    ForeignLink,
    Bridge,
    Netns,
    HostPort,
)
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
    down.sort(key=lambda op: _DOWN[type(op.item)])
    up.sort(key=lambda op: _UP[type(op.item)])
    return down + up


def _must_be_remade(before: Item, after: Item) -> bool:
    if type(before) is not type(after):
        return True
    return any(getattr(before, name) != getattr(after, name) for name in _REMADE_IF.get(type(after), ()))
