"""`python -m bench [NAME...]`: every row, or those named."""

import argparse
import os
import sys
import time
from pathlib import Path

from app.sandbox import LAUNCHER
from bench import report
from bench.ground import Ground
from bench.rows import BENCHES


def _group(name):
    """`healing` is `healing-iptables` and `healing-nftables`."""
    return name.partition("-")[0]


_GROUPS = sorted({_group(name) for name in BENCHES} - set(BENCHES))
_DOCS = Path(__file__).resolve().parents[1] / "docs"


def _options():
    rows = ", ".join(f"{one.name}{' (extra)' if one.extra else ''}" for one in BENCHES.values())
    words = f"{rows}; all but the extra ones"
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES, *_GROUPS], metavar="NAME", help=words)
    parser.add_argument("--no-peers", action="store_true", help="ours and the floors alone")
    parser.add_argument("--small", action="store_true", help="a tenth of all sizes and rounds, to see that all runs")
    parser.add_argument("--json", action="store_true", help="figures instead of tables")
    parser.add_argument("--out", type=Path, default=Path("build"), help="where performance.json and .svg go: build")
    parser.add_argument("--docs", action="store_true", help="write them, and the tables, into docs/")
    return parser.parse_args()


def _chosen(names):
    if not names:
        return [one for one in BENCHES.values() if not one.extra]
    return [one for one in BENCHES.values() if {one.name, _group(one.name)} & set(names)]


def _measure(options):
    results = []
    with Ground(peers=not options.no_peers, small=options.small) as ground:
        for one in _chosen(options.names):
            start = time.monotonic()
            samples = one.measure(ground)
            results.append((one, samples))
            report.write(options.out, results)  # what is measured is kept, whatever comes
            if not options.json:
                print("", *report.text(one, samples), f"  ({time.monotonic() - start:.0f} s)", sep="\n", flush=True)
        if ground.notes and not options.json:
            print("", *ground.notes, sep="\n")
    return results


def main():
    options = _options()
    if os.geteuid() != 0:
        print("bench: needs root, to make network namespaces", file=sys.stderr)
        return 1
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in report.facts().items()))
    results = _measure(options)
    if options.docs:
        report.write(_DOCS, results)
        page = _DOCS / "performance.md"
        page.write_text(report.put(page.read_text(), report.tables(results)))
    print(
        report.figures(results)
        if options.json
        else f"\n{_DOCS if options.docs else options.out}/performance.json, .svg"
    )
    LAUNCHER.shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
