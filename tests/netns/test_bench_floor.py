"""The benchmarks' floor makes what the daemon makes, else a ratio of the two would say nothing."""

from dataclasses import replace

import pytest
from world import endpoint, network

from app.model.naming import owner_of
from bench import floor
from bench.floor import Floor


@pytest.fixture
def raw(sandbox):
    try:
        floor.binary()
    except floor.Missing as missing:
        pytest.skip(str(missing))
    with Floor(sandbox) as made:
        yield made


def _shape(link):
    """A link, but for what tells one from another."""
    assert owner_of(link.alias), f"{link.name} has no mark"
    alike = {"index": 0, "name": "", "mac": "", "alias": "", "master": 0, "group": 0, "peer_index": 0, "nsid": 0}
    return replace(link, **alike)


def _seen(sandbox, netns, host_ifname):
    inside = sandbox.netns(netns)
    with inside.rtnl() as rtnl:
        addresses = [(address.network.prefixlen, number) for _index, address, number in rtnl.marked_addresses()]
        routes = sorted((str(one.destination), one.protocol) for one in rtnl.routes() if one.via)
    return _shape(sandbox.host.links()[host_ifname]), _shape(inside.links()["eth0"]), addresses, routes


def test_floor_makes_the_same_objects_as_the_daemon(sandbox, api, raw, baseline, tmp_path):
    sandbox.add_netns("red")
    sandbox.add_netns("blue")
    baseline.take()
    raw.bridge()
    network(api, "web", subnet="10.20.0.0/16")
    made = endpoint(api, "red")
    raw.attach("floor1", "/run/netns/blue")
    assert _seen(sandbox, "red", made["host_ifname"]) == _seen(sandbox, "blue", "floor1")
    raw("delete", "floor1")
    with floor.bare(sandbox, tmp_path) as client:
        client.ask("POST", "/endpoints", {"network": "web", "namespace": "blue"})
        assert _seen(sandbox, "red", made["host_ifname"]) == _seen(sandbox, "blue", "bare")
        client.ask("DELETE", "/endpoints/any")
    raw("delete", floor.BRIDGE)


def test_floor_says_what_the_kernel_refused(raw):
    with pytest.raises(RuntimeError, match="No such file"):
        raw.attach("floor1", "/run/netns/nowhere")
