"""Row 12: networks without a way out: internal ones, and those without a gateway."""

import pytest
from lab import asking, together
from world import QUIET, refused

accepting = pytest.mark.parametrize("forward_policy", ["ACCEPT"])  # DROP would do our work
kinds = pytest.mark.parametrize("kind", ["internal", "no gateway"])


@pytest.fixture
def closed(lab, family, kind):
    """red on a closed network that the internet has a route to; whatever it sends, it sends to the bridge."""
    without = {"gateway": None, **lab.only6(gateway6=None)}
    lab.network("web", **({"internal": True} if kind == "internal" else without))
    red = lab.endpoint("red")
    assert red.default_route(family.version) is None
    lab.route_back(family.web)
    if kind == "internal":
        lab.check((cell := Uncounted()), True, red, family.web_gateway, lab.host)
        lab.check(cell, True, lab.host, family.red, red)
    else:
        knows(red, family, family.web_gateway, "eth0", lab.host.links()["web"].mac)
        knows(lab.host, family, family.red, "web", red.links()["eth0"].mac)
        lab.host.exec(["ip", f"-{family.version}", "route", "replace", family.red, "dev", "web"])
    lab.route(red, "default", family.web_gateway)
    return red
