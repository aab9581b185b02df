"""Values within an entry of a legacy table (x_tables.h, xt_tcpudp.h, nf_nat.h), packed by hand."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from app.firewall.rules import PREFIX, Rule
from app.model.spec import Version

_TARGET_HEADER = struct.Struct("=H29sB")
NAT_REVISIONS = {"MASQUERADE": 0, "SNAT": 1, "DNAT": 2}
_NAT_RANGE = struct.Struct("=I16s16s")  # nf_nat_range: flags, first and last address; three ports follow
_NAT_PORTS = struct.Struct("!HHH")  # first, last, and what the first stands for (DNAT only)
_MAP_ADDRESS, _MAP_PORT, _SHIFT_PORT = 1, 2, 32
_ALIGNMENT = 8
_DESTINATION_AT, _HEADER_SIZE = {4: 4, 6: 16}, {4: 112, 6: 168}  # ipt_entry, ip6t_entry
_DATA_AT, _NAME_AT, _NAME_SIZE = 32, 2, 29  # of a match or a target
_PORTS_AT, _PORTS = 4, struct.Struct("=HH")  # xt_tcp, xt_udp: those of the source come first
_MATCH_SIZE = 48
_SAMPLE_ADDRESS = {4: "192.0.2.1", 6: "2001:db8::1"}
_SAMPLE_TARGET = {4: "192.0.2.2:3", 6: "[2001:db8::2]:3"}


def sample_of(version: Version, rule: Rule) -> Rule | None:
    """A rule of the same shape, the same one for all of that shape: to a port, or to a bucket of ports.

    None for any other rule: it is made by itself.
    """
    if rule.in_interface or rule.out_interface or rule.source or rule.destination.startswith("!"):
        return None
    if "/" in rule.destination or rule.protocol not in ("tcp", "udp") or len(rule.matches) != 1:
        return None
    name, ((key, _ports), *others) = rule.matches[0]
    if name != rule.protocol or key != "dport" or others:
        return None
    sample = rule._replace(
        destination=_SAMPLE_ADDRESS[version] if rule.destination else "", matches=((name, ((key, "1:2"),)),)
    )
    if rule.target.startswith(PREFIX):
        return sample._replace(target=f"{PREFIX}X")
    if rule.target == "DNAT" and _single_port(dict(rule.options).get("to-destination", "")):
        return sample._replace(options=(("to-destination", _SAMPLE_TARGET[version]),))
    return None


def _single_port(target: str) -> bool:
    """Of `ADDRESS:PORT`; not of a range, nor of an address alone."""
    _address, _colon, port = target.rpartition(":")
    return port.isdecimal() and (target.startswith("[") or target.count(":") == 1)


def with_values(version: Version, buffer: bytes, rule: Rule) -> bytes:
    """An entry of the shape of this rule, with its values in the place of those that it has."""
    content, header = bytearray(buffer), _HEADER_SIZE[version]
    if rule.destination:
        place, address = _DESTINATION_AT[version], ip_address(rule.destination).packed
        content[place : place + len(address)] = address
    first, _colon, last = rule.matches[0][1][0][1].partition(":")
    _PORTS.pack_into(content, header + _DATA_AT + _PORTS_AT, int(first), int(last or first))
    target = header + _MATCH_SIZE
    if rule.target.startswith(PREFIX):
        content[target + _NAME_AT : target + _NAME_AT + _NAME_SIZE] = rule.target.encode().ljust(_NAME_SIZE, b"\0")
    else:
        content[target:] = nat_target(rule)
    return bytes(content)


def nat_target(rule: Rule) -> bytes:
    """A NAT target as its newest revision has it."""
    flags, address, ports = _nat_range(dict(rule.options))
    content = _NAT_RANGE.pack(flags, address, address) + ports
    if rule.target != "DNAT":
        content = content[:-2]  # nf_nat_range, not nf_nat_range2
    padding = -len(content) % _ALIGNMENT
    size = _TARGET_HEADER.size + len(content) + padding
    return _TARGET_HEADER.pack(size, rule.target.encode(), NAT_REVISIONS[rule.target]) + content + bytes(padding)


def _nat_range(options: dict[str, str]) -> tuple[int, bytes, bytes]:
    """Flags, address and ports of `--to-source ADDRESS` or `--to-destination ADDRESS:FIRST-LAST/BASE`."""
    text = options.get("to-source") or options.get("to-destination")
    if text is None:
        return 0, bytes(16), bytes(_NAT_PORTS.size)
    if text.startswith("["):
        address, _, ports = text[1:].partition("]:")
    elif text.count(":") == 1:
        address, _, ports = text.partition(":")
    else:
        address, ports = text, ""
    packed = ip_address(address).packed.ljust(16, b"\0")
    if not ports:
        return _MAP_ADDRESS, packed, bytes(_NAT_PORTS.size)
    span, _, base = ports.partition("/")
    first, _, last = span.partition("-")
    flags = _MAP_ADDRESS | _MAP_PORT | (_SHIFT_PORT if base else 0)
    return flags, packed, _NAT_PORTS.pack(int(first), int(last or first), int(base or 0))
