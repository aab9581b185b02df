"""One endpoint made and removed; two hundred by eight clients, and their network removed."""

import itertools
import os
import sqlite3
import time
from pathlib import Path

from bench.floor import GATEWAY, GROUP, PREFIX, bare
from bench.ground import alternate
from bench.http import packed, together
from bench.registry import Samples, Target, bench
from bench.site import SETTLE

ROUNDS = 60
OTHERS, MAPPINGS = 999, 10_000
MANY, CLIENTS, BURSTS = 200, 8, 5
POST, DELETE = "POST /endpoints", "DELETE /endpoints"
RAW_ADD, RAW_DELETE = "raw netlink: add", "raw netlink: delete"
RAW_NETNS = "raw: a namespace made"
BARE, BARE_ROW = "bare API: a row and raw netlink", "bare API: a row"
_FIRST, _THOUSANDTH, _BESIDE = ", the first", ", the 1,000th", ", 10,000 mappings there"
_SITES = {
    _FIRST: (0, 0),
    _FIRST + _BESIDE: (0, MAPPINGS),
    _THOUSANDTH: (OTHERS, 0),
    _THOUSANDTH + _BESIDE: (OTHERS, MAPPINGS),
}
BACK_TO_BACK = ", back to back"
_BATCH = """link add {name} mtu 1500 group {group} master floor0 numtxqueues 1 numrxqueues 1 type veth \
peer name eth0 netns {netns} mtu 1500 numtxqueues 1 numrxqueues 1
link set {name} alias floor
link set {name} up
"""
_INSIDE = """link set eth0 alias floor
address add 10.30.0.2/{prefix} dev eth0
link set eth0 up
route add default via {gateway} dev eth0
"""


def _ours(site, words, body, pause=SETTLE):
    """Makes an endpoint and removes it."""

    def work():
        made, adding = site.client.ask("POST", "/endpoints", body)
        time.sleep(pause)
        _nothing, removing = site.client.ask("DELETE", f"/endpoints/{made['id']}")
        return {f"{POST}{words}": adding, f"{DELETE}{words}": removing}

    return work


def _raw(floor, words, pause=SETTLE):
    def work():
        adding = floor.attach("fl", "/run/netns/red")
        time.sleep(pause)
        return {f"{RAW_ADD}{words}": adding, f"{RAW_DELETE}{words}": floor("delete", "fl")}

    return work


def _raw_netns(floor):
    """A namespace made as `ip netns add` does; it stays until the end."""
    names = itertools.count()
    return lambda: {RAW_NETNS: floor("netns", f"/run/netns/raw{next(names)}")}


def _bare(ground, floor):
    """The floor's objects by the least of a daemon, in the floor's sandbox."""
    client = ground.kept(bare(floor.sandbox, ground.directory()))
    asked = {"network": "web", "namespace": "red"}

    def work():
        made, adding = client.ask("POST", "/endpoints", asked)
        time.sleep(SETTLE)
        client.ask("DELETE", f"/endpoints/{made['id']}")
        time.sleep(SETTLE)
        return {BARE: adding, BARE_ROW: client.ask("POST", "/rows", asked)[1]}

    return work


def _ip_batch(ground, floor):
    """The same by commands, one process for each namespace."""
    values = {"name": "fb", "group": GROUP, "netns": "red", "prefix": PREFIX, "gateway": GATEWAY}
    files = [ground.directory() / name for name in ("outside", "inside")]
    for file, lines in zip(files, (_BATCH, _INSIDE), strict=True):
        file.write_text(lines.format(**values))

    def work():
        took = floor("run", "ip", "-batch", files[0]) + floor("run", "ip", "-n", "red", "-batch", files[1])
        time.sleep(SETTLE)
        floor("delete", "fb")
        return {"ip -batch: add": took}

    return work


def _commit(ground):
    """One row written by SQLite alone, as safely as ours."""
    database = sqlite3.connect(ground.directory() / "floor.db", isolation_level=None)
    for words in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {words}")
    database.execute("CREATE TABLE one (number INTEGER)")
    ground.on_exit(database.close)

    def work():
        start = time.perf_counter()
        database.execute("INSERT INTO one VALUES (1)")
        return {"one SQLite commit, synchronous=FULL": time.perf_counter() - start}

    return work


