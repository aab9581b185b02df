"""What each object's status says, from what it wants and what the kernel refused."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping

from app.model.errors import BridgeheadError, KernelRefused, NamespaceMissing
from app.model.ops import Op
from app.model.spec import Network, Portmap
from app.model.state import DefaultRoute, PortForward
from app.model.status import State
from app.reconcile.render import Rendered
from app.services.catalog import Catalog
from app.services.context import Key


def publish_statuses(
    catalog: Catalog,
    rendered: Mapping[Key, Rendered],
    refused: Iterable[tuple[Op, BridgeheadError]],
    obstacle: Callable[[str], str] = lambda _owner: "",
) -> None:
    """Ready, unless something of the object's own was refused; the first refusal is what its message says.

    obstacle: what others' rules do to the traffic of a network, by its id; empty for nothing.
    """
    troubles: dict[str, tuple[State, str]] = {}
    for op, refusal in refused:
        troubles.setdefault(op.item.owner, _trouble(op, refusal))
    for (kind, identity), one in rendered.items():
        if one.subject is None or kind == "allocation":
            continue
        state, message = troubles.get(identity) or _by_itself(one, obstacle)
        catalog.set_status(identity, state, message)


def _trouble(op: Op, refusal: BridgeheadError) -> tuple[State, str]:
    if isinstance(op.item, DefaultRoute) and isinstance(refusal, KernelRefused) and refusal.errno == errno.EEXIST:
        return State.DEGRADED, "the namespace has a default route of its own, which is left alone"
    state = State.DEGRADED if op.before is not None or isinstance(refusal, NamespaceMissing) else State.FAILED
    return state, refusal.detail


def _by_itself(one: Rendered, obstacle: Callable[[str], str]) -> tuple[State, str]:
    forwarded = any(isinstance(item, PortForward) for item in one.items.values())
    if isinstance(one.subject, Portmap) and not forwarded:
        return State.DEGRADED, "the endpoint's network is internal or has no gateway: nothing is forwarded to it"
    if isinstance(one.subject, Network) and (dropped := obstacle(one.subject.id)):
        return State.DEGRADED, dropped
    return State.READY, ""
