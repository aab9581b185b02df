"""How long one change takes, one at a time."""

import statistics
from contextlib import closing
from dataclasses import dataclass, field

from bench.http import Client

ROUNDS = 50


@dataclass
class Latency:
    """Seconds by request."""

    took: dict = field(default_factory=dict)

    def rows(self):
        for name, times in self.took.items():
            median, worst = statistics.median(times) * 1000, max(times) * 1000
            yield name, f"median {median:.1f} ms", f"worst {worst:.1f} ms of {len(times)}"

    def figures(self):
        return {
            name: {"median_ms": statistics.median(times) * 1000, "worst_ms": max(times) * 1000}
            for name, times in self.took.items()
        }


def measure(daemon):
    """On a ready daemon without objects; it has none again afterwards."""
    names = ("POST /endpoints", "POST /portmaps", "DELETE /portmaps/ID", "DELETE /endpoints/ID")
    result = Latency({name: [] for name in names})
    with closing(Client(daemon.socket)) as client:

        def ask(name, path, body=None):
            answer, took = client.ask(name.split()[0], path, body)
            result.took[name].append(took)
            return answer

        client.ask("POST", "/networks", {"name": "web"})
        for number in range(ROUNDS):
            endpoint = ask(names[0], "/endpoints", {"network": "web", "namespace": f"n{number}"})
            portmap = ask(names[1], "/portmaps", {"endpoint": endpoint["id"], "host_port": 8080, "target_port": 80})
            ask(names[2], f"/portmaps/{portmap['id']}")
            ask(names[3], f"/endpoints/{endpoint['id']}")
        client.ask("DELETE", "/networks/web")
    return result
