"""Where the time of an endpoint's POST and DELETE goes, from a daemon that watches itself."""

import json
import statistics
import time

from bench.registry import Samples, bench
from bench.site import SETTLE

ROUNDS = 200
FILE = "stages.json"
"""In the daemon's state directory: seconds by stage, of one change after the other."""
PLANNED_AGAIN = "again"
_ENTRY = ("bench.staged:run", "app.settings:Settings")
_STAGES = {
    "plan": "planning: checks, the address, the names",
    "kernel": "the kernel changed, and what that takes in Python",
    "rows": "rows written",
    "sync": "COMMIT, until it is on the disk",
    "audit": "audit line",
    "publish": "statuses, the answer handed over",
    "rest": "transaction, rendering, comparing",
}
_PLANS = {"first": "a plan, made for the first time", PLANNED_AGAIN: "the same plan once more, at once"}
_CPU = {"user": "worker's CPU time outside the kernel, mean", "system": "worker's CPU time in the kernel, mean"}


@bench("stages", "Where the time of one endpoint goes: a daemon that times itself")
def stages(ground):
    samples = Samples()
    site = ground.own_site(entry=_ENTRY)
    site.sandbox.add_netns("red")
    body = {"network": "web", "namespace": "red"}
    took, rounds = [], ground.sized(ROUNDS)
    for _round in range(rounds):
        made, adding = site.client.ask("POST", "/endpoints", body)
        time.sleep(SETTLE)
        _nothing, removing = site.client.ask("DELETE", f"/endpoints/{made['id']}")
        time.sleep(SETTLE)
        took += [adding, removing]
    site.daemon.stop()
    found = json.loads((site.daemon.state_dir / FILE).read_text())[-2 * rounds :]
    for verb, first in (("POST", 0), ("DELETE", 1)):
        _told(samples, f"{verb}: ", took[first::2], found[first::2])
    return samples


def _told(samples, words, took, found):
    for seconds, one in zip(took, found, strict=True):
        if PLANNED_AGAIN in one:
            continue
        one["publish"] -= one.get("audit", 0.0)
        one["sync"] = one["commit"] - one["rows"]
        one["rest"] = one["answered"] - sum(one.get(stage, 0.0) for stage in _STAGES if stage != "rest")
        samples.time(f"{words}in all, as the client sees it", seconds)
        samples.time(f"{words}HTTP, the event loop, from thread to thread", seconds - one["answered"])
        for stage, name in _STAGES.items():
            samples.time(words + name, one.get(stage, 0.0))
    for stage, name in _PLANS.items():
        for one in found:
            if stage in one:
                samples.time(words + name, one[stage])
    for stage, name in _CPU.items():
        samples.time(words + name, statistics.mean(one[stage] for one in found if PLANNED_AGAIN not in one))
