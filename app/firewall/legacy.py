"""The legacy iptables tables, read as the kernel keeps them (ip_tables.h, ip6_tables.h).

Looking at a table loads it into the namespace for good, so only tables that are loaded are looked at. This needs none
of python-iptables: a host without legacy tables shall not pay its memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from app.firewall.ruleset import Chain, Field, Match, Rule
from app.model.errors import KernelRefused
from app.model.spec import IPNetwork

_NET = Path("/proc/thread-self/net")
_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32sI5I5III")
_ENTRIES_AT = 40
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_NOWHERE, _TRIES = -1, 5
_VERDICTS = {-1: "drop", -2: "accept", -5: "return"}
_INV_IN, _INV_OUT, _INV_SOURCE, _INV_DESTINATION = 0x01, 0x02, 0x08, 0x10
_MAYBE, _NOTHING = Match("other"), Rule()


@dataclass(frozen=True, slots=True)
class _Entry:
    """What stands at an offset: a rule, or the head of a chain; `after` is where the next one is."""

    after: int
    rule: Rule = _NOTHING
    goes_to: int = _NOWHERE
    name: str = ""


@dataclass(frozen=True, slots=True)
class _Family:
    """Where the fields of an entry are, in bytes."""

    name: str
    proc: str
    address_family: int
    level: int
    width: int  # of an address
    flags_at: int
    goto: int
    offsets_at: int  # target_offset, next_offset
    header: int


_FAMILIES = (
    _Family("ip", "ip_tables_names", socket.AF_INET, socket.SOL_IP, 4, 82, 0x02, 88, 112),
    _Family("ip6", "ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6, 16, 131, 0x04, 140, 168),
)


def loaded() -> dict[str, list[str]]:
    """The loaded tables of the calling thread's namespace by family, `ip` and `ip6`; a family without any is absent."""
    found: dict[str, list[str]] = {}
    for family in _FAMILIES:
        try:
            names = (_NET / family.proc).read_text().split()
        except FileNotFoundError:
            continue  # ip_tables itself is not in the kernel
        if names:
            found[family.name] = names
    return found


def available() -> dict[str, bool]:
    """Whether the kernel has legacy tables by now, by family; a module that could be loaded does not count."""
    return {family.name: (_NET / family.proc).exists() for family in _FAMILIES}


TABLES = ("filter", "nat", "raw", "mangle")
Outlines = dict[tuple[str, str], bytes]
"""Something of each table, by family and name, to compare with another time's."""
_SMALL = 1 << 16
"""Bytes of rules that are cheap to read several times a second; about 300 rules."""


def chains(wanted: Sequence[str] = TABLES) -> list[Chain]:
    """Every chain of those of the wanted tables that are loaded. Raises KernelRefused."""
    found: list[Chain] = []
    tables = loaded()
    for family in _FAMILIES:
        for table in tables.get(family.name, ()):
            if table in wanted:
                found += _read(family, table)
    return found


def outlines(wanted: Collection[str]) -> Outlines:
    """Of the loaded ones of these tables: how large they are, and where their chains begin. Raises KernelRefused."""
    return {(family.name, table): outline for family, table, outline in _outlined(wanted)}


def outline(version: int, table: str) -> bytes:
    """That of one table, which it loads. Raises KernelRefused."""
    family = _FAMILIES[version == 6]
    with _asking(family) as asking:
        return _outline(asking, family, table)


def contents(wanted: Collection[str]) -> Outlines:
    """The rules of those that are small, as the kernel has them. Raises KernelRefused."""
    found: Outlines = {}
    for family, table, outline in _outlined(wanted):
        if _INFO.unpack(outline)[-1] <= _SMALL:
            found[family.name, table] = _table_of(family, table)[1]
    return found


def content(version: int, table: str, outline: bytes) -> bytes | None:
    """The rules of one table, by its outline; None where it is large. Raises KernelRefused."""
    family = _FAMILIES[version == 6]
    return _table_of(family, table)[1] if _INFO.unpack(outline)[-1] <= _SMALL else None


def same_rules(before: Outlines, after: Outlines) -> bool:
    """Whether two `contents` differ in their counters at most."""
    families = {family.name: family for family in _FAMILIES}
    return before.keys() == after.keys() and all(
        raw == after[key] or _uncounted(families[key[0]], raw) == _uncounted(families[key[0]], after[key])
        for key, raw in before.items()
    )


def _outlined(wanted: Collection[str]) -> Iterator[tuple[_Family, str, bytes]]:
    tables = loaded()
    for family in _FAMILIES:
        names = [name for name in tables.get(family.name, ()) if name in wanted]
        if names:
            with _asking(family) as asking:
                for name in names:
                    yield family, name, _outline(asking, family, name)


def _outline(asking: socket.socket, family: _Family, table: str) -> bytes:
    return _ask(asking, family, _GET_INFO, table, bytes(_INFO.size - 32))


def _uncounted(family: _Family, raw: bytes) -> bytes:
    """Every entry ends its header with a counter of packets and one of bytes."""
    plain, at = bytearray(raw), 0
    while at < len(plain):
        plain[at + family.header - 16 : at + family.header] = bytes(16)
        at += struct.unpack_from("=H", plain, at + family.offsets_at + 2)[0]
    return bytes(plain)


def _asking(family: _Family) -> socket.socket:
    return socket.socket(family.address_family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)


