"""What an operation of healing says of what was found: for the status while it lasts, and for the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import fields

from app.model.commands import commands
from app.model.ops import Op
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    Item,
    LoopbackRoute,
    Netns,
    Sysctl,
    in_order,
)

log = logging.getLogger("bridgehead.worker")

_LINK_WORDS = {"up": ("is down", "is up"), "connected": ("has no route to its subnet", "has a route to its subnet")}


def difference(op: Op) -> str:
    """One line, such as `bridge web is down`."""
    before, after = op.before, op.after
    if after is None:
        return f"{_name(op.item)} is not what it was"
    if before is None:
        return f"{_name(after)} is missing"
    if isinstance(after, Sysctl) and isinstance(before, Sysctl):
        return f"{_name(after)} is {before.value}, not {after.value}"
    if isinstance(after, Bridge | Attachment) and isinstance(before, Bridge | Attachment):
        return f"{_name(after)} {', '.join(_link_differences(before, after)) or 'differs'}"
    return f"{_name(after)} is not as wanted"


def log_healed(done: Iterable[Op]) -> None:
    """What was found, and what was done about it."""
    for op in done:
        log.warning("healed: %s: %s", difference(op), "; ".join(commands(op)) or "put back")


def _name(item: Item) -> str:
    match item:
        case Bridge():
            return f"bridge {item.name}"
        case Attachment():
            return f"link {item.host_ifname} ({item.ifname} in {item.netns})"
        case DefaultRoute():
            return f"IPv{item.version} default route via {item.via} in {item.netns}"
        case Netns():
            return f"namespace '{item.name}'"
        case Sysctl():
            return item.path
        case LoopbackRoute():
            return f"route of ::1 by {item.bridge}"
        case _:
            return " ".join(item.key)


def _link_differences(before: Bridge | Attachment, after: Bridge | Attachment) -> list[str]:
    found: list[str] = []
    for field in fields(after):
        was, wanted = getattr(before, field.name, None), getattr(after, field.name)
        if was == wanted or not field.compare:
            continue
        if field.name == "addresses":
            found += [f"lacks {one}" for one in in_order(after.addresses - before.addresses)]
            found += [f"has {one}" for one in in_order(before.addresses - after.addresses)]
        elif field.name in _LINK_WORDS:
            found.append(_LINK_WORDS[field.name][bool(was)])
        elif isinstance(wanted, bool):
            found.append(f"has {field.name} {'off' if wanted else 'on'}")
        else:
            found.append(f"has {field.name} {was or 'none'}, not {wanted}")
    return found
