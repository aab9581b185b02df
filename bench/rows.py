"""All benchmarks, in the order they run: the last ones take down what the others share."""

from bench import burst, comparing, endpoints, events, healing, memory, portmaps, reading, starting
from bench.registry import bench

__all__ = [
    "BENCHES",
    "burst",
    "comparing",
    "endpoints",
    "events",
    "healing",
    "memory",
    "portmaps",
    "reading",
    "starting",
]

_ORDER = (
    "endpoint",
    "burst",
    "portmaps",
    "iptables",
    "connections",
    "reads",
    "memory",
    "storm",
    "peers",
    "start",
    "busy",
    "healing-iptables",
    "healing-nftables",
)
BENCHES = {name: bench.benches[name] for name in _ORDER}
