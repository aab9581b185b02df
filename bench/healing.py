"""How long damage lasts, for each kind: from before it is done, by command or netlink, until it is seen repaired."""

import random
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_interface
from pathlib import Path

from app.sandbox import HOST
from bench.http import Client

ROUNDS = 60
WITHIN = 5.0
"""Seconds after which damage counts as not repaired."""


@dataclass
class Healing:
    """Seconds by kind of damage. storm: share of one CPU while 50 foreign links a second come and go."""

    took: dict = field(default_factory=dict)
    idle: float = 0.0
    storm: float = 0.0

    def rows(self):
        for name, times in self.took.items():
            median, last = statistics.median(times) * 1000, _percentile(times, 99) * 1000
            yield name, f"median {median:.1f} ms", f"99th percentile {last:.1f} ms of {len(times)}"
        yield "CPU while nothing happens", f"{self.idle:.2%}", ""
        yield "CPU while 50 foreign links/s come and go", f"{self.storm:.2%}", ""

    def figures(self):
        found = {
            name: {"median_ms": statistics.median(times) * 1000, "p99_ms": _percentile(times, 99) * 1000}
            for name, times in self.took.items()
        }
        return {**found, "idle_cpu": self.idle, "storm_cpu": self.storm}


def _percentile(times, percent):
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]


class _Place:
    """Netlink sockets that stay open, so that what is measured is the daemon and not the opening."""

    def __init__(self, rtnl):
        self.rtnl = rtnl

    def index(self, name):
        return self.rtnl.index_of(name)

    def is_up(self, name):
        link = self.rtnl.link(name)
        return link is not None and link.up

    def holds(self, name, address):
        link = self.rtnl.link(name)
        return link is not None and (link.index, address) in set(self.rtnl.addresses())

    def leads(self, test):
        return any(test(route) for route in self.rtnl.routes())


def measure(sandbox, daemon, backend, rounds=ROUNDS):
    """On a ready daemon without objects; it has none again afterwards."""
    with closing(Client(daemon.socket)) as client:
        client.ask("POST", "/networks", {"name": "web"})
        endpoint, _took = client.ask("POST", "/endpoints", {"network": "web", "namespace": "red"})
        client.ask("POST", "/portmaps", {"endpoint": "red", "host_port": 8080, "target_port": 80})
    result = Healing()
    red = sandbox.netns("red")
    with sandbox.host.rtnl() as outer, red.rtnl() as inner:
        for name, (damage, repaired) in _kinds(sandbox, _Place(outer), _Place(inner), endpoint, backend).items():
            result.took[name] = [_once(name, damage, repaired) for _round in range(_rounds(name, rounds))]
    with red.tcp_server(80):
        for name, damage in _rules(sandbox, backend).items():
            repaired = partial(sandbox.client.tcp, HOST, 8080, timeout=0.02)
            result.took[name] = [_once(name, damage, repaired) for _round in range(_rounds(name, rounds))]
    result.idle = _share(daemon.pid, lambda: time.sleep(3))
    result.storm = _share(daemon.pid, lambda: _storm(sandbox))
    with closing(Client(daemon.socket)) as last:  # the daemon has hung up on the one that was idle
        last.ask("DELETE", "/networks/web?force=true")
    return result


def _rounds(name, rounds):
    """Fewer where each waits for the timer."""
    return max(1, rounds // 2) if "timer" in name else rounds


def _once(name, damage, repaired):
    # what came with the last repair is over, and the timer is anywhere
    time.sleep(random.uniform(0.02, 0.42) if "timer" in name else 0.02)
    start = time.perf_counter()
    damage()
    while not repaired():
        if time.perf_counter() - start > WITHIN:
            raise AssertionError(f"not repaired within {WITHIN} s: {name}")
        time.sleep(0.0005)
    return time.perf_counter() - start


def _kinds(sandbox, host, red, endpoint, backend):
    port, address = endpoint["host_ifname"], ip_interface(f"{endpoint['address']}/24")
    gateway = ip_interface("192.168.15.1/24")
    subnet = lambda route: str(route.destination) == "192.168.15.0/24"  # noqa: E731
    default = lambda route: route.destination is None  # noqa: E731

    def write(path):
        return lambda: sandbox.host.write_sysctl(path, 0)

    def reads(path):
        return lambda: sandbox.host.sysctl(path) == "1"

    return {
        "bridge set down": (lambda: host.rtnl.set_up(host.index("web"), up=False), lambda: host.is_up("web")),
        "bridge deleted": (
            lambda: host.rtnl.delete_link(host.index("web")),
            lambda: (
                (bridge := host.rtnl.link("web")) and (veth := host.rtnl.link(port)) and veth.master == bridge.index
            ),
        ),
        "gateway address removed": (
            lambda: host.rtnl.delete_address(host.index("web"), gateway),
            lambda: host.holds("web", gateway),
        ),
        "subnet's route removed": (
            lambda: sandbox.host.exec(["ip", "route", "del", "192.168.15.0/24", "dev", "web"]),
            lambda: host.leads(subnet),
        ),
        "veth deleted": (lambda: host.rtnl.delete_link(host.index(port)), lambda: red.holds("eth0", address)),
        "inner link set down": (
            lambda: red.rtnl.set_up(red.index("eth0"), up=False),
            lambda: red.is_up("eth0") and red.leads(default),
        ),
        "inner address removed": (
            lambda: red.rtnl.delete_address(red.index("eth0"), address),
            lambda: red.holds("eth0", address) and red.leads(default),
        ),
        "default route removed": (
            lambda: red.rtnl.delete_default_route(gateway.ip, red.index("eth0")),
            lambda: red.leads(default),
        ),
        "ip_forward off": (write("net/ipv4/ip_forward"), reads("net/ipv4/ip_forward")),
        "route_localnet off (timer)": (
            write("net/ipv4/conf/web/route_localnet"),
            reads("net/ipv4/conf/web/route_localnet"),
        ),
    }


def _rules(sandbox, backend):
    """Packets tell that they are back."""
    run = sandbox.host.exec
    if backend == "iptables":
        return {"iptables -t nat -F (timer)": lambda: run(["iptables-legacy", "-t", "nat", "-F"])}
    return {
        "nft flush ruleset": lambda: run(["nft", "flush", "ruleset"]),
        "nft delete table": lambda: run(["nft", "delete", "table", "ip", "bridgehead"]),
    }


def _share(pid, work):
    start, before = time.perf_counter(), _used(pid)
    work()
    return (_used(pid) - before) / (time.perf_counter() - start)


def _used(pid):
    """Seconds of CPU of all its threads, by the scheduler's own clock (Documentation/scheduler/sched-stats)."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def _storm(sandbox, seconds=4, per_second=50):
    with sandbox.host.rtnl() as rtnl:
        start = time.perf_counter()
        for number in range(seconds * per_second):
            rtnl.add_plain_bridge("storm")
            rtnl.delete_link(rtnl.index_of("storm"))
            time.sleep(max(0.0, start + (number + 1) / per_second - time.perf_counter()))
