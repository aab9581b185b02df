"""What JSON lets pass and nobody means: a key that is there twice, of which the last would win."""

from __future__ import annotations

import json
from typing import Any

from app.model.errors import Invalid

_CHECKED_MAX = 64 << 10
"""Bytes of a body that is read once more for it: a few microseconds for a usual one."""


class _Twice(Exception):
    """Names the key."""


def require_single_keys(body: bytes) -> None:
    """Raises Invalid that names the key; where it is no JSON at all, the application says so."""
    if not 0 < len(body) <= _CHECKED_MAX:
        return
    try:
        json.loads(body, object_pairs_hook=_single)
    except _Twice as key:
        raise Invalid(f"{key}: given twice; a key stands once in an object") from None
    except (ValueError, RecursionError):
        return


def _single(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        seen: set[str] = set()
        for key, _value in pairs:
            if key in seen:
                raise _Twice(key)
            seen.add(key)
