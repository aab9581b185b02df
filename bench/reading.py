"""Reads: one object, a page of a long list."""

import time

from bench.endpoints import MAPPINGS, OTHERS
from bench.registry import Samples, Target, bench

ROUNDS = 300
_PAUSE = 0.001


@bench(
    "reads",
    "One object, and a page of 100 of 1,000 (`?cursor=`), with 10,000 mappings there",
    Target("GET of one object", "GET /endpoints/ID", 1, kind="most"),
    Target("GET of a page of 100 of 1,000 endpoints", "GET /endpoints, a page", 5, kind="most"),
)
def reads(ground):
    samples = Samples()
    site = ground.site(endpoints=OTHERS, mappings=MAPPINGS)
    paths = {
        "GET /networks/NAME": "/networks/web",
        "GET /endpoints/ID": f"/endpoints/{_first(site, 'endpoints')}",
        "GET /portmaps/ID": f"/portmaps/{_first(site, 'portmaps')}",
    }
    for kind in ("endpoints", "portmaps"):
        answer, _took = site.client.exchange("GET", f"/{kind}?limit=100")
        if answer.next is not None:  # not with fewer
            paths[f"GET /{kind}, a page"] = answer.next
    for _round in range(ground.sized(ROUNDS)):
        for name, path in paths.items():
            samples.time(name, site.client.exchange("GET", path)[1])
            time.sleep(_PAUSE)
    return samples


def _first(site, kind):
    return site.client.ask("GET", f"/{kind}?limit=1")[0][0]["id"]
