"""What each object's status says, from what it wants and what the kernel refused."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping

from app.model.errors import BridgeheadError, KernelRefused, NamespaceMissing
from app.model.ops import Op
from app.model.spec import Portmap
from app.model.state import DefaultRoute, Item, NetworkPolicy, PortForward
from app.model.status import State
from app.reconcile.render import Rendered, Subject
from app.services.catalog import Catalog
from app.services.context import Key


def publish_statuses(
    catalog: Catalog,
    rendered: Mapping[Key, Rendered],
    refused: Iterable[tuple[Op, BridgeheadError]],
    hindrance: Callable[[Subject], tuple[State, str]] = lambda _subject: (State.READY, ""),
) -> None:
    """Ready, unless something of the object's own was refused; the message says each reason once.

    An object that is not rendered, for it was only concerned by the way, gets a status where it is in trouble.
    hindrance: how an object fares all of whose own is there.
    """
    troubles: dict[str, list[tuple[State, str]]] = {}
    for op, refusal in refused:
        troubles.setdefault(op.item.owner, []).append(_trouble(op, refusal))
    for (kind, identity), one in rendered.items():
        if one.subject is None or kind == "allocation":
            continue
        found = troubles.pop(identity, None)
        catalog.set_status(identity, *(_together(found) if found else _by_itself(one, hindrance)))
    for identity, found in troubles.items():
        if catalog.knows(identity):
            catalog.set_status(identity, *_together(found))


def _together(found: list[tuple[State, str]]) -> tuple[State, str]:
    """The worst of the states, and all messages."""
    states = {state for state, _message in found}
    worst = State.FAILED if State.FAILED in states else found[0][0]
    return worst, "; ".join(dict.fromkeys(message for _state, message in found))


def _trouble(op: Op, refusal: BridgeheadError) -> tuple[State, str]:
    family = _family(op.item)
    if isinstance(op.item, DefaultRoute) and isinstance(refusal, KernelRefused) and refusal.errno == errno.EEXIST:
        return State.DEGRADED, f"the namespace has an {family} default route of its own, which is left alone"
    if isinstance(refusal, NamespaceMissing):
        return State.DEGRADED, refusal.detail
    state = State.DEGRADED if op.before is not None else State.FAILED
    return state, f"{family}: {refusal.detail}" if family else refusal.detail


def _family(item: Item) -> str:
    """Where the object has one such item for each IP version: the version that it is about."""
    match item:
        case NetworkPolicy():
            return f"IPv{item.subnet.version}"
        case DefaultRoute():
            return f"IPv{item.version}"
        case _:
            return ""


def _by_itself(one: Rendered, hindrance: Callable[[Subject], tuple[State, str]]) -> tuple[State, str]:
    if one.trouble:
        return State.DEGRADED, one.trouble
    if isinstance(one.subject, Portmap) and PortForward not in map(type, one.items.values()):
        family = f"IPv{one.subject.host_ip.version}"
        return State.DEGRADED, (
            f"the endpoint's network is internal, or has no {family} gateway, or the endpoint no {family} address: "
            "nothing is forwarded to it"
        )
    return hindrance(one.subject)
