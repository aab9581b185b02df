"""A start with everything in place, and one on an empty kernel, with 1,000 endpoints and 10,000 mappings."""

import socket

from app.sandbox import Sandbox
from bench.endpoints import MAPPINGS, OTHERS
from bench.floor import Floor
from bench.registry import Samples, Target, bench

PLACE_ROUNDS, EMPTY_ROUNDS = 3, 2
_RTNL_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""Links, addresses and routes (linux/rtnetlink.h, RTMGRP_*)."""
_NETLINK_ROUTE, _NETLINK_NETFILTER, _NFT_GROUP = 0, 12, 1 << 6
_SO_RCVBUFFORCE = 33
_AF_BRIDGE = 7


@bench(
    "start",
    "A start with 1,000 endpoints and 10,000 mappings",
    Target("start, all in place, nothing to do", "all in place", 2, kind="most"),
    Target("what it changes", "changes made by it", 0, kind="most"),
    Target("start on an empty kernel / raw netlink and one nft transaction", "empty kernel", 3, "raw: both"),
)
def start(ground):
    samples = Samples()
    site = ground.site(endpoints=OTHERS, mappings=MAPPINGS)
    site.client.ask("POST", "/endpoints", {"network": "web", "namespace": "last"})
    links = len(site.sandbox.host.links())
    for _round in range(PLACE_ROUNDS):
        site.daemon.stop()
        with Changes(site.sandbox.host) as changes:
            samples.add("all in place", site.start(), "s")
            samples.add("changes made by it", changes.count(), "")
    rules = ground.directory() / "rules.nft"
    if ground.has("nft"):
        rules.write_text(site.sandbox.host.exec(["nft", "list", "ruleset"]).stdout)
    for _round in range(EMPTY_ROUNDS):
        site.move()
        samples.add("empty kernel", site.start(), "s")
        there = len(site.sandbox.host.links())
        if there != links:
            raise RuntimeError(f"ready, with {there} links of {links}")
        if ground.floor() is not None and rules.exists():
            _raw(samples, ground, rules)
    return samples


def _raw(samples, ground, rules):
    floor = ground.kept(Floor(ground.kept(Sandbox())))
    floor.bridge()
    links = floor.build(ground.sized(OTHERS + 1), make=True)
    transaction = floor("run", "nft", "-f", rules)
    for name, seconds in (("endpoints and namespaces", links), ("one nft transaction", transaction)):
        samples.add(f"raw: {name}", seconds, "s")
    samples.add("raw: both", links + transaction, "s")


class Changes:
    """A context manager: what the kernel announces of links, addresses, routes and nf_tables of a namespace."""

    def __init__(self, place):
        self._sockets = []
        for protocol, groups in ((_NETLINK_ROUTE, _RTNL_GROUPS), (_NETLINK_NETFILTER, _NFT_GROUP)):
            made = place.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
            made.bind((0, groups))
            self._sockets.append(made)

    def count(self):
        """Messages so far. Raises OSError ENOBUFS where some were lost."""
        # what a bridge says of its ports, it says by itself, seconds after they came
        routes, rules = (list(_received(one)) for one in self._sockets)
        return sum(data[16] != _AF_BRIDGE for data in routes) + len(rules)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        for one in self._sockets:
            one.close()


def _received(one):
    while True:
        try:
            yield one.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
