"""What the daemon does while foreign links come and go."""

import time
from pathlib import Path

from bench.endpoints import MAPPINGS, OTHERS
from bench.registry import Samples, Target, bench

SECONDS, PER_SECOND, ROUNDS = 4, 50, 3


@bench(
    "storm",
    f"Foreign links come and go, {PER_SECOND} a second",
    Target("CPU while foreign links come and go, of one core", "CPU, nothing of others there", 5, kind="most"),
    Target(
        "the same, 1,000 endpoints and 10,000 mappings there", "CPU, 1,000 endpoints, 10,000 mappings", 5, kind="most"
    ),
)
def storm(ground):
    samples = Samples()
    sites = {
        "nothing of others there": ground.site(),
        "1,000 endpoints, 10,000 mappings": ground.site(endpoints=OTHERS, mappings=MAPPINGS),
    }
    for _round in range(ground.sized(ROUNDS)):
        for words, site in sites.items():
            pid = site.daemon.pid
            time.sleep(1)  # what came with the last request is over
            samples.add(f"CPU idle, {words}", 100 * share(pid, lambda: time.sleep(2)), "%")
            read = files_read(pid)
            samples.add(f"CPU, {words}", 100 * share(pid, lambda site=site: links(site.sandbox)), "%")
            samples.add(f"read() a link, {words}", (files_read(pid) - read) / (SECONDS * PER_SECOND), "")
    return samples


def share(pid, work):
    """Of one core, while the work is done."""
    start, before = time.perf_counter(), _used(pid)
    work()
    return (_used(pid) - before) / (time.perf_counter() - start)


def _used(pid):
    """Seconds of CPU of all its threads, by the scheduler's own clock (Documentation/scheduler/sched-stats)."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def files_read(pid):
    """How often it has read from a file, a setting below /proc among them: a pass reads many (proc(5), io)."""
    return int(Path(f"/proc/{pid}/io").read_text().partition("syscr: ")[2].split()[0])


def links(sandbox, seconds=SECONDS, per_second=PER_SECOND):
    """A bridge that is made and removed again, over and over."""
    with sandbox.host.rtnl() as rtnl:
        start = time.perf_counter()
        for number in range(seconds * per_second):
            rtnl.add_plain_bridge("storm")
            rtnl.delete_link(rtnl.index_of("storm"))
            time.sleep(max(0.0, start + (number + 1) / per_second - time.perf_counter()))
