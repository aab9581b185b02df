"""Elements of sets and maps as the kernel takes them (linux/netfilter/nf_tables.h): those that change often.

libnftables takes the same as text, and two to five times as long: most of what it does is not warm when one is changed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Literal

from app.firewall.nfnetlink import Change, attribute
from app.firewall.nft_rules import TABLE, Container, Element, Family, layout

MOST = 500
"""How many of one container fit into a message: an attribute has 64 KiB."""
_NEW_ELEMENTS, _DELETE_ELEMENTS = 12, 14
_CREATE = 0x400
_NESTED = 0x8000
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_LIST_ELEMENT = _VALUE = _KEY = 1
_DATA = 2
_PLAIN: Mapping[str, Callable[[str], bytes]] = {
    "inet_proto": lambda word: bytes((int(word), 0, 0, 0)),
    "inet_service": lambda word: int(word).to_bytes(2, "big") + b"\0\0",
    "ipv4_addr": lambda word: socket.inet_pton(socket.AF_INET, word),
    "ipv6_addr": lambda word: socket.inet_pton(socket.AF_INET6, word),
}
"""Each part of a concatenation is padded to four bytes."""


@cache
def plain_containers(family: Family) -> frozenset[str]:
    """Those whose elements are packed here: of published ports."""
    return frozenset(name for name, one in layout(family).containers.items() if _is_plain(one))


def _is_plain(container: Container) -> bool:
    return len(container.key) > 1 and not container.interval and _PLAIN.keys() >= {*container.key, *container.value}


def element_changes(verb: Literal["add", "delete"], elements: Iterable[Element]) -> list[Change]:
    """What `element_commands` does, of `plain_containers`, with `MOST` elements at most."""
    grouped: dict[tuple[Family, str], list[bytes]] = {}
    adds = verb == "add"
    for one in elements:
        grouped.setdefault((one.family, one.container), []).append(_element(one, adds))
    kind, flags = (_NEW_ELEMENTS, _CREATE) if adds else (_DELETE_ELEMENTS, 0)
    return [
        Change(
            kind,
            flags,
            family,
            attribute(_TABLE, TABLE.encode() + b"\0")
            + attribute(_SET, container.encode() + b"\0")
            + attribute(_ELEMENTS | _NESTED, b"".join(packed)),
        )
        for (family, container), packed in grouped.items()
    ]


def _element(element: Element, with_data: bool) -> bytes:
    container = layout(element.family).containers[element.container]
    packed = attribute(_KEY | _NESTED, attribute(_VALUE, _concatenated(container.key, element.key)))
    if with_data and element.value:
        packed += attribute(_DATA | _NESTED, attribute(_VALUE, _concatenated(container.value, element.value)))
    return attribute(_LIST_ELEMENT | _NESTED, packed)


def _concatenated(types: tuple[str, ...], words: tuple[str, ...]) -> bytes:
    return b"".join([_PLAIN[kind](word) for kind, word in zip(types, words, strict=True)])
