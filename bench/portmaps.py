"""Ports published, changed and withdrawn, with none there and with thousands; a connection through the last of them."""

import socket
import struct
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial

from app.sandbox import HOST, Sandbox, eventually
from bench.floor import Floor
from bench.ground import alternate
from bench.registry import Samples, Target, bench
from bench.site import FIRST_PORT

ROUNDS, CONNECT_ROUNDS, CONNECTS = 60, 20, 200
MANY, MANY_LEGACY = 10_000, 1_000
THERE = ", 10,000 there"
LEGACY = "iptables-legacy, typed once"
RAW = "raw nfnetlink: one element added"
_NEXT_PORT = 8080
_TYPED = "iptables-legacy -t nat -{} PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.20.1.0:80"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SERVER = """
import socket
listener = socket.create_server(("0.0.0.0", 80), backlog=4096)
print(flush=True)
while True:
    listener.accept()[0].close()
"""


def _targets():
    for verb in ("POST", "PATCH", "DELETE"):
        name = f"{verb} /portmaps, tcp"
        yield Target(f"{name}, none there", name, 2, kind="most")
        yield Target(f"{name}{THERE}", f"{name}{THERE}", 2, kind="most")
        yield Target(f"{name}, 10,000 there / none", f"{name}{THERE}", 1.3, name)
    # a lone request is a batch of its own
    yield Target("POST /portmaps, udp: 2 ms and a conntrack dump", "POST /portmaps, udp", 2, "conntrack dump", "plus")


def _change(client, endpoint, words, protocol="tcp"):
    """Publishes a port, changes it, withdraws it."""
    body = {"endpoint": endpoint, "host_port": _NEXT_PORT, "target_port": 80, "protocol": protocol}

    def work():
        made, published = client.ask("POST", "/portmaps", body)
        _answer, changed = client.ask("PATCH", f"/portmaps/{made['id']}", {"target_port": 81})
        _answer, withdrawn = client.ask("DELETE", f"/portmaps/{made['id']}")
        took = {"POST": published, "PATCH": changed, "DELETE": withdrawn}
        return {f"{verb} /portmaps, {protocol}{words}": seconds for verb, seconds in took.items()}

    return work


@contextmanager
def _endpoint(site, mapping=None):
    """An endpoint `pub` of its own, with that port published."""
    made, _took = site.client.ask("POST", "/endpoints", {"network": "web", "namespace": "pub"})
    if mapping is not None:
        site.client.ask("POST", "/portmaps", {"endpoint": made["id"], "host_port": mapping, "target_port": 80})
    yield made["id"]
    site.client.ask("DELETE", f"/endpoints/{made['id']}?force=true")


@bench("portmaps", "One port published, changed, withdrawn: nftables", *_targets())
def portmaps(ground):
    samples = Samples()
    with ExitStack() as stack:
        works = []
        for words, count in (("", 0), (THERE, MANY)):
            site = ground.site(mappings=count)
            endpoint = stack.enter_context(_endpoint(site))
            works += [_change(site.client, endpoint, words), _change(site.client, endpoint, words, "udp")]
        works += _floors(ground)
        alternate(samples, ground.sized(ROUNDS), *works)
    return samples


def _floors(ground):
    floor = ground.floor()
    if floor is None or not ground.has("nft"):
        return []
    file = ground.directory() / "map.nft"
    file.write_text(
        "add table ip floor\nadd map ip floor m { type inet_proto . inet_service : ipv4_addr . inet_service; }"
    )
    floor("run", "nft", "-f", file)
    element = ("floor", "m", 6, 80, "10.30.0.2", 80)

    def raw():
        return {RAW: floor("element", "add", *element), "raw nfnetlink: removed": floor("element", "delete", *element)}

    return [raw, lambda: {"conntrack dump": floor("conntrack")}]


@bench(
    "iptables",
    "One port published, changed, withdrawn: iptables, 1,000 there",
    Target("POST /portmaps, iptables, 1,000 there / iptables-legacy typed once", "POST /portmaps, tcp", 1, LEGACY),
)
def iptables(ground):
    samples = Samples()
    site = ground.site("iptables", 1, MANY_LEGACY)
    with ExitStack() as stack:
        endpoint = stack.enter_context(_endpoint(site))
        typed = None
        if ground.floor() is not None and ground.has("iptables-legacy"):
            typed = _typed(stack, site)
        alternate(samples, ground.sized(ROUNDS), _change(site.client, endpoint, ""), typed)
    return samples


def _typed(stack, site):
    """The command, where the same rules stand and no daemon sees it."""
    sandbox = stack.enter_context(Sandbox())
    rules = site.sandbox.host.exec(["iptables-legacy-save"]).stdout
    sandbox.host.exec(["iptables-legacy-restore"], stdin=rules)
    floor = stack.enter_context(Floor(sandbox))

    def work():
        took = floor("run", _TYPED.format("A"))
        floor("run", _TYPED.format("D"))
        return {LEGACY: took}

    return work


@bench(
    "connections",
    "A new connection from outside, through the last of 10,000 ports and through the only one: nftables",
    Target("a new connection, through the last of 10,000 / the only one", "the last of 10,000", 1.1, "the only one"),
)
def connections(ground):
    samples = Samples()
    one, many = ground.site(), ground.site(mappings=MANY)
    with _endpoint(one, FIRST_PORT), _serving(one, "pub"), _serving(many, "n0"):
        last = FIRST_PORT + ground.sized(MANY) - 1
        for number in range(ground.sized(CONNECT_ROUNDS)):
            pairs = [("the only one", one, FIRST_PORT), ("the last of 10,000", many, last)]
            for name, site, port in pairs if number % 2 else reversed(pairs):
                for seconds in site.sandbox.client.run(partial(_connects, port)):
                    samples.time(name, seconds)
    return samples


@contextmanager
def _serving(site, netns):
    place = site.sandbox.netns(netns)
    process = place.spawn([sys.executable, "-c", _SERVER])
    try:
        assert eventually(lambda: place.tcp("127.0.0.1", 80) is not None), "the server does not come up"
        yield
    finally:
        process.kill()
        process.communicate()


def _connects(port):
    took = []
    for _number in range(CONNECTS):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            # nothing is left in TIME_WAIT, here or in conntrack
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            start = time.perf_counter()
            connection.connect((HOST, port))
            took.append(time.perf_counter() - start)
    return took
