"""All benchmarks, in the order they run: the last ones take down what the others share."""

from bench import burst, comparing, endpoints, events, healing, memory, portmaps, reading, stages, starting
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
    "stages",
    "starting",
]

_ORDER = (
    "endpoint",
    "stages",
    "portmaps",
    "iptables",
    "connections",
    "peers",
    "burst",
    # from here on there are thousands of namespaces on the machine, which all that is done in one pays for
    "thousand",
    "reads",
    "memory",
    "storm",
    "start",
    "busy",
    "healing-iptables",
    "healing-nftables",
)
BENCHES = {name: bench.benches[name] for name in _ORDER}
