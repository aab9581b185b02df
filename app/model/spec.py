"""What users asked for: networks, endpoints, port mappings, address reservations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Version = Literal[4, 6]


class Protocol(StrEnum):
    """Transport protocols whose ports can be published."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class NetnsKind(StrEnum):
    """How a user names a network namespace."""

    NAME = "name"
    PID = "pid"
    PATH = "path"


@dataclass(frozen=True, slots=True)
class NetnsRef:
    """A network namespace as a user named it.

    value: a name under /run/netns, a process id, or a path; start_time: for a process, its start in
    clock ticks since boot (proc(5), stat field 22), so that a recycled pid is never mistaken for it.
    """

    kind: NetnsKind
    value: str
    start_time: int = 0

    @property
    def key(self) -> str:
        """A stable text that tells namespaces apart, e.g. `name:red`."""
        suffix = f"@{self.start_time}" if self.kind is NetnsKind.PID else ""
        return f"{self.kind}:{self.value}{suffix}"

    def __str__(self) -> str:
        words = {NetnsKind.NAME: "namespace", NetnsKind.PID: "process", NetnsKind.PATH: "path"}
        return f"{words[self.kind]} '{self.value}'"


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """One family of a network: its subnet, the bridge's address in it, where automatic ones come from."""

    subnet: IPNetwork
    gateway: IPAddress | None
    ip_range: IPNetwork

    @property
    def version(self) -> Version:
        return self.subnet.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A bridge with a subnet, and the policy for the traffic of its endpoints."""

    id: str
    name: str
    bridge: str
    plans: tuple[AddressPlan, ...]
    mtu: int
    internal: bool = False
    isolated: bool = True
    icc: bool = True
    masquerade: bool = True
    snat_address: IPAddress | None = None
    spoof_protection: bool = False
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    created_at: datetime
    updated_at: datetime

    def plan(self, version: Version) -> AddressPlan | None:
        """The address plan of one IP version, or None where the network lacks it."""
        for plan in self.plans:
            if plan.version == version:
                return plan
        return None

    @property
    def ipv4(self) -> AddressPlan:
        plan = self.plan(4)
        if plan is None:
            raise ValueError(f"network {self.id} has no IPv4 subnet")
        return plan

    def snat_for(self, version: Version) -> IPAddress | None:
        """The fixed source address of outbound traffic of one IP version; None: that of the uplink."""
        fixed = self.snat_address
        return fixed if fixed is not None and fixed.version == version else None

    def gateway_for(self, version: Version) -> IPAddress | None:
        """The address that endpoints route by, None where there is no way out: pure L2, or internal."""
        plan = self.plan(version)
        return plan.gateway if plan is not None and not self.internal else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A veth pair from a network's bridge into a namespace; an `ephemeral` one goes when its namespace does."""

    id: str
    network_id: str
    name: str
    netns: NetnsRef
    namespace_key: str
    create_namespace: bool
    addresses: tuple[IPAddress, ...]
    mac: str
    ifname: str
    host_ifname: str
    default_route: bool | None = None
    default_route_at: datetime | None = None
    ephemeral: bool = False
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    uid: int | None = None
    """Who made it, by the unix socket; None over TCP."""
    created_at: datetime
    updated_at: datetime

    def address(self, version: Version) -> IPAddress | None:
        """The endpoint's address of one IP version, or None."""
        for address in self.addresses:
            if address.version == version:
                return address
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Portmap:
    """Host ports published to ports of an endpoint: `count` of them, from `host_port` and `target_port` on."""

    id: str
    endpoint_id: str
    protocol: Protocol
    host_ip: IPAddress
    host_port: int
    target_port: int
    count: int = 1
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    created_at: datetime
    updated_at: datetime

    @property
    def last_port(self) -> int:
        """The last of the host's ports."""
        return self.host_port + self.count - 1

    def __str__(self) -> str:
        return f"{self.protocol}/{socket_text(self.host_ip, ports_text(self.host_port, self.count))}"


def ports_text(first: int, count: int) -> str:
    """Ports as users write them: `8000`, or `8000-8010`."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def socket_text(address: IPAddress, ports: str) -> str:
    """Address and ports as one writes them: `192.0.2.1:80`, `[2001:db8::1]:80`."""
    return f"{address}:{ports}" if address.version == 4 else f"[{address}]:{ports}"


class AllocationKind(StrEnum):
    """Who holds an address."""

    ENDPOINT = "endpoint"
    GATEWAY = "gateway"
    RESERVATION = "reservation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """An address of a network that somebody holds."""

    id: str
    network_id: str
    address: IPAddress
    kind: AllocationKind
    endpoint_id: str | None = None
    note: str = ""
    created_at: datetime


def gateways(network: Network) -> Iterator[IPAddress]:
    """The addresses that the network's bridge carries."""
    for plan in network.plans:
        if plan.gateway is not None:
            yield plan.gateway
