"""Reads while the worker builds one hundred endpoints."""

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from bench.http import Client

ENDPOINTS, CLIENTS = 100, 8
READS = ("/networks/web", "/endpoints")
_IDLE = 2.0
"""Seconds of reading while nothing else happens."""


@dataclass
class Burst:
    """Seconds: of the whole burst, and of each read by path."""

    took: float = 0.0
    busy: dict = field(default_factory=dict)
    idle: dict = field(default_factory=dict)

    def rows(self):
        per_second = ENDPOINTS / self.took
        yield f"{ENDPOINTS} endpoints by {CLIENTS} clients", f"{self.took:.2f} s", f"{per_second:.0f} endpoints/s"
        for path in READS:
            for name, reads in (("idle", self.idle[path]), ("in the burst", self.busy[path])):
                median, worst = statistics.median(reads) * 1000, max(reads) * 1000
                yield f"GET {path}, {name}", f"median {median:.2f} ms", f"worst {worst:.2f} ms of {len(reads)}"

    def figures(self):
        found = {"endpoints": ENDPOINTS, "clients": CLIENTS, "seconds": self.took, "per_second": ENDPOINTS / self.took}
        for name, reads in (("idle", self.idle), ("burst", self.busy)):
            for path in READS:
                found[f"{name} {path}"] = {
                    "median_ms": statistics.median(reads[path]) * 1000,
                    "worst_ms": max(reads[path]) * 1000,
                    "reads": len(reads[path]),
                }
        return found


def measure(daemon, idle=_IDLE):
    """On a ready daemon without objects; it has none again afterwards. idle: seconds of reading after the burst."""
    result = Burst()
    with closing(Client(daemon.socket)) as reader, closing(Client(daemon.socket)) as creator:
        creator.ask("POST", "/networks", {"name": "web"})
        over = threading.Event()
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            building = pool.submit(_build, daemon.socket, pool, over)
            result.busy = _read(reader, over.is_set)
            result.took = building.result()
        # with the endpoints there, so that the list is as long as it gets
        until = time.monotonic() + idle
        result.idle = _read(reader, lambda: time.monotonic() > until)
        creator.ask("DELETE", "/networks/web?force=true")
    return result


def _build(socket, pool, over):
    numbers = list(range(ENDPOINTS))

    def create():
        with closing(Client(socket)) as client:
            while numbers:
                try:
                    number = numbers.pop()
                except IndexError:
                    return
                client.ask("POST", "/endpoints", {"network": "web", "namespace": f"n{number}"})

    start = time.perf_counter()
    try:
        for done in [pool.submit(create) for _client in range(CLIENTS)]:
            done.result()
        return time.perf_counter() - start
    finally:
        over.set()


def _read(reader, done):
    found = {path: [] for path in READS}
    while not done():
        for path in READS:
            found[path].append(reader.ask("GET", path)[1])
    return found
