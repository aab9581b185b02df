"""Published ports by the thousand: what a new connection and the next port cost, beside the same with one mapping.

Two sandboxes at once, one with a single mapping and one with many; the samples alternate between them, so that what
else the machine does meets both alike.
"""

import socket
import statistics
import struct
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address

from app.model.naming import new_id
from app.model.spec import Portmap, Protocol
from app.sandbox import HOST, Sandbox
from app.store.session import open_database, transaction
from bench.http import Client

COUNT = 10_000
BACKENDS = ("nftables", "iptables")
_FIRST_PORT = 20_000
_NEXT_PORT = 8080
_ROUNDS, _CONNECTS, _CHANGES = 20, 200, 40
_READY_WITHIN = 300.0
"""Seconds until a daemon has built thousands of mappings on an empty kernel."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SERVER = """
import socket
listener = socket.create_server(("0.0.0.0", 80), backlog=4096)
print(flush=True)
while True:
    listener.accept()[0].close()
"""


@dataclass
class Mappings:
    """Seconds, by what was measured and how many mappings were there."""

    count: int
    took: dict = field(default_factory=dict)

    def ratio(self, what):
        """How much longer the median takes with many mappings than with one."""
        return statistics.median(self.took[what, self.count]) / statistics.median(self.took[what, 1])

    def rows(self):
        for (what, count), times in self.took.items():
            median, spread = statistics.median(times) * 1000, statistics.quantiles(times, n=20)
            words = f"{what}, {count} mapping{'s' if count > 1 else ''}"
            yield words, f"median {median:.3f} ms", f"5-95%: {spread[0] * 1000:.3f}-{spread[-1] * 1000:.3f} ms"
            if count == self.count:
                yield "", f"ratio {self.ratio(what):.2f}", f"{len(times)} samples each"

    def figures(self):
        found = {
            f"{what}, {count}": {"median_ms": statistics.median(times) * 1000, "samples": len(times)}
            for (what, count), times in self.took.items()
        }
        return {"count": self.count, **found, "ratios": {what: self.ratio(what) for what, _count in self.took}}


class Site:
    """A sandbox whose daemon has `count` mappings, all to one server."""

    def __init__(self, stack, backend, count):
        self.count = count
        self.sandbox = stack.enter_context(Sandbox())
        self.daemon = stack.enter_context(self.sandbox.daemon(firewall=backend, values={"resync": 3600.0}))
        with closing(Client(self.daemon.socket)) as client:
            client.ask("POST", "/networks", {"name": "web"})
            self.endpoint = client.ask("POST", "/endpoints", {"network": "web", "namespace": "red"})[0]["id"]
        self._publish()
        stack.enter_context(_serving(self.sandbox.netns("red")))
        self.client = stack.enter_context(closing(Client(self.daemon.socket)))

    def _publish(self):
        """Writes the mappings as the daemon would, which then builds them all at its start."""
        self.daemon.stop()
        engine = open_database(f"sqlite:///{self.daemon.state_dir}/bridgehead.db")
        now = datetime.now(UTC)
        with transaction(engine) as store:
            for port in range(_FIRST_PORT, _FIRST_PORT + self.count):
                store.add_portmap(
                    Portmap(
                        id=new_id(),
                        endpoint_id=self.endpoint,
                        protocol=Protocol.TCP,
                        host_ip=ip_address("0.0.0.0"),
                        host_port=port,
                        target_port=80,
                        created_at=now,
                        updated_at=now,
                    )
                )
        engine.dispose()
        self.daemon.launch()
        self.daemon.wait_ready(_READY_WITHIN)

    def connect(self):
        """Seconds of each of some new connections through the last mapping."""
        return self.sandbox.client.run(lambda: _connects(HOST, _FIRST_PORT + self.count - 1))

    def change(self):
        """Seconds for publishing the next port, changing it, withdrawing it."""
        body = {"endpoint": self.endpoint, "host_port": _NEXT_PORT, "target_port": 80}
        made, published = self.client.ask("POST", "/portmaps", body)
        _answer, changed = self.client.ask("PATCH", f"/portmaps/{made['id']}", {"target_port": 81})
        _answer, withdrawn = self.client.ask("DELETE", f"/portmaps/{made['id']}")
        return {"POST /portmaps": published, "PATCH /portmaps/ID": changed, "DELETE /portmaps/ID": withdrawn}


@contextmanager
def _serving(place):
    process = place.spawn([sys.executable, "-c", _SERVER])
    try:
        deadline = time.monotonic() + 10
        while place.tcp("127.0.0.1", 80) is None and isinstance(place.failure, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not come up")
        yield
    finally:
        process.kill()
        process.communicate()


def _connects(address, port):
    took = []
    for _number in range(_CONNECTS):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            # nothing is left in TIME_WAIT, here or in conntrack
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            start = time.perf_counter()
            connection.connect((address, port))
            took.append(time.perf_counter() - start)
    return took


def measure(backend, count=COUNT):
    """Both sites side by side."""
    with ExitStack() as stack:
        sites = [Site(stack, backend, 1), Site(stack, backend, count)]
        result = Mappings(count)
        for number in range(_ROUNDS):
            for site in sites if number % 2 else reversed(sites):
                result.took.setdefault(("a new connection", site.count), []).extend(site.connect())
        for number in range(_CHANGES):
            for site in sites if number % 2 else reversed(sites):
                for what, took in site.change().items():
                    result.took.setdefault((what, site.count), []).append(took)
        result.took = dict(sorted(result.took.items(), key=lambda one: (one[0][0], one[0][1])))
    return result
