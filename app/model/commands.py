"""Operations as the commands one would type: for the log, for errors, for people who learn."""

from __future__ import annotations

from collections.abc import Iterable

from app.model.naming import alias
from app.model.ops import Op
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    HostPort,
    IPInterface,
    Item,
    LoopbackRoute,
    Netns,
    Sysctl,
    in_order,
    subnets_of,
)


def commands(op: Op) -> list[str]:
    """The commands for one operation; none for a firewall item, which its backend knows."""
    if op.after is None:
        return _removed(op.item)
    return _made(op.item) if op.before is None else _changed(op.before, op.after)


def _in(netns: NetnsRef) -> str:
    if netns.kind is NetnsKind.NAME:
        return f"ip -n {netns.value}"
    file = f"/proc/{netns.value}/ns/net" if netns.kind is NetnsKind.PID else netns.value
    return f"nsenter --net={file} ip"


def _family(route: DefaultRoute) -> str:
    return " -6" if route.version == 6 else ""


def _loopback(route: LoopbackRoute) -> str:
    return f"local ::1/128 dev {route.bridge} table local metric 4096"


def _enter(netns: NetnsRef) -> str:
    """What a command inside begins with that has no option for a namespace."""
    if netns.kind is NetnsKind.NAME:
        return f"ip netns exec {netns.value} "
    return f"{_in(netns).removesuffix('ip')}"


def _ipv6(enter: str, ifname: str, *, on: bool) -> list[str]:
    base = f"{enter}sysctl -w net.ipv6.conf.{_dotted(ifname)}"
    if not on:
        return [f"{base}.disable_ipv6=1"]
    off = ("accept_ra", "autoconf", "accept_dad", "dad_transmits", "addr_gen_mode", "disable_ipv6")
    return [f"{base}.{key}=0" for key in off]


def _new(ip: str, ifname: str, addresses: Iterable[IPInterface]) -> list[str]:
    return [
        f"{ip} address add {address} dev {ifname}{' nodad' if address.version == 6 else ''}"
        for address in in_order(addresses)
    ]


def _port(before: Attachment | None, after: Attachment) -> list[str]:
    """The options of a bridge port, of a new one those that are not off by default."""
    port, lines = after.host_ifname, []
    was_locked = before is not None and before.locked
    if after.locked and not was_locked:
        lines.append(f"bridge fdb replace {after.mac} dev {port} master static sticky")
    for name in ("hairpin", "isolated", "locked"):
        wanted, was = getattr(after, name), before is not None and getattr(before, name)
        if wanted != was:
            learning = "" if name != "locked" else f"learning {'off' if wanted else 'on'} "
            lines.append(f"bridge link set dev {port} {learning}{name} {'on' if wanted else 'off'}")
    if was_locked and not after.locked:
        lines.append(f"bridge fdb delete {after.mac} dev {port} master")
    return lines


def _made(item: Item) -> list[str]:
    match item:
        case Netns():
            return [f"ip netns add {item.name}", f"ip -n {item.name} link set lo up"]
        case HostPort():
            return [f"# reserve {item.protocol} port {item.port} of {item.address!s}"]
        case Bridge():
            return [
                f"ip link add {item.name} address {item.mac} mtu {item.mtu} type bridge",
                f"ip link set {item.name} alias {alias(item.owner)}",
                *_ipv6("", item.name, on=item.ipv6),
                *_new("ip", item.name, item.addresses),
                f"ip link set {item.name} up",
            ]
        case Attachment():
            return _attach(item)
        case DefaultRoute():
            return [f"{_in(item.netns)}{_family(item)} route replace default via {item.via} dev {item.ifname}"]
        case Sysctl():
            return [f"sysctl -w {_dotted(item.path)}={item.value}"]
        case LoopbackRoute():
            return [f"ip -6 route append {_loopback(item)}"]
        case _:
            return []


def _attach(item: Attachment) -> list[str]:
    inside = _in(item.netns)
    where = item.netns.value if item.netns.kind is not NetnsKind.PATH else f"@{item.netns.value}"
    return [
        f"ip link add {item.host_ifname} mtu {item.mtu} master {item.bridge} type veth "
        f"peer name {item.ifname} address {item.mac} netns {where}",
        f"ip link set {item.host_ifname} alias {alias(item.owner)}",
        *_ipv6("", item.host_ifname, on=False),
        *_port(None, item),
        f"ip link set {item.host_ifname} up",
        *_ipv6(_enter(item.netns), item.ifname, on=item.ipv6),
        *_new(inside, item.ifname, item.addresses),
        f"{inside} link set {item.ifname} up",
    ]


def _removed(item: Item) -> list[str]:
    match item:
        case Netns():
            return [f"ip netns delete {item.name}"]
        case HostPort():
            return [f"# release {item.protocol} port {item.port} of {item.address}"]
        case Bridge() | ForeignLink():
            return [f"ip link delete {item.name}"]
        case Attachment():
            return [f"ip link delete {item.host_ifname}"]
        case DefaultRoute():
            return [f"{_in(item.netns)}{_family(item)} route delete default via {item.via} dev {item.ifname}"]
        case Sysctl():
            return [f"# sysctl {_dotted(item.path)}: its former value again"]
        case LoopbackRoute():
            return [f"ip -6 route delete {_loopback(item)}"]
        case _:
            return []


def _changed(before: Item, after: Item) -> list[str]:
    match before, after:
        case Bridge(), Bridge():
            return [
                *_addresses("ip", after.name, before, after),
                *_link("ip", after.name, before, after),
                *_routes("ip", after.name, before, after),
            ]
        case Attachment(), Attachment():
            lines = [
                *_addresses(_in(after.netns), after.ifname, before, after),
                *_link("ip", after.host_ifname, before, after),
                *_routes(_in(after.netns), after.ifname, before, after),
            ]
            if before.bridge != after.bridge:
                lines.append(f"ip link set {after.host_ifname} master {after.bridge}")
            lines += _port(before if before.bridge == after.bridge else None, after)
            return lines
        case _:
            return _made(after)


def _addresses(ip: str, name: str, before: Bridge | Attachment, after: Bridge | Attachment) -> list[str]:
    return [
        *_new(ip, name, after.addresses - before.addresses),
        *(f"{ip} address delete {address} dev {name}" for address in in_order(before.addresses - after.addresses)),
    ]


def _link(ip: str, name: str, before: Bridge | Attachment, after: Bridge | Attachment) -> list[str]:
    lines = [f"{ip} link set {name} mtu {after.mtu}"] if before.mtu != after.mtu else []
    return [*lines, f"{ip} link set {name} up"] if not before.up else lines


def _routes(ip: str, name: str, before: Bridge | Attachment, after: Bridge | Attachment) -> list[str]:
    if before.connected:
        return []
    subnets = sorted(subnets_of(after.addresses), key=lambda one: (one.version, str(one)))
    return [f"{ip} route add {subnet} dev {name} proto kernel" for subnet in subnets]


def _dotted(path: str) -> str:
    """sysctl(8)'s form, in which a dot of an interface's name becomes a slash."""
    return path.replace(".", "\0").replace("/", ".").replace("\0", "/")
