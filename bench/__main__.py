"""`python -m bench [NAME...] [--json]`: all of them, or those named."""

import argparse
import json
import os
import platform
import sys

from app.sandbox import LAUNCHER, Sandbox
from bench import burst, healing, latency, mappings, memory


def _burst():
    with Sandbox(forward="DROP") as sandbox, sandbox.daemon(command=True) as daemon:
        return burst.measure(daemon)


def _memory():
    with Sandbox(forward="DROP") as sandbox:
        return memory.measure(sandbox)


def _latency():
    with Sandbox(forward="DROP") as sandbox, sandbox.daemon(command=True) as daemon:
        return latency.measure(daemon)


def _mappings(backend):
    return lambda: mappings.measure(backend)


def _healing(backend):
    def run():
        policy = "DROP" if backend == "iptables" else "ACCEPT"
        values = {"fast_repairs": 100_000}  # what is measured looks like a fight
        with Sandbox(forward=policy) as sandbox, sandbox.daemon(firewall=backend, values=values) as daemon:
            return healing.measure(sandbox, daemon, backend)

    return run


BENCHES = {
    "reads": ("Reads while the worker builds endpoints", _burst),
    "memory": ("Memory, idle", _memory),
    "latency": ("One change at a time", _latency),
    **{
        f"mappings-{name}": (f"Published ports, one and {mappings.COUNT}, {name}", _mappings(name))
        for name in mappings.BACKENDS
    },
    **{f"healing-{name}": (f"From damage to repair, {name}", _healing(name)) for name in mappings.BACKENDS},
}

GROUPS = tuple(dict.fromkeys(name.partition("-")[0] for name in BENCHES))
"""`healing` is `healing-iptables` and `healing-nftables`."""


def main():
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", choices=[[], *GROUPS, *BENCHES], metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--json", action="store_true", help="figures instead of tables")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root, to make network namespaces", file=sys.stderr)
        return 1
    figures = {"python": platform.python_version(), "linux": platform.release(), "cpus": os.cpu_count()}
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))
    names = options.names or BENCHES
    for name in [one for name in names for one in BENCHES if name in (one, one.partition("-")[0])]:
        title, measure = BENCHES[name]
        result = measure()
        figures[name] = result.figures()
        if not options.json:
            print(f"\n{title}")
            for row in result.rows():
                print("  {:<44}{:<20}{}".format(*row))
    if options.json:
        print(json.dumps(figures, indent=2))
    LAUNCHER.shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