def _table_of(family: _Family, table: str) -> tuple[tuple[Any, ...], bytes]:
    """What ipt_getinfo tells, and the entries. Raises KernelRefused."""
    for _attempt in range(_TRIES):
        with _asking(family) as asking:
            info = _INFO.unpack(_outline(asking, family, table))
            size = info[-1]
            try:
                raw = _ask(asking, family, _GET_ENTRIES, table, struct.pack("=II", size, 0) + bytes(size))
            except KernelRefused as refusal:
                if refusal.errno != errno.EAGAIN:
                    raise
                continue  # it changed between the two questions
        return info, raw[_ENTRIES_AT:]
    raise KernelRefused(errno.EAGAIN, f"{family.name}tables-legacy-save -t {table}")


def _read(family: _Family, table: str) -> list[Chain]:
    info, raw = _table_of(family, table)
    return list(_chains(family, table, info, raw))


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _ask(asking: socket.socket, family: _Family, option: int, table: str, rest: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(table.encode().ljust(32, b"\0") + rest, 32 + len(rest))
    length = ctypes.c_uint(len(buffer))
    if _libc().getsockopt(asking.fileno(), family.level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise KernelRefused(code, f"{family.name}tables-legacy-save -t {table}", os.strerror(code))
    return buffer.raw


def _chains(family: _Family, table: str, info: tuple[Any, ...], raw: bytes) -> Iterator[Chain]:
    """Chains follow one another: a built-in one ends with its policy, any other begins with its name."""
    hooks = [hook for hook in range(5) if info[1] >> hook & 1]
    heads = {info[2 + hook]: _HOOKS[hook] for hook in hooks}
    policies = {info[7 + hook] for hook in hooks}
    entries = dict(_entries(family, raw))
    names = {entry.after: entry.name for entry in entries.values() if entry.name} | heads
    chain = Chain(family.name, table, "", legacy=True)
    for at, entry in entries.items():
        if at in heads:
            chain = Chain(family.name, table, heads[at], heads[at].lower(), legacy=True)
        if entry.name:
            chain = Chain(family.name, table, entry.name, legacy=True)
        elif at in policies:
            chain.policy = entry.rule.verdict
            yield chain
        elif not chain.hook and (entry.after == len(raw) or entries[entry.after].name):
            yield chain  # what ends it is the implied return
        else:
            chain.rules.append(_resolved(entry, names))


def _resolved(entry: _Entry, names: Mapping[int, str]) -> Rule:
    """The rule, with the name of the chain that it jumps to; to the next entry is no jump at all."""
    if entry.goes_to == _NOWHERE:
        return entry.rule
    if entry.goes_to == entry.after:
        return Rule(entry.rule.matches)
    return Rule(entry.rule.matches, entry.rule.verdict, names.get(entry.goes_to, ""))


def _entries(family: _Family, raw: bytes) -> Iterator[tuple[int, _Entry]]:
    """The entries by their offset."""
    at = 0
    while at < len(raw):
        target, size = struct.unpack_from("=HH", raw, at + family.offsets_at)
        yield at, _entry(family, raw[at : at + size], target, at + size)
        at += size


def _entry(family: _Family, raw: bytes, target: int, after: int) -> _Entry:
    name = _text(raw[target + 2 : target + 31])
    if name == "ERROR":
        return _Entry(after, name=_text(raw[target + 32 : target + 62]))
    matches = tuple(_matches(family, raw[:target]))
    if name:
        return _Entry(after, Rule(matches, "reject" if name == "REJECT" else ""))
    (code,) = struct.unpack_from("=i", raw, target + 32)
    if code < 0:
        return _Entry(after, Rule(matches, _VERDICTS.get(code, "")))
    return _Entry(after, Rule(matches, "goto" if raw[family.flags_at] & family.goto else "jump"), goes_to=code)


def _matches(family: _Family, entry: bytes) -> Iterator[Match]:
    width = family.width
    addresses = [entry[part * width : (part + 1) * width] for part in range(4)]
    interfaces = entry[4 * width : 4 * width + 64]
    inverted = entry[family.flags_at + 1]
    sides: tuple[tuple[Field, int, int], ...] = (("iif", 0, _INV_IN), ("oif", 16, _INV_OUT))
    for side, start, flag in sides:
        value = _text(interfaces[start : start + 16])
        if value:
            exact = interfaces[start + 32 + len(value)] != 0  # the mask covers the name's end too
            yield Match(side, (value if exact else f"{value[:-1]}*",), bool(inverted & flag))
    ends: tuple[tuple[Field, int, int], ...] = (("saddr", 0, _INV_SOURCE), ("daddr", 1, _INV_DESTINATION))
    for end, part, flag in ends:
        if any(addresses[part + 2]):
            network = _network(addresses[part], addresses[part + 2])
            yield Match(end, (network,), bool(inverted & flag)) if network else _MAYBE
    at = family.header
    if int.from_bytes(entry[4 * width + 64 : 4 * width + 66], "little"):
        yield _MAYBE  # one protocol only
    while at < len(entry):
        if _text(entry[at + 2 : at + 31]) != "comment":
            yield _MAYBE
        at += max(8, int.from_bytes(entry[at : at + 2], "little"))


def _network(address: bytes, netmask: bytes) -> IPNetwork | None:
    """None for a mask with holes, which iptables allows."""
    bits = bin(int.from_bytes(netmask, "big"))[2:].zfill(len(netmask) * 8)
    if "01" in bits:
        return None
    found: IPv4Network | IPv6Network = ip_network((address, bits.count("1")), strict=False)
    return found


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")
