"""What libnftables lists of a table of ours, in the words of nft_rules; and what mends it where it differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from app.firewall.nft_rules import TABLE, Container, Element, Family, element_commands, layout

Listing = list[dict[str, Any]]
"""Objects as libnftables-json(5) has them: `{"table": {...}}`, `{"rule": {...}}`, without the header."""
_PLAIN = {"inet_proto", "inet_service", "ipv4_addr"}
"""Types that are listed as we write them: most elements have no others."""
_ODD = ("?",)
"""The value of an element with more to it than we give one, such as a timeout."""


@dataclass(slots=True)
class Table:
    """A table in the kernel. definitions: of the table, its sets and chains; rules: by chain, in order."""

    definitions: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    rules: dict[str, list[Any]] = field(default_factory=dict)
    elements: set[Element] = field(default_factory=set)


def table_of(family: Family, listing: Listing) -> Table:
    """The listing of one table, without what differs from one making to the next."""
    table = Table()
    for entry in listing:
        for kind, fields in entry.items():
            plain = {key: value for key, value in fields.items() if key not in {"handle", "elem"}}
            if kind == "rule":
                table.rules.setdefault(plain.pop("chain"), []).append(plain)
                continue
            table.definitions[kind, plain["name"]] = plain
            if kind in {"set", "map"} and plain["name"] in layout(family).containers:
                table.elements.update(_elements(family, plain["name"], fields.get("elem", [])))
    return table


def _elements(family: Family, name: str, listed: list[Any]) -> Iterator[Element]:
    container = layout(family).containers[name]
    plain = _PLAIN.issuperset((*container.key, *container.value)) and len(container.key) > 1 < len(container.value)
    for one in listed:
        if plain and (words := _plain_words(container, one)) is not None:
            yield Element(family, name, *words)
            continue
        key, value = one if container.value else (one, None)
        if isinstance(key, dict) and "elem" in key:
            yield Element(family, name, _words(container.key, key["elem"]["val"]), _ODD)
        else:
            yield Element(family, name, _words(container.key, key), _words(container.value, value))


def _plain_words(container: Container, listed: list[Any]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Key and value of a published port as most are listed, of which there are thousands; None for any other."""
    if {*map(type, listed)} != {dict}:
        return None
    key, value = listed[0].get("concat", ()), listed[1].get("concat", ())
    if len(key) != len(container.key) or len(value) != len(container.value) or dict in map(type, (*key, *value)):
        return None
    return tuple(map(str, key)), tuple(map(str, value))


def _words(types: tuple[str, ...], listed: Any) -> tuple[str, ...]:
    if not types:
        return ()
    parts = listed["concat"] if isinstance(listed, dict) and "concat" in listed else [listed]
    if len(parts) != len(types):
        raise ValueError(f"{listed} is no key or value of {types}")
    return tuple(map(_word, types, parts))


def _word(kind: str, part: Any) -> str:
    if kind in _PLAIN and not isinstance(part, dict):
        return str(part)
    if isinstance(part, dict):
        if "prefix" in part:
            return f"{_word(kind, part['prefix']['addr'])}/{part['prefix']['len']}"
        if "range" in part:
            return "-".join(_word(kind, end) for end in part["range"])
        return " ".join(str(word) for word in part)  # a verdict
    if kind == "ipv6_addr":
        return str(ip_address(part))  # C and Python write some of them differently
    if kind.startswith("@"):
        return f"0x{int(part, 16) if isinstance(part, str) else part:032x}"
    return str(part)


def mend(family: Family, elements: set[Element], there: Table | None, reference: Table) -> tuple[list[str], list[str]]:
    """Commands that bring a table to these elements, and what was wrong, one line each.

    reference: the table as it is right after it was made.
    """
    label = f"nftables table {family} {TABLE}"
    removing = [f"delete table {family} {TABLE}"]
    if there is None:
        return (_making(family, elements), [f"{label} was missing"]) if elements else ([], [])
    if not elements:
        return removing, [f"{label} was left over"]
    if there.definitions != reference.definitions:
        names = {name for kind, name in there.definitions.keys() ^ reference.definitions.keys()}
        return [*removing, *_making(family, elements)], [
            f"{label}: not as wanted: {', '.join(sorted(names)) or 'definitions'}"
        ]
    commands, found = _mend_rules(family, there, reference, label)
    surplus, missing = there.elements - elements, elements - there.elements
    commands += [*element_commands("delete", surplus), *element_commands("add", missing)]
    found += [*_said(label, "held", surplus), *_said(label, "lacked", missing)]
    return commands, found


def _making(family: Family, elements: set[Element]) -> list[str]:
    return [*layout(family).commands(), *element_commands("add", elements)]


def _said(label: str, verb: str, elements: set[Element]) -> Iterator[str]:
    for name in sorted({one.container for one in elements}):
        texts = sorted(one.text() for one in elements if one.container == name)
        more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
        yield f"{label}: {name} {verb} {texts[0]}{more}"


def _mend_rules(family: Family, there: Table, reference: Table, label: str) -> tuple[list[str], list[str]]:
    wrong = [name for name in layout(family).chains if there.rules.get(name) != reference.rules.get(name)]
    commands = [
        line for name in wrong for line in (f"flush chain {family} {TABLE} {name}", *layout(family).filling(name))
    ]
    return commands, [f"{label}: chain {name} was not as wanted" for name in wrong]
