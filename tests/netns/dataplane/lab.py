"""Networks, endpoints and ports of one IP version, and what passes between them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cells import PROTOCOLS
from world import QUIET, made

from app.sandbox import (
    CLIENT,
    CLIENT6,
    GATEWAY,
    GATEWAY6,
    HOST,
    HOST6,
    HOST6_SECOND,
    HOST_SECOND,
    SERVER,
    SERVER6,
)


@dataclass(frozen=True)
class Family:
    """Addresses of one IP version; those of web and lan are what the daemon gives out."""

    version: int
    any: str
    loopback: str
    host: str
    host_second: str
    uplink: str
    server: str
    client: str
    web: str
    web_gateway: str
    red: str
    blue: str
    lan: str
    lan_gateway: str
    green: str

    def __str__(self):
        return f"IPv{self.version}"

    @property
    def suffix(self):
        """Of the API's fields."""
        return "" if self.version == 4 else "6"

    @property
    def bits(self):
        return 32 if self.version == 4 else 128


IPV4 = Family(
    4, "0.0.0.0", "127.0.0.1", HOST, HOST_SECOND, GATEWAY, SERVER, CLIENT,
    "192.168.15.0/24", "192.168.15.1", "192.168.15.2", "192.168.15.3",
    "192.168.16.0/24", "192.168.16.1", "192.168.16.2",
)  # fmt: skip
IPV6 = Family(
    6, "::", "::1", HOST6, HOST6_SECOND, GATEWAY6, SERVER6, CLIENT6,
    "fd00:15::/64", "fd00:15::1", "fd00:15::2", "fd00:15::3",
    "fd00:16::/64", "fd00:16::1", "fd00:16::2",
)  # fmt: skip


class Lab:
    """What a test builds. Networks: web, with red and blue; lan, with green."""

    def __init__(self, sandbox, family, api):
        self.sandbox, self.family, self.api = sandbox, family, api
        self.host, self.internet, self.client = sandbox.host, sandbox.internet, sandbox.client

    def network(self, name="web", **fields):
        """Dual stack where the family is IPv6."""
        subnets = {"subnet": getattr(IPV4, name, None)}
        if self.family.version == 6:
            subnets["subnet6"] = getattr(IPV6, name, None)
        return made(self.api, "networks", name=name, **{**subnets, **fields})

    @property
    def nodad(self):
        """What has `ip address add` make an address that is usable at once."""
        return ["nodad"] if self.family.version == 6 else []

    def only6(self, **fields):
        """Fields that only a dual stack network has."""
        return fields if self.family.version == 6 else {}

    def endpoint(self, namespace, network="web", **fields):
        """Its namespace. Those that the families know have the addresses that these say."""
        known = {"address": getattr(IPV4, namespace, None)}
        if self.family.version == 6:
            known["address6"] = getattr(IPV6, namespace, None)
        given = {field: address for field, address in known.items() if address}
        made(self.api, "endpoints", network=network, namespace=namespace, **{**given, **fields})
        return self.sandbox.netns(namespace)

    def web(self, **fields):
        """The network with red and blue."""
        self.network("web", **fields)
        return self.endpoint("red"), self.endpoint("blue")

    def red(self, **fields):
        """The network with red alone."""
        self.network("web", **fields)
        return self.endpoint("red")

    def green(self, **fields):
        """Another network, with green in it."""
        self.network("lan", **fields)
        return self.endpoint("green", "lan")

    def portmap(self, endpoint="red", host_port=8080, **fields):
        return made(
            self.api, "portmaps", **{"endpoint": endpoint, "host_port": host_port, "host_ip": self.family.any} | fields
        )

    def publish(self, endpoint="red", host_port=8080, protocols=PROTOCOLS, **fields):
        """One mapping for each protocol, by protocol."""
        return {one: self.portmap(endpoint, host_port, protocol=one, **fields) for one in protocols}

    def patch(self, path, **body):
        answer = self.api.patch(f"/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def delete(self, path):
        answer = self.api.delete(f"/{path}")
        assert answer.status_code == 204, answer.text

    def route(self, place, to, via):
        """A route by hand; of the host's subnets in the internet, for whoever sends there directly."""
        place.exec(["ip", f"-{self.family.version}", "route", "replace", to, "via", via])

    def route_back(self, *subnets):
        """The internet sends these to the host."""
        for subnet in subnets:
            self.route(self.internet, subnet, self.family.host)

    def server(self, place, protocol, port, **options):
        return place.server(protocol, port, self.family.any, **options)

    def servers(self, place, port=80, protocols=PROTOCOLS, banner=None):
        return Servers(self, place, port, protocols, banner)

    def reached(self, one, address, other, port=80, timeout=QUIET):
        """Which of ping, TCP, UDP and SCTP pass; what is not answered does not even arrive."""
        with self.servers(other, port) as servers:
            found = together(
                {
                    "ping": lambda: one.ping(address, timeout=timeout),
                    **{protocol: asking(one, protocol, address, port, other, timeout) for protocol in PROTOCOLS},
                }
            )
            for protocol in PROTOCOLS:
                assert bool(servers[protocol].peers) == found[protocol], f"{protocol} passes one way only"
        return found

    def check(self, cell, expected, one, address, other, port=80):
        """Every protocol passes, or none; ping counts for each."""
        found = self.reached(one, address, other, port, patience(expected))
        for protocol in PROTOCOLS:
            with cell(protocol):
                way = f"{one.name} to {address} of {other.name} by"
                assert found[protocol] is expected, f"{way} {protocol}: {found}"
                assert found["ping"] is expected, f"{way} ping: {found}"

    def answered(self, one, address, port, banner, protocols=PROTOCOLS):
        """Which protocols are answered with that banner; none may be answered with another one."""
        told = together({one_: asked(one, one_, address, port) for one_ in protocols})
        assert set(told.values()) <= {banner, None}, told
        return {protocol for protocol, answer in told.items() if answer == banner}


def asked(place, protocol, address, port):
    return lambda: place.ask(protocol, address, port, timeout=QUIET)


def asking(one, protocol, address, port, other, timeout=QUIET):
    return lambda: one.ask(protocol, address, port, timeout=timeout) == other.banner


def patience(expected):
    """Seconds to wait for an answer: on a busy machine, one that must come may take a while."""
    return 1.0 if expected else QUIET


def together(works):
    """The results by name of what is done at the same time: silences are waited for once."""
    with ThreadPoolExecutor(len(works)) as pool:
        started = {name: pool.submit(work) for name, work in works.items()}
        return {name: future.result() for name, future in started.items()}


class Servers:
    """One server for each protocol on the same port; `servers["udp"]`."""

    def __init__(self, lab, place, port, protocols, banner):
        self._made = {one: lab.server(place, one, port, banner=banner) for one in protocols}

    def __enter__(self):
        for server in self._made.values():
            server.start()
        return self

    def __exit__(self, *exception):
        for server in self._made.values():
            server.close()

    def __getitem__(self, protocol):
        return self._made[protocol]

    def forget(self):
        for server in self._made.values():
            server.peers.clear()
