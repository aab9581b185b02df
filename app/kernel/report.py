"""What the kernel shows of the host, for `GET /host`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.kernel import sysctl
from app.kernel.mirror import HostMirror
from app.kernel.sysctl import SysctlLedger
from app.model.host import HostFacts, HostRoute, Setting, Uplink

_IF_INET6 = Path("/proc/thread-self/net/if_inet6")


def describe(mirror: HostMirror, ledger: SysctlLedger) -> HostFacts:
    """The calling thread's namespace, as of the mirror's last refresh."""
    return HostFacts(
        ip_forward=_setting(ledger, "net/ipv4/ip_forward"),
        ipv6_forwarding=_setting(ledger, "net/ipv6/conf/all/forwarding"),
        bridge_nf_call_iptables=_flag("net/bridge/bridge-nf-call-iptables"),
        bridge_nf_call_ip6tables=_flag("net/bridge/bridge-nf-call-ip6tables"),
        ipv6=_IF_INET6.exists(),
        uplinks=tuple(sorted(_uplinks(mirror), key=lambda uplink: (uplink.version, uplink.metric))),
        routes=tuple(
            HostRoute(route.destination, mirror.name_of(route.oif))
            for route in mirror.routes()
            if route.destination is not None
        ),
    )


def _setting(ledger: SysctlLedger, path: str) -> Setting | None:
    value = sysctl.read(path)
    return None if value is None else Setting(value, ledger.former(path, value))


def _flag(path: str) -> bool | None:
    value = sysctl.read(path)
    return None if value is None else value != "0"


def _uplinks(mirror: HostMirror) -> Iterator[Uplink]:
    links = {link.index: link for link in mirror.links()}
    for route in mirror.routes():
        if route.destination is None and route.oif in links:
            link = links[route.oif]
            addresses = sorted(
                address for address in mirror.addresses_of(link.index) if address.version == route.version
            )
            yield Uplink(
                4 if route.version == 4 else 6, link.name, route.via, route.priority, link.mtu, tuple(addresses)
            )
