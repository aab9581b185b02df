"""How long damage lasts, for each kind: from before it is done, by command or netlink, until it is seen repaired."""

import random
import time
from contextlib import closing
from functools import partial
from ipaddress import ip_interface

from app.sandbox import HOST, Sandbox
from bench.http import Client
from bench.registry import Samples, bench

ROUNDS = 60
GATEWAY = ip_interface("192.168.15.1/24")
WITHIN = 5.0
"""Seconds after which damage counts as not repaired."""


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


@bench("healing-iptables", "From damage to repair: iptables", extra=True)
def iptables(ground):
    return _healing(ground, "iptables", "DROP")


@bench("healing-nftables", "From damage to repair: nftables", extra=True)
def nftables(ground):
    return _healing(ground, "nftables", "ACCEPT")


def _healing(ground, backend, policy):
    values = {"fast_repairs": 100_000}  # what is measured looks like a fight
    with Sandbox(forward=policy) as sandbox, sandbox.daemon(firewall=backend, values=values) as daemon:
        return measure(sandbox, daemon, backend, ground.sized(ROUNDS))


def measure(sandbox, daemon, backend, rounds=ROUNDS):
    """On a ready daemon without objects."""
    with closing(Client(daemon.socket)) as client:
        client.ask("POST", "/networks", {"name": "web"})
        endpoint, _took = client.ask("POST", "/endpoints", {"network": "web", "namespace": "red"})
        client.ask("POST", "/portmaps", {"endpoint": "red", "host_port": 8080, "target_port": 80})
    samples = Samples()
    red = sandbox.netns("red")
    with sandbox.host.rtnl() as outer, red.rtnl() as inner:
        for name, (damage, repaired) in _kinds(sandbox, _Place(outer), _Place(inner), endpoint).items():
            for _round in range(_rounds(name, rounds)):
                samples.time(name, _once(name, damage, repaired))
    with red.tcp_server(80):
        for name, damage in _rules(sandbox, backend).items():
            repaired = partial(sandbox.client.tcp, HOST, 8080, timeout=0.02)
            for _round in range(_rounds(name, rounds)):
                samples.time(name, _once(name, damage, repaired))
    return samples


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


def _kinds(sandbox, host, red, endpoint):
    return _outside(sandbox, host, red, endpoint) | _inside(red, endpoint) | _settings(sandbox)


def _is_subnet(route):
    return str(route.destination) == "192.168.15.0/24"


def _is_default(route):
    return route.destination is None


def _outside(sandbox, host, red, endpoint):
    port, address = endpoint["host_ifname"], ip_interface(f"{endpoint['address']}/24")

    def plugged():
        bridge, veth = host.rtnl.link("web"), host.rtnl.link(port)
        return bridge is not None and veth is not None and veth.master == bridge.index

    return {
        "bridge set down": (lambda: host.rtnl.set_up(host.index("web"), up=False), lambda: host.is_up("web")),
        "bridge deleted": (lambda: host.rtnl.delete_link(host.index("web")), plugged),
        "gateway address removed": (
            lambda: host.rtnl.delete_address(host.index("web"), GATEWAY),
            lambda: host.holds("web", GATEWAY),
        ),
        "subnet's route removed": (
            lambda: sandbox.host.exec(["ip", "route", "del", "192.168.15.0/24", "dev", "web"]),
            lambda: host.leads(_is_subnet),
        ),
        "veth deleted": (lambda: host.rtnl.delete_link(host.index(port)), lambda: red.holds("eth0", address)),
    }


def _inside(red, endpoint):
    address = ip_interface(f"{endpoint['address']}/24")
    return {
        "inner link set down": (
            lambda: red.rtnl.set_up(red.index("eth0"), up=False),
            lambda: red.is_up("eth0") and red.leads(_is_default),
        ),
        "inner address removed": (
            lambda: red.rtnl.delete_address(red.index("eth0"), address),
            lambda: red.holds("eth0", address) and red.leads(_is_default),
        ),
        "default route removed": (
            lambda: red.rtnl.delete_default_route(GATEWAY.ip, red.index("eth0")),
            lambda: red.leads(_is_default),
        ),
    }


def _settings(sandbox):
    names = {
        "ip_forward off": "net/ipv4/ip_forward",
        "route_localnet off (timer)": "net/ipv4/conf/web/route_localnet",
    }
    return {
        name: (
            partial(sandbox.host.write_sysctl, path, 0),
            lambda path=path: sandbox.host.sysctl(path) == "1",
        )
        for name, path in names.items()
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
