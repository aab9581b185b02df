"""Items as nftables rules and elements, as data. Rules stand still: an item is a few elements of sets and maps.

The chains of `table ip bridgehead` and `table ip6 bridgehead` (docs/dataplane.md tells the packets' outcomes,
row by row). Each runs just before the other tools' chains of its hook:

    loopback     127.0.0.0/8 from the wire dies before any DNAT (IPv6: `prerouting` leaves ::1 alone)
    forward      neighbours, closed networks, -> into: what goes to a network; what leaves one passes
    prerouting   local destinations -> published: DNAT
    output       the same for local processes
    postrouting  -> inward: hairpin and local traffic to a port; SNAT of what leaves a network

`table bridge bridgehead` holds what may come out of guarded bridge ports, before bridging and before the host's IP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv6Address
from typing import Literal, NamedTuple

from app.model.spec import IPAddress, IPNetwork, Protocol
from app.model.state import FirewallItem, NetworkPolicy, PortForward, SourceGuard

TABLE = "bridgehead"
Family = Literal["ip", "ip6", "bridge"]
_PROTOCOLS = {Protocol.TCP: "6", Protocol.UDP: "17", Protocol.SCTP: "132"}
_PROTOCOL_NAMES = {number: str(protocol) for protocol, number in _PROTOCOLS.items()}
_TARGET = "@th,64,128"
"""The target address of a neighbour advertisement."""


@dataclass(frozen=True, slots=True)
class Container:
    """A set, or a map where it has a value."""

    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    interval: bool = False
    keyword: str = "type"

    @property
    def kind(self) -> str:
        return "map" if self.value else "set"

    def definition(self) -> str:
        """What stands between the braces."""
        types = " . ".join(self.key) + (f" : {' . '.join(self.value)}" if self.value else "")
        return f"{self.keyword} {types};{' flags interval;' if self.interval else ''}"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a table of ours holds but for elements. Chains: name to hook, empty for one that is jumped to."""

    family: Family
    containers: Mapping[str, Container]
    chains: Mapping[str, str]
    rules: Mapping[str, tuple[str, ...]]

    def commands(self) -> list[str]:
        """What makes the table."""
        table = f"{self.family} {TABLE}"
        made = (f"add {one.kind} {table} {name} {{ {one.definition()} }}" for name, one in self.containers.items())
        chains = (f"add chain {table} {name} {hook}".rstrip() for name, hook in self.chains.items())
        return [f"add table {table}", *made, *chains, *(line for name in self.chains for line in self.filling(name))]

    def filling(self, chain: str) -> list[str]:
        """What fills an empty chain."""
        return [f"add rule {self.family} {TABLE} {chain} {rule}" for rule in self.rules[chain]]


class Element(NamedTuple):
    """An element of a set or map; its words are as nft lists them, in numbers where it can."""

    family: Family
    container: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()

    def key_text(self) -> str:
        """The key as nft takes it."""
        types = layout(self.family).containers[self.container].key
        return " . ".join(_word(kind, word) for kind, word in zip(types, self.key, strict=True))

    def text(self) -> str:
        """The whole element as nft takes it."""
        key = self.key_text()
        return f"{key} : {' . '.join(self.value)}" if self.value else key


def _word(kind: str, word: str) -> str:
    if kind in {"ifname", "iifname"}:
        return f'"{word}"'
    return _PROTOCOL_NAMES.get(word, word) if kind == "inet_proto" else word


def element_commands(verb: Literal["add", "delete"], elements: Iterable[Element]) -> list[str]:
    """One command a container."""
    grouped: dict[tuple[Family, str], list[str]] = {}
    for element in elements:
        grouped.setdefault((element.family, element.container), []).append(
            element.text() if verb == "add" else element.key_text()
        )
    return [
        f"{verb} element {family} {TABLE} {container} {{ {', '.join(texts)} }}"
        for (family, container), texts in grouped.items()
    ]


@cache
def layout(family: Family) -> Layout:
    """The table of a family."""
    return _guard_layout() if family == "bridge" else _traffic_layout(family)