@bench(
    "endpoint",
    "One endpoint made and removed",
    Target("POST /endpoints, existing namespace / raw netlink", POST, 3, RAW_ADD),
    Target("POST /endpoints, creating the namespace", f"{POST}, with its namespace", 1, POST, kind="plus"),
    Target("POST /endpoints / raw netlink, both back to back", f"{POST}{BACK_TO_BACK}", 3, f"{RAW_ADD}{BACK_TO_BACK}"),
    Target("DELETE /endpoints, one / a blocking raw-netlink delete", DELETE, 0.25, RAW_DELETE),
)
def endpoint(ground):
    samples = Samples()
    site, floor = ground.site(), ground.floor()
    _made_netns(site, "red")
    works = [_ours(site, "", {"network": "web", "namespace": "red"})]
    works.append(_ours(site, ", with its namespace", {"network": "web", "namespace": "new"}))
    if floor is not None:
        floor.netns("red")
        works += [_raw(floor, ""), _raw_netns(floor), _bare(ground, floor)]
        works += [_ip_batch(ground, floor)] if ground.has("ip") else []
    alternate(samples, ground.sized(ROUNDS), *works, _commit(ground))
    _back_to_back(ground, samples)
    return samples


@bench(
    "thousand",
    "One endpoint made and removed, as the first and as the 1,000th, in turn",
    Target("POST /endpoints, the 1,000th / the first", POST + _THOUSANDTH, 1.3, POST + _FIRST),
    Target("the same with 10,000 mappings of others there", POST + _THOUSANDTH + _BESIDE, 1.3, POST + _FIRST + _BESIDE),
    Target("POST /endpoints, the 1,000th / raw netlink, the 1,000th", POST + _THOUSANDTH, 3, RAW_ADD + _THOUSANDTH),
)
def thousand(ground):
    samples = Samples()
    works = []
    for words, (endpoints, mappings) in _SITES.items():
        site = ground.site(endpoints=endpoints, mappings=mappings)
        _made_netns(site, "red")
        works.append(_ours(site, words, {"network": "web", "namespace": "red"}))
    for words, ports in ((_FIRST, 0), (_THOUSANDTH, OTHERS)):
        floor = ground.floor(ports)
        if floor is not None:
            floor.netns("red")
            works.append(_raw(floor, words))
    alternate(samples, ground.sized(ROUNDS), *works)
    return samples


def _back_to_back(ground, samples):
    """Without a pause: what is left to the kernel's threads is in the way then, but the code is in the caches."""
    works = [_ours(ground.site(), BACK_TO_BACK, {"network": "web", "namespace": "red"}, pause=0)]
    if ground.floor() is not None:
        works.append(_raw(ground.floor(), BACK_TO_BACK, pause=0))
    for work in works:
        for _round in range(ground.sized(ROUNDS)):
            for name, seconds in work().items():
                samples.time(name, seconds)


def _made_netns(site, name):
    if name not in site.sandbox.netns_names():
        site.sandbox.add_netns(name)


@bench(
    "burst",
    f"{MANY} endpoints by {CLIENTS} clients, and their network removed",
    Target(f"{MANY} endpoints by {CLIENTS} clients", "existing namespaces", 500, kind="least"),
    Target(
        f"DELETE of a network with {MANY} endpoints (?force=true) / one group delete",
        "DELETE /networks?force=true",
        2,
        "raw netlink: group delete",
    ),
)
def burst(ground):
    samples = Samples()
    site, floor = ground.site(), ground.floor()
    for number in range(MANY):
        _made_netns(site, f"b{number}")
        if floor is not None:
            floor("netns", f"/run/netns/f{number}")
    for _round in range(ground.sized(BURSTS)):
        for words, prefix in (("existing namespaces", "b"), ("with their namespaces", "c")):
            _burst(samples, site, words, prefix)
            if floor is not None and prefix == "b":
                samples.add("raw netlink, one at a time", MANY / floor.build(MANY, make=False), "/s")
                time.sleep(SETTLE)
                samples.time("raw netlink: group delete", floor("group", GROUP))
    return samples


def _burst(samples, site, words, prefix):
    ask = site.client.ask
    ask("POST", "/networks", {"name": "burst", "subnet": "10.21.0.0/16"})
    bodies = ({"network": "burst", "namespace": f"{prefix}{number}"} for number in range(MANY))
    requests = [packed("POST", "/endpoints", body) for body in bodies]
    before = _cpu(site.daemon.pid)
    samples.add(words, MANY / together(site.daemon.socket, requests, CLIENTS), "/s")
    for where, seconds, earlier in zip(("outside", "in"), _cpu(site.daemon.pid), before, strict=True):
        samples.time(f"{words}: the daemon's CPU time {where} the kernel, each", (seconds - earlier) / MANY)
    time.sleep(SETTLE)
    _nothing, took = ask("DELETE", "/networks/burst?force=true")
    samples.time(f"DELETE /networks?force=true{', with the namespaces' * (prefix == 'c')}", took)
    time.sleep(10 * SETTLE)


def _cpu(pid):
    """A process's CPU seconds outside the kernel and in it, of all its threads (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[11:13]]
