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

_DOCS = Path(__file__).resolve().parents[1] / "docs"


def _options():
    rows = ", ".join(f"{one.name}{' (extra)' if one.extra else ''}" for one in BENCHES.values())
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument(
        "names", nargs="*", choices=[[], *BENCHES], metavar="NAME", help=f"{rows}; all but the extra ones"
    )
    parser.add_argument("--no-peers", action="store_true", help="ours and the floors alone")
    parser.add_argument("--small", action="store_true", help="a tenth of all sizes and rounds, to see that all runs")
    parser.add_argument("--json", action="store_true", help="figures instead of tables")
    parser.add_argument("--out", type=Path, default=Path("build"), help="where performance.json and .svg go: build")
    parser.add_argument("--docs", action="store_true", help="write them, and the tables, into docs/")
    return parser.parse_args()


def _measure(options):
    results = []
    chosen = [BENCHES[name] for name in options.names] or [one for one in BENCHES.values() if not one.extra]
    with Ground(peers=not options.no_peers, small=options.small) as ground:
        for one in chosen:
            start = time.monotonic()
            samples = one.measure(ground)
            results.append((one, samples))
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
    where = _DOCS if options.docs else options.out
    report.write(where, results)
    if options.docs:
        page = _DOCS / "performance.md"
        page.write_text(report.put(page.read_text(), report.tables(results)))
    print(report.figures(results) if options.json else f"\n{where}/performance.json, .svg")
    LAUNCHER.shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