def _traffic_layout(family: Family) -> Layout:
    loopback = {"loopback": "{ type filter hook prerouting priority -301; }"} if family == "ip" else {}
    chains = {
        **loopback,
        "into": "",
        "published": "",
        "inward": "",
        "forward": "{ type filter hook forward priority -1; }",
        "prerouting": "{ type nat hook prerouting priority -101; }",
        "output": "{ type nat hook output priority -101; }",
        "postrouting": "{ type nat hook postrouting priority 99; }",
    }
    return Layout(family, _traffic_containers(family), chains, {**_forward_rules(family), **_nat_rules(family)})


def _traffic_containers(family: Family) -> dict[str, Container]:
    """None is keyed by an interval alone: of such sets libnftables reads all elements before every change."""
    address = "ipv4_addr" if family == "ip" else "ipv6_addr"
    names, target = Container(("ifname",)), (address, "inet_service")
    return {
        "networks": names,
        "closed": names,
        "isolated": names,
        "open": names,
        "neighbours": Container(("ifname", "ifname"), ("verdict",)),
        "own": Container((address, address), interval=True),
        "beside": Container((address, address), interval=True),
        "masqueraded": Container((address, address), interval=True),
        "snat_to": Container((address, address), (address,), interval=True),
        "ports": Container(("inet_proto", address, "inet_service"), target),
        "ports_anywhere": Container(("inet_proto", "inet_service"), target),
    }


def _forward_rules(family: Family) -> dict[str, tuple[str, ...]]:
    """Each network is in `networks`; in `closed`, or where they apply in `isolated` and `open`."""
    # of what is answered past the host, by a namespace that is on both networks, conntrack sees one half only
    stray = f"meta l4proto tcp ct state invalid {family} saddr . {family} daddr != @beside"
    return {
        "loopback": ('iifname != "lo" ip daddr 127.0.0.0/8 drop',),
        "forward": (
            f"{stray} iifname @networks drop",
            f"{stray} oifname @networks drop",
            "iifname . oifname vmap @neighbours",
            "iifname @closed drop",
            "oifname @closed drop",
            "oifname @networks goto into",
            "iifname @networks accept",
        ),
        "into": (
            "ct state established,related accept",
            "ct status dnat accept",
            "oifname @isolated iifname @networks drop",
            "iifname @isolated drop",
            "iifname @networks accept",
            "oifname @open accept",
            "drop",
        ),
    }


def _nat_rules(family: Family) -> dict[str, tuple[str, ...]]:
    ip = family
    # the kernel drops ::1 from the wire, but where br_netfilter is at work it is asked after DNAT only
    from_wire = ("ip6 daddr ::1 return",) if family == "ip6" else ()
    return {
        "published": (
            f"dnat {ip} to meta l4proto . {ip} daddr . th dport map @ports",
            f"dnat {ip} to meta l4proto . th dport map @ports_anywhere",
        ),
        "prerouting": ("iifname @closed return", *from_wire, "fib daddr type local goto published"),
        "output": ("fib daddr type local goto published",),
        "inward": (
            f"ct status dnat {ip} saddr . {ip} daddr @own masquerade",
            f"ct status dnat {ip} saddr . {ip} daddr @beside masquerade",
            "ct status dnat fib saddr type local masquerade",
        ),
        "postrouting": (
            "oifname @networks goto inward",
            f"{ip} daddr {'224.0.0.0/4' if family == 'ip' else 'ff00::/8'} return",
            f"{ip} saddr . {ip} daddr @own return",
            f"snat {ip} to {ip} saddr . {ip} daddr map @snat_to",
            f"{ip} saddr . {ip} daddr @masqueraded masquerade",
        ),
    }


