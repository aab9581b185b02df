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
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from app.firewall.ruleset import Chain, Match, Rule
from app.model.errors import KernelRefused
from app.model.spec import IPNetwork

_NET = Path("/proc/thread-self/net")
_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32sI5I5III")
_ENTRIES_AT = 40
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_NO_GOTO, _TRIES = -1, 5
_VERDICTS = {-1: "drop", -2: "accept", -5: "return"}
_INV_IN, _INV_OUT, _INV_SOURCE, _INV_DESTINATION = 0x01, 0x02, 0x08, 0x10
_MAYBE = Match("other")


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


def chains() -> list[Chain]:
    """Every chain of every loaded table. Raises KernelRefused."""
    tables = loaded()
    return [
        chain for family in _FAMILIES for table in tables.get(family.name, ()) for chain in _read(family, table)
    ]


def _read(family: _Family, table: str) -> list[Chain]:
    for _attempt in range(_TRIES):
        with socket.socket(family.address_family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as asking:
            info = _INFO.unpack(_ask(asking, family, _GET_INFO, table, bytes(_INFO.size - 32)))
            size = info[-1]
            try:
                raw = _ask(asking, family, _GET_ENTRIES, table, struct.pack("=II", size, 0) + bytes(size))
            except KernelRefused as refusal:
                if refusal.errno != errno.EAGAIN:
                    raise
                continue  # it changed between the two questions
        return list(_chains(family, table, info, raw[_ENTRIES_AT:]))
    raise KernelRefused(errno.EAGAIN, f"{family.name}tables-legacy-save -t {table}")


def _ask(asking: socket.socket, family: _Family, option: int, table: str, rest: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(table.encode().ljust(32, b"\0") + rest, 32 + len(rest))
    length = ctypes.c_uint(len(buffer))
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(asking.fileno(), family.level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise KernelRefused(code, f"{family.name}tables-legacy-save -t {table}", os.strerror(code))
    return buffer.raw


def _chains(family: _Family, table: str, info: tuple[Any, ...], raw: bytes) -> Iterator[Chain]:
    """Chains follow one another: a built-in one ends with its policy, any other begins with its name."""
    valid, entries_of, policies = info[1], info[2:7], info[7:12]
    hooks = [hook for hook in range(5) if valid >> hook & 1]
    heads = {entries_of[hook]: _HOOKS[hook] for hook in hooks}
    ends = {policies[hook] for hook in hooks}
    entries = dict(_entries(family, raw))
    names = {after: name for _at, (after, name, _rule, _goto) in entries.items() if name}
    names |= heads
    current: Chain | None = None
    for at, (after, name, rule, goto) in entries.items():
        if at in heads:
            hook = heads[at].lower()
            current = Chain(family.name, table, heads[at], hook, legacy=True)
        if name:  # the head of a chain, or the table's end
            if current is not None and not current.hook and current.rules:
                current.rules.pop()  # the implied return
            if current is not None:
                yield current
            current = Chain(family.name, table, name, legacy=True) if after < len(raw) else None
        elif current is not None and at in ends:
            current.policy = rule.verdict
            yield current
            current = None
        elif current is not None:
            if goto not in (_NO_GOTO, after):
                rule = Rule(rule.matches, rule.verdict, names.get(goto, ""))
            elif goto == after:
                rule = Rule(rule.matches)  # no target at all
            current.rules.append(rule)


def _entries(family: _Family, raw: bytes) -> Iterator[tuple[int, tuple[int, str, Rule, int]]]:
    """By offset: where the next one is, the chain's name where it is a head, the rule, and where it jumps."""
    at = 0
    while at < len(raw):
        target, size = struct.unpack_from("=HH", raw, at + family.offsets_at)
        yield at, (at + size, *_target(family, raw, at, target))
        at += size


def _target(family: _Family, raw: bytes, at: int, target: int) -> tuple[str, Rule, int]:
    name = _text(raw[at + target + 2 : at + target + 31])
    if name == "ERROR":
        return _text(raw[at + target + 32 : at + target + 62]), Rule(), _NO_GOTO
    matches = tuple(_matches(family, raw[at : at + target]))
    if name:
        verdict = {"REJECT": "reject", "DROP": "drop"}.get(name, "")
        return "", Rule(matches, verdict), _NO_GOTO
    (code,) = struct.unpack_from("=i", raw, at + target + 32)
    if code < 0:
        return "", Rule(matches, _VERDICTS.get(code, "")), _NO_GOTO
    goes = raw[at + family.flags_at] & family.goto
    return "", Rule(matches, "goto" if goes else "jump"), code


def _matches(family: _Family, entry: bytes) -> Iterator[Match]:
    width = family.width
    source, destination, source_mask, destination_mask = (entry[part * width : (part + 1) * width] for part in range(4))
    interfaces = entry[4 * width : 4 * width + 64]
    inverted = entry[family.flags_at + 1]
    for name, mask, match, flag in ((0, 32, "iif", _INV_IN), (16, 48, "oif", _INV_OUT)):
        value = _text(interfaces[name : name + 16])
        if value:
            exact = interfaces[mask + len(value)] != 0  # the mask covers the name's end too
            yield Match("iif" if match == "iif" else "oif", (value if exact else f"{value[:-1]}*",), bool(inverted & flag))
    for address, netmask, own, flag in (
        (source, source_mask, True, _INV_SOURCE),
        (destination, destination_mask, False, _INV_DESTINATION),
    ):
        if any(netmask):
            network = _network(address, netmask)
            yield Match("saddr" if own else "daddr", (network,), bool(inverted & flag)) if network else _MAYBE
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
