"""The audit log: one line for each change that was made, and for each that was refused.

A line is a JSON object: `at`, `who`, `verb`, `kind`, `outcome` (`ok`, or an error's code), and what is known of
`id`, `name`, `before`, `after`, `detail`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from app.model.access import Principal
from app.services.context import Key

log = logging.getLogger("bridgehead.audit")


def changed(by: Principal, key: Key, before: Any, after: Any, detail: str = "") -> None:
    """An object as it was committed; None: not there. Of one that stays, the fields that differ are written."""
    if before == after or not log.isEnabledFor(logging.INFO):
        return
    kind, identity = key
    verb = "create" if before is None else "delete" if after is None else "change"
    former, current = (None if one is None else _fields(one) for one in (before, after))
    if former is not None and current is not None:
        different = [name for name in current if former.get(name) != current[name]]
        former, current = ({name: one.get(name) for name in different} for one in (former, current))
    named = after if after is not None else before
    _write(
        who=by.shown,
        verb=verb,
        kind=kind,
        id=identity,
        name=getattr(named, "name", None),
        outcome="ok",
        before=former,
        after=current,
        **({"detail": detail} if detail else {}),
    )


def token_changed(verb: str, name: str) -> None:
    """A token was made, given a new secret or removed, on the state directory's files, which are root's."""
    _write(who="files of the state directory", verb=verb, kind="token", name=name, outcome="ok")


def refused(who: str, method: str, path: str, code: str, detail: str) -> None:
    """A request that would have changed something, and did not."""
    kind, _slash, ref = path.removeprefix("/ipam").strip("/").partition("/")
    _write(who=who, verb=method, kind=kind.removesuffix("s"), name=ref or None, outcome=code, detail=detail)


def _write(**members: Any) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    log.info("%s", _encoded({"at": at, **members}))


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _names(type(value))}


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(kind: type) -> tuple[str, ...]:
    if kind not in _NAMES:
        _NAMES[kind] = tuple(field.name for field in dataclasses.fields(kind))
    return _NAMES[kind]


def _plain(value: Any) -> Any:
    """What JSON has no form for."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    return _fields(value) if dataclasses.is_dataclass(value) else str(value)


_encoded = json.JSONEncoder(default=_plain).encode
"""Made once: json.dumps makes another one each time."""
