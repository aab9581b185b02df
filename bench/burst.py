"""Reads while the worker builds one hundred endpoints."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from app.sandbox import Sandbox
from bench.http import Client
from bench.registry import Samples, bench

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


@bench("busy", f"Reads while the worker builds {ENDPOINTS} endpoints", extra=True)
def busy(_ground):
    samples = Samples()
    with Sandbox(forward="DROP") as sandbox, sandbox.daemon(command=True) as daemon:
        result = measure(daemon)
    samples.add(f"{ENDPOINTS} endpoints by {CLIENTS} clients", ENDPOINTS / result.took, "/s")
    for words, reads in (("idle", result.idle), ("in the burst", result.busy)):
        for path in READS:
            for seconds in reads[path]:
                samples.time(f"GET {path}, {words}", seconds)
    return samples


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
