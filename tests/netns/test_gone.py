"""Endpoints whose namespace is gone: what is asked of another object succeeds, and their own status says why.

Each has a sibling in the same namespace and port mappings, so that every change comes by what is gone.
"""

import os
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from world import delete, endpoint, get, made, network, patch, portmap, refused

from app.kernel import libc
from app.sandbox import HOST, eventually
from app.services.requests import NetworkPatch

PATH = "/run/container"


def process(sandbox, stack):
    """A process that ends."""
    process = ExitStack()
    pid, _inside = process.enter_context(sandbox.process())
    stack.callback(process.close)
    return {"pid": pid}, process.close


def name(sandbox, _stack):
    """Somebody else's name, which is not made again."""
    sandbox.add_netns("red")
    return {"namespace": "red", "create_namespace": False}, partial(sandbox.delete_netns, "red")


def path(sandbox, stack):
    """A path that vanishes, while the namespace lives on with a process in it."""
    pid, _inside = stack.enter_context(sandbox.process())
    sandbox.host.run(partial(_bind, f"/proc/{pid}/ns/net"))
    return {"netns": PATH}, lambda: sandbox.host.run(_unbind)


def _bind(source, path=Path(PATH)):
    path.touch()
    libc.mount(source, str(path), "none", libc.MS_BIND)


@contextmanager
def _process_in(sandbox, path):
    """A process in the namespace that is mounted there: its id."""
    process = sandbox.host.spawn(["nsenter", f"--net={path}", "sleep", "60"])
    host = sandbox.host.run(lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    try:
        eventually(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != host)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _unbind():
    libc.umount(PATH)
    Path(PATH).unlink()


class Ruin:
    """Networks web and lan; first, second and third in the namespace that is gone; blue, which is well."""

    def __init__(self, api):
        network(api, "web", subnet="192.168.15.0/24")
        network(api, "lan", subnet="192.168.16.0/24")
        endpoint(api, "blue")
        portmap(api, "blue", 8090)

    def fill(self, api, fields):
        self.fields = fields
        self.first = made(api, "endpoints", network="web", name="first", **fields)
        self.second = made(api, "endpoints", network="lan", name="second", **fields)
        self.third = made(api, "endpoints", network="web", name="third", **fields)
        self.mappings = [portmap(api, one, 8080 + number) for number, one in enumerate(("first", "second"))]


@pytest.fixture(params=[process, name, path])
def ruin(request, sandbox, api):
    with ExitStack() as stack:
        ruin = Ruin(api)
        fields, vanish = request.param(sandbox, stack)
        ruin.fill(api, fields)
        vanish()
        if request.param is not path:
            eventually(lambda: ruin.first["host_ifname"] not in sandbox.host.links())
        yield ruin


def is_degraded(api, name):
    status = get(api, f"endpoints/{name}")["status"]
    assert status["state"] == "degraded", status
    assert status["message"], status


def works(sandbox):
    with sandbox.netns("blue").tcp_server(8090):
        assert sandbox.client.tcp(HOST, 8090) == b"blue\n"


def test_an_endpoint_goes_and_its_siblings_are_degraded(sandbox, api, ruin):
    refused(api.delete("/endpoints/first"), 409, "endpoint_in_use")
    delete(api, "endpoints/first?force=true")
    for name in ("second", "third"):
        is_degraded(api, name)
    delete(api, "endpoints/third")
    delete(api, "endpoints/second?force=true")
    assert [one["name"] for one in get(api, "endpoints")] == ["blue"]
    works(sandbox)


def test_a_mapping_goes(sandbox, api, ruin):
    for mapping in ruin.mappings:
        delete(api, f"portmaps/{mapping['id']}")
    for name in ("first", "second"):
        delete(api, f"endpoints/{name}")
    is_degraded(api, "third")
    works(sandbox)


def test_a_network_goes(sandbox, api, ruin):
    refused(api.delete("/networks/web"), 409, "network_in_use")
    delete(api, "networks/web?force=true")
    is_degraded(api, "second")
    delete(api, "networks/lan?force=true")
    assert get(api, "endpoints") == []


@pytest.mark.parametrize("change", [{"mtu": 1280}, {"gateway": "192.168.15.77"}, {"icc": False}], ids=str)
def test_a_network_is_changed(sandbox, api, ruin, change):
    if not change.keys() <= NetworkPatch.model_fields.keys():
        pytest.skip("no such field")
    changed = patch(api, "networks/web", **change)
    assert changed | change == changed
    assert changed["status"]["state"] == "ready", changed
    if change != {"icc": False} or "netns" not in ruin.fields:  # else the host's ends are there, and all that changes
        for name in ("first", "third"):
            is_degraded(api, name)
    assert get(api, "endpoints/blue")["status"]["state"] == "ready"
    blue = sandbox.netns("blue")
    assert blue.links()["eth0"].mtu == changed["mtu"]
    assert blue.default_route() == (changed["gateway"], "eth0")
    works(sandbox)


def test_its_own_change_is_refused(api, ruin):
    refused(api.patch("/endpoints/second", json={"default_route": True}), 404, "namespace_missing")


def test_a_name_that_is_deleted_is_made_again(sandbox, api):
    Ruin(api).fill(api, {"namespace": "red"})
    sandbox.delete_netns("red")
    patch(api, "networks/web", mtu=1280)
    assert {one["status"]["state"] for one in get(api, "endpoints")} == {"ready"}
    assert {link.mtu for name, link in sandbox.netns("red").links().items() if name in ("eth0", "eth2")} == {1280}


@pytest.mark.parametrize("vanishes", [name, path], ids=["name", "path"])
def test_a_full_pass_leaves_the_veth_of_a_namespace_that_lives_on(sandbox, baseline, daemon, api, vanishes):
    """A process is still in it; once it has its name or path again, its endpoints are well."""
    ruin = Ruin(api)
    with ExitStack() as stack:
        fields, vanish = vanishes(sandbox, stack)
        inside = sandbox.netns("red") if vanishes is name else None
        where = Path("/run/netns/red" if vanishes is name else PATH)
        process = stack.enter_context(_process_in(sandbox, where))
        ruin.fill(api, fields)
        vanish()
        veth = ruin.first["host_ifname"]
        daemon.restart()
        for one in ("first", "second", "third"):
            assert veth in sandbox.host.links()
            is_degraded(daemon.client, one)
        patch(daemon.client, "networks/web", mtu=1280)
        assert sandbox.host.links()[veth].mtu == 1280
        is_degraded(daemon.client, "first")
        sandbox.host.run(partial(_bind, f"/proc/{process}/ns/net", where))
        daemon.restart()
        assert {one["status"]["state"] for one in get(daemon.client, "endpoints")} == {"ready"}
        assert inside is None or inside.links()["eth0"].mtu == 1280
        baseline.forget()  # the name is not the daemon's


def test_a_name_from_before_can_be_deleted(sandbox, api):
    """The daemon mounts the directory anew for its first own name."""
    sandbox.add_netns("old")
    network(api)
    endpoint(api, "red")
    assert sandbox.netns_names() == ["old", "red"]
    assert sandbox.netns("old").links().keys() == {"lo"}
    sandbox.host.exec(["ip", "netns", "delete", "old"])
    assert sandbox.netns_names() == ["red"]
