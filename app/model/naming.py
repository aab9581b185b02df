"""Names and MAC addresses: which are legal, and which we make up."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid

from app.model.errors import Invalid

NAME_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$"
IFNAME_PATTERN = r"^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,14}$"
MAC_PATTERN = r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$"
ALIAS_PREFIX = "bridgehead:"
# `all` and `default` would shadow /proc/sys/net/*/conf's own entries: the kernel refuses them too
RESERVED_IFNAMES = frozenset({"all", "default", "lo"})


def new_id() -> str:
    """A new object's id."""
    return str(uuid.uuid4())


def alias(owner: str) -> str:
    """The mark that a link of ours carries."""
    return f"{ALIAS_PREFIX}{owner}"


def owner_of(link_alias: str | None) -> str | None:
    """The id in a link's mark, or None for a link that is not ours."""
    if link_alias is None or not link_alias.startswith(ALIAS_PREFIX):
        return None
    return link_alias.removeprefix(ALIAS_PREFIX)


def short_hash(text: str, digits: int = 10) -> str:
    """The first hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def is_ifname(name: str) -> bool:
    """Whether the kernel (dev_valid_name) and iptables take this as an interface's name."""
    return re.fullmatch(IFNAME_PATTERN, name) is not None and name not in RESERVED_IFNAMES


def check_ifname(name: str, field: str) -> str:
    """The name itself. Raises Invalid with the reason."""
    if name in RESERVED_IFNAMES:
        raise Invalid(f"{field} '{name}' is reserved by the kernel; choose another")
    if not is_ifname(name):
        raise Invalid(
            f"{field} '{name}' is not an interface name: 1 to 15 of letters, digits, '_', '.' and '-', "
            "not beginning with '.' or '-'"
        )
    return name


def check_name(name: str, field: str) -> str:
    """The name itself. Raises Invalid with the reason."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise Invalid(
            f"{field} '{name}' is not a name: 1 to 63 of letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit"
        )
    return name


def check_mac(mac: str, field: str) -> str:
    """The MAC in lower case. Raises Invalid unless it is unicast and not zero."""
    if re.fullmatch(MAC_PATTERN, mac) is None:
        raise Invalid(f"{field} '{mac}' is not a MAC address, such as 02:42:c0:a8:0f:01")
    mac = mac.lower()
    if mac == "00:00:00:00:00:00":
        raise Invalid(f"{field} '{mac}' is zero; leave it out to get a random one")
    if int(mac[:2], 16) & 1:
        raise Invalid(f"{field} '{mac}' is a multicast address: the first byte must be even")
    return mac


def random_mac() -> str:
    """A random unicast, locally administered MAC (IEEE 802, bits 0 and 1 of the first byte)."""
    return _mac(secrets.token_bytes(6))


def bridge_mac(network_id: str) -> str:
    """The fixed MAC of a network's bridge: derived, so that it needs no storing."""
    return _mac(hashlib.sha256(network_id.encode()).digest())


def _mac(raw: bytes) -> str:
    first = raw[0] & 0xFC | 0x02
    return ":".join(f"{byte:02x}" for byte in (first, *raw[1:6]))
