"""Address arithmetic: pure functions over both IP versions; who holds what comes in as an argument."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network

from app.model.errors import AddressOutsideSubnet, Invalid
from app.model.spec import IPAddress, IPNetwork

_CIDR_PATTERN = r"[0-9a-fA-F.:]+/[0-9]{1,3}"

Taken = Callable[[int, int], Iterable[int]]
"""Given first and last, yields the taken addresses between them in ascending order."""


def parse_network(text: str, field: str) -> IPNetwork:
    """The network a CIDR names. Raises Invalid; with host bits set it names the network that was meant."""
    example = "fd00:15::/64" if ":" in text else "192.168.15.0/24"
    unclear = f"{field} '{text}' is not a network in CIDR form, such as {example}"
    # ipaddress also takes a bare address, a netmask, and an interface's name, with which the kernel's tables choke
    if re.fullmatch(_CIDR_PATTERN, text) is None:
        raise Invalid(unclear)
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise Invalid(unclear) from None
    if int(ip_address(text.partition("/")[0])) != int(meant.network_address):
        raise Invalid(f"{field} '{text}' has host bits set; did you mean '{meant}'?")
    return meant


def parse_address(text: str, field: str) -> IPAddress:
    """The bare address a text names. Raises Invalid."""
    try:
        address = ip_address(text)
    except ValueError:
        hint = f"; without the prefix length: '{text.split('/', maxsplit=1)[0]}'" if "/" in text else ""
        raise Invalid(f"{field} '{text}' is not an IP address{hint}") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Invalid(f"{field} '{text}' names an interface; use an address that needs none, without '%'")
    return address


def bounds(subnet: IPNetwork) -> tuple[int, int]:
    """The first and last address of a subnet that an interface may carry, as integers.

    IPv4 leaves out the network and broadcast addresses except in /31 (RFC 3021) and /32; IPv6 leaves
    out the subnet-router anycast address (RFC 4291, 2.6.1) except in /127 (RFC 6164) and /128.
    """
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return first, last
    return first + 1, last - (1 if subnet.version == 4 else 0)


def size(subnet: IPNetwork) -> int:
    """How many addresses of the subnet an interface may carry."""
    first, last = bounds(subnet)
    return last - first + 1


def first_usable(subnet: IPNetwork) -> IPAddress:
    """The lowest address an interface may carry: a network's default gateway."""
    return subnet.network_address + (bounds(subnet)[0] - int(subnet.network_address))


def check_usable(address: IPAddress, subnet: IPNetwork, field: str) -> None:
    """Raises AddressOutsideSubnet or Invalid unless an interface of the subnet may carry the address."""
    first, last = bounds(subnet)
    span = f"{address_at(subnet, first)} to {address_at(subnet, last)}"
    if address.version != subnet.version or address not in subnet:
        raise AddressOutsideSubnet(f"{field} {address} is outside the subnet {subnet}; use one of {span}")
    if not first <= int(address) <= last:
        name = ("network" if subnet.version == 4 else "subnet-router anycast") if int(address) < first else "broadcast"
        raise Invalid(f"{field} {address} is the {name} address of {subnet}; use one of {span}")


def address_at(subnet: IPNetwork, value: int) -> IPAddress:
    """The address with this integer value, of the subnet's version."""
    return subnet.network_address + (value - int(subnet.network_address))


def automatic_span(subnet: IPNetwork, ip_range: IPNetwork) -> tuple[int, int]:
    """First and last automatic address: the usable ones of the subnet that lie in `ip_range`."""
    first, last = bounds(subnet)
    return max(first, int(ip_range.network_address)), min(last, int(ip_range.broadcast_address))


def next_free(first: int, last: int, cursor: int | None, taken: Taken) -> int | None:
    """The next free address after `cursor`, round robin through first..last, or None when all are taken.

    `taken` is read lazily and in order, so the cost is the run of taken addresses met, not the subnet.
    """
    if first > last:
        return None
    start = cursor + 1 if cursor is not None and first <= cursor < last else first
    found = _gap(start, last, taken)
    return found if found is not None or start == first else _gap(first, start - 1, taken)


def _gap(first: int, last: int, taken: Taken) -> int | None:
    candidate = first
    for held in taken(first, last):
        if held > candidate:
            return candidate
        candidate = held + 1
    return candidate if candidate <= last else None


def lowest_free_subnet(
    pools: Iterable[tuple[IPNetwork, int]], clash: Callable[[IPNetwork], IPNetwork | None]
) -> IPNetwork | None:
    """The lowest subnet of the pools that nothing overlaps; `clash` names the network in the way, if any.

    A clash that is larger than the candidate is jumped over whole, so a full pool costs its clashes.
    """
    for pool, prefix in pools:
        step = 1 << (pool.max_prefixlen - prefix)
        value, end = int(pool.network_address), int(pool.broadcast_address)
        while value <= end:
            candidate = ip_network((address_at(pool, value), prefix))
            in_the_way = clash(candidate)
            if in_the_way is None:
                return candidate
            beyond = max(int(in_the_way.broadcast_address), value + step - 1) + 1
            value = -(-beyond // step) * step
    return None


def random_ula() -> IPv6Network:
    """A /64 of unique local addresses: a random global id (RFC 4193, 3.2), subnet 0."""
    return IPv6Network((0xFD << 120 | secrets.randbits(40) << 80, 64))


def usual_form(pool: tuple[IPNetwork, int]) -> str:
    """A pool as the --pool flag takes it: CIDR:PREFIX."""
    return f"{pool[0]}:{pool[1]}"