_GUARD_RULES = {
    "prerouting": ("iifname @guarded goto source",),
    "source": (
        "iifname . ether saddr != @macs drop",
        "ether type vmap { ip : goto ip_source, ip6 : goto ip6_source, arp : goto arp_source }",
        "drop",
    ),
    "arp_source": (
        "iifname . arp saddr ether != @macs drop",
        "arp saddr ip 0.0.0.0 accept",
        "iifname . arp saddr ip != @addresses drop",
    ),
    "ip_source": (
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        "iifname . ip saddr != @addresses drop",
    ),
    "ip6_source": (
        "icmpv6 type nd-router-advert drop",
        f"icmpv6 type nd-neighbor-advert iifname . {_TARGET} != @targets drop",
        "ip6 saddr :: icmpv6 type { mld-listener-report, nd-router-solicit, nd-neighbor-solicit, "
        "mld2-listener-report } accept",
        "iifname . ip6 saddr != @addresses6 drop",
    ),
}


def _guard_layout() -> Layout:
    containers = {
        "guarded": Container(("ifname",)),
        "macs": Container(("ifname", "ether_addr")),
        "addresses": Container(("ifname", "ipv4_addr")),
        "addresses6": Container(("ifname", "ipv6_addr")),
        "targets": Container(("iifname", _TARGET), keyword="typeof"),
    }
    chains = {
        "arp_source": "",
        "ip_source": "",
        "ip6_source": "",
        "source": "",
        "prerouting": "{ type filter hook prerouting priority -301; }",
    }
    return Layout("bridge", containers, chains, _GUARD_RULES)


def elements_of(item: FirewallItem) -> Iterator[Element]:
    """An item's own elements."""
    if isinstance(item, NetworkPolicy):
        return _policy(item)
    return _forward(item) if isinstance(item, PortForward) else _guard(item)


def _family(version: int) -> Family:
    return "ip" if version == 4 else "ip6"


def _policy(policy: NetworkPolicy) -> Iterator[Element]:
    family, bridge, subnet = _family(policy.subnet.version), policy.bridge, _prefix(policy.subnet)
    anywhere = "0.0.0.0/0" if family == "ip" else "::/0"
    yield Element(family, "networks", (bridge,))
    yield Element(family, "neighbours", (bridge, bridge), ("accept" if policy.icc else "drop",))
    if not policy.routed:
        yield Element(family, "closed", (bridge,))
        return
    yield Element(family, "own", (subnet, subnet))
    for other in sorted(policy.beside, key=str):
        yield Element(family, "beside", (_prefix(other), subnet))
    if policy.isolated:
        yield Element(family, "isolated", (bridge,))
    if not policy.masquerade:
        yield Element(family, "open", (bridge,))
    elif policy.snat_address is not None:
        yield Element(family, "snat_to", (subnet, anywhere), (str(policy.snat_address),))
    else:
        yield Element(family, "masqueraded", (subnet, anywhere))


def _prefix(subnet: IPNetwork) -> str:
    return str(subnet.network_address) if subnet.prefixlen == subnet.max_prefixlen else str(subnet)


def _forward(forward: PortForward) -> Iterator[Element]:
    family, protocol = _family(forward.target_ip.version), _PROTOCOLS[forward.protocol]
    anywhere = int(forward.host_ip) == 0
    for offset in range(forward.count):
        port = str(forward.host_port + offset)
        target = _target(forward.target_ip, forward.target_port + offset)
        if anywhere:
            yield Element(family, "ports_anywhere", (protocol, port), target)
        else:
            yield Element(family, "ports", (protocol, str(forward.host_ip), port), target)


@lru_cache(maxsize=4096)
def _target(address: IPAddress, port: int) -> tuple[str, str]:
    """Many ports may lead to one."""
    return str(address), str(port)


def _guard(guard: SourceGuard) -> Iterator[Element]:
    port, mac = guard.port, guard.mac.lower()
    yield Element("bridge", "guarded", (port,))
    yield Element("bridge", "macs", (port, mac))
    own6 = {address for address in guard.addresses if isinstance(address, IPv6Address)}
    for address in sorted(guard.addresses - own6, key=int):
        yield Element("bridge", "addresses", (port, str(address)))
    for address in sorted(own6 | ({link_local(mac)} if own6 else set()), key=int):
        yield Element("bridge", "addresses6", (port, str(address)))
        yield Element("bridge", "targets", (port, f"0x{int(address):032x}"))


def link_local(mac: str) -> IPv6Address:
    """The link-local address that an interface makes from its MAC (EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)
