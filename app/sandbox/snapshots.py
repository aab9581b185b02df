"""What a host's namespace looks like, as lines that can be compared: what was there before must be there after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from app.firewall.libnftables import Libnftables
from app.model.naming import owner_of
from app.sandbox.machine import Sandbox
from app.sandbox.ns import Ns
from app.sandbox.rtnl import PlainRtnl, bound_sockets

_SYSCTLS = Path("/proc/sys/net")
_IPV4_KEYS = re.compile(r"route_localnet|rp_filter|accept_local|arp_.*|forwarding|proxy_arp|send_redirects")
_IPV6_KEYS = re.compile(r"disable_ipv6|accept_ra|accept_dad|forwarding|proxy_ndp")
_LOADED = (("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names"))

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Sorted lines by subject. Foreign named namespaces are in it too, as `NAME: ...`."""

    links: Lines
    addresses: Lines
    routes: Lines
    firewall: Lines
    sysctls: Lines
    namespaces: Lines
    sockets: Lines

    def unordered(self) -> Snapshot:
        """Without the order of rules: networks stand in any order in a chain, as they were made and changed."""
        return replace(self, firewall=tuple(sorted(self.firewall)))

    def difference(self, later: Snapshot) -> str:
        """What `later` lacks (-) and has more (+); empty where they are alike."""
        report: list[str] = []
        for field in fields(self):
            before, after = getattr(self, field.name), getattr(later, field.name)
            changes = [f"  - {line}" for line in before if line not in after]
            changes += [f"  + {line}" for line in after if line not in before]
            if before != after:
                report += [f"{field.name}:", *(changes or ["  (order or number differs)"])]
        return "\n".join(report)


def snapshot(sandbox: Sandbox, ignore_ports: frozenset[int] = frozenset()) -> Snapshot:
    """The sandbox's `host`, the names under its /run/netns and what is in them. It loads no table.

    ignore_ports: of the daemon itself, where it listens.
    """
    host = sandbox.host
    names = sandbox.netns_names()
    places = [("", host)] + [(f"{name}: ", sandbox.netns(name)) for name in names]
    views = [(prefix, network_view(place)) for prefix, place in places]
    return Snapshot(
        links=tuple(prefix + line for prefix, view in views for line in view[0]),
        addresses=tuple(prefix + line for prefix, view in views for line in view[1]),
        routes=tuple(prefix + line for prefix, view in views for line in view[2]),
        firewall=tuple(_firewall(host)),
        sysctls=tuple(host.run(_sysctls)),
        namespaces=tuple(names),
        sockets=tuple(host.run(lambda: _sockets(ignore_ports))),
    )


def network_view(place: Ns) -> tuple[list[str], list[str], list[str]]:
    """Links, addresses and routes of a namespace, as sorted lines without interface numbers."""
    with place.rtnl() as rtnl:
        return _network_lines(rtnl)


def machine_view() -> Lines:
    """The namespace of this thread itself: what a sandbox must leave as it is."""
    with PlainRtnl() as rtnl:
        links, addresses, routes = _network_lines(rtnl)
    return (*links, *addresses, *routes, *(f"/run/netns/{entry.name}" for entry in _children(Path("/run/netns"))))


def _network_lines(rtnl: PlainRtnl) -> tuple[list[str], list[str], list[str]]:
    links = list(rtnl.links())
    names = {link.index: link.name for link in links}
    shown = []
    for link in links:
        ours = owner_of(link.alias) is not None
        # a random address of ours says nothing; a foreign one must not change
        mac = "" if ours else f" mac {link.mac}"
        master = f" master {names.get(link.master, link.master)}" if link.master else ""
        alias = f" alias {link.alias}" if link.alias else ""
        state = "up" if link.up else "down"
        shown.append(f"{link.name} {link.kind or '-'} {state} mtu {link.mtu} group {link.group}{mac}{master}{alias}")
    addresses = [f"{names.get(index)} {address}" for index, address in rtnl.addresses()]
    routes = [
        f"{route.destination or f'default{route.version}'} via {route.via} dev {names.get(route.oif or 0)} "
        f"proto {route.protocol} metric {route.priority}"
        for route in rtnl.routes()
    ]
    return sorted(shown), sorted(addresses), sorted(routes)


def _firewall(host: Ns) -> Iterator[str]:
    """Tables that are loaded, and not as loading leaves them: looking at a table loads it for good."""
    for command, file in _LOADED:
        if host.run(partial(_text, Path("/proc/thread-self/net") / file)).strip():
            for table in _tables(host.exec([f"{command}-legacy-save"]).stdout):
                yield from (f"{command} {line}" for line in table)
    yield from host.run(_nftables)


def _nftables() -> list[str]:
    """In the namespace: everything that nf_tables holds, whoever made it."""
    with Libnftables() as nft:
        return [f"nft {json.dumps(_unordered(one))}" for one in sorted(nft.list("list ruleset"), key=_place)]


def _place(one: dict[str, Any]) -> tuple[str, ...]:
    """Where an object of nf_tables stands: only the rules of one chain have an order."""
    ((kind, found),) = one.items()
    own = found.get("chain", "") if kind == "rule" else found.get("name", "")
    return found.get("family", ""), found.get("table", ""), kind, own


def _unordered(one: dict[str, Any]) -> dict[str, Any]:
    """Without handles, and without the order of a set's elements: neither says anything."""
    ((kind, found),) = one.items()
    kept = {name: value for name, value in found.items() if name != "handle"}
    if "elem" in kept:
        kept["elem"] = sorted(kept["elem"], key=json.dumps)
    return {kind: kept}


def _tables(saved: str) -> Iterator[list[str]]:
    """Each table that is in use, without counters and comments."""
    for part in saved.split("COMMIT\n"):
        lines = [re.sub(r"\[\d+:\d+\]", "", line).strip() for line in part.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if any(not re.fullmatch(r"\*\w+|:\S+ ACCEPT", line) for line in lines):
            table = lines[0].removeprefix("*")
            yield [f"-t {table} {line}" for line in lines[1:]]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _sysctls() -> list[str]:
    """In the namespace: the settings that a daemon may have a reason to touch."""
    found = [_SYSCTLS / "ipv4/ip_forward", *_children(_SYSCTLS / "bridge")]
    for family, keys in (("ipv4", _IPV4_KEYS), ("ipv6", _IPV6_KEYS)):
        for interface in _children(_SYSCTLS / family / "conf"):
            found += [setting for setting in _children(interface) if keys.fullmatch(setting.name)]
    return [f"{path.relative_to(_SYSCTLS)} = {_text(path).strip()}" for path in found]


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []  # no IPv6, no br_netfilter, or the interface went while we looked


def _sockets(ignore_ports: frozenset[int]) -> list[str]:
    return sorted(
        f"{protocol} {address} {port}" for protocol, address, port in bound_sockets() if port not in ignore_ports
    )
