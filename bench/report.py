"""Results as text, as Markdown and as JSON."""

import json
import os
import platform
from pathlib import Path

from bench.bars import bars
from bench.picture import svg
from bench.site import filesystem

BEGIN, END = "<!-- made by `make bench` -->", "<!-- end -->"
_LOAD = round(os.getloadavg()[0], 1)
"""Of the minute before the run: what else the machine was doing."""
_VERDICT = {True: "met", False: "missed", None: "-"}


def facts():
    """What a reader must know of the machine."""
    return {
        "linux": platform.release().partition("-")[0],
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "disk": filesystem(Path("/var/tmp")),
        "load": _LOAD,
    }


def number(value, unit):
    """Three digits that count."""
    if unit == "%":
        return f"{value:.2f} %"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if abs(value) >= 1 else 3
    return f"{value:,.{digits}f} {unit}".strip()


def text(one, samples):
    """Lines of a benchmark: its series, then its targets."""
    yield one.title
    for name, values in samples.items():
        unit = samples.units[name]
        low, high = samples.spread(name)
        spread = f"5-95 %: {number(low, '')} - {number(high, '')}" if len(values) > 1 else ""
        yield f"  {name:<58} {number(samples.median(name), unit):>12}  {spread:<30} n {len(values)}"
    for target in one.targets:
        value = target.value(samples)
        shown = "-" if value is None else _value(target, samples, value)
        yield f"  -> {target.what:<68} {shown:>12}  {target.words(samples):<12} {_VERDICT[target.met(samples)]}"
    yield from (f"  ({note})" for note in samples.notes)


def _value(target, samples, value):
    if target.kind == "ratio":
        return f"{value:.2f} x"
    return ("+" if target.kind == "plus" and value >= 0 else "") + number(value, samples.units[target.ours])


def markdown(results):
    """The table of targets, of (benchmark, samples)."""
    lines = ["| what | ours | beside | | target | |", "| --- | --- | --- | --- | --- | --- |"]
    for one, samples in results:
        for target in one.targets:
            value = target.value(samples)
            shown = "" if value is None or target.kind in {"most", "least"} else _value(target, samples, value)
            verdict = _VERDICT[target.met(samples)]
            cells = (target.what, _cell(samples, target.ours), _cell(samples, target.beside), shown)
            lines.append(f"| {' | '.join(cells)} | {target.words(samples)} | {verdict} |")
    return lines


def _cell(samples, name):
    if name not in samples:
        return ""
    median, (low, high) = samples.median(name), samples.spread(name)
    shown = number(median, samples.units[name])
    return f"{shown} ({number(low, '')}-{number(high, '')})" if low != high else shown


def figures(results):
    """The same for machines."""
    found = dict(facts())
    found["benchmarks"] = {
        one.name: {
            "series": {
                name: {
                    "unit": samples.units[name],
                    "median": round(samples.median(name), 4),
                    "from_5": round(samples.spread(name)[0], 4),
                    "to_95": round(samples.spread(name)[1], 4),
                    "samples": len(values),
                }
                for name, values in samples.items()
            },
            "targets": [
                {
                    "what": target.what,
                    "ours": target.ours,
                    "beside": target.beside,
                    "kind": target.kind,
                    "limit": target.limit,
                    "value": None if (value := target.value(samples)) is None else round(value, 4),
                    "met": target.met(samples),
                }
                for target in one.targets
            ],
        }
        for one, samples in results
    }
    return json.dumps(found, indent=1) + "\n"


def series_table(results):
    """Every series, as Markdown."""
    lines = ["| | median | 5-95 % | samples |", "| --- | --- | --- | --- |"]
    for one, samples in results:
        lines.append(f"| **{one.title}** | | | |")
        for name, values in samples.items():
            low, high = samples.spread(name)
            cells = name, number(samples.median(name), samples.units[name]), f"{number(low, '')}-{number(high, '')}"
            lines.append(f"| {' | '.join(cells)} | {len(values)} |")
    return lines


def put(page, lines):
    """Replaces what stands between the page's marks. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return "\n".join([before + BEGIN, "", *lines, "", END + after])


def tables(results):
    """What goes into the page: the targets, every series, and what is to be known of them."""
    words = ", ".join(f"{name} {value}" for name, value in facts().items())
    notes = [f"- {note}" for _one, samples in results for note in samples.notes]
    return [f"One run: {words}.", "", *markdown(results), "", *series_table(results), *([""] if notes else []), *notes]


def write(where, results):
    """performance.json, and the picture."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "performance.json").write_text(figures(results))
    (where / "performance.svg").write_text(svg(bars(results)))
