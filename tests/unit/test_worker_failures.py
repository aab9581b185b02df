"""What the worker must survive: clients and namespaces that leave, bugs; and what readers see of it."""

from concurrent.futures import Future
from functools import partial
from threading import Event

import pytest
from working import WAIT, Held, bridges, passes

from app.kernel.fakeworld import Namespace
from app.model.errors import NamespaceMissing, NotFound
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import Attachment, DefaultRoute, Netns
from app.model.status import State
from app.services import endpoints, networks, portmaps
from app.services.catalog import Catalog
from app.services.requests import EndpointCreate, NetworkCreate, NetworkPatch, PortmapCreate

# --- clients that leave


def test_a_request_called_off_while_it_waits_is_not_done(world):
    with Held(world):
        gone = world.worker.submit(partial(networks.create, request=NetworkCreate(name="web")))
        refused = world.worker.submit(partial(networks.delete, ref="nothing", force=False))
        assert gone.cancel()
        assert refused.cancel()
    world.settle()
    assert bridges(world) == []
    world.make()


def test_a_request_called_off_while_it_runs_is_done(world):
    with Held(world) as held:
        assert not held.answer.cancel()
    world.make()
    assert world.worker.alive


def test_a_bug_outside_a_request_leaves_the_worker_alive(world, monkeypatch):
    def broken(_one):
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.worker._requests, "_publish", broken)
    with pytest.raises(RuntimeError):
        world.do(networks.create, request=NetworkCreate(name="web"))
    monkeypatch.undo()
    world.settle()
    world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))


def test_a_request_after_the_stop_is_answered(world):
    world.worker.stop()
    answer: Future = world.worker.submit(partial(networks.delete, ref="nothing", force=False))
    assert answer.exception(WAIT) is not None


# --- other objects than the request's own


def test_a_namespace_that_lives_on_without_its_path_costs_one_full_pass(world, monkeypatch):
    """Its veth stays, and a change of its network does not look for what the last pass did not find either."""
    world.kernel.paths["/run/container"] = inside = Namespace()
    world.do(networks.create, request=NetworkCreate(name="web"))
    made = world.do(endpoints.create, request=EndpointCreate(network="web", netns="/run/container"))
    del world.kernel.paths["/run/container"]
    world.restart()
    world.settle()
    assert made.host_ifname in world.kernel.host.links
    assert world.catalog.status(made.id).state is State.DEGRADED
    seen = passes(world, monkeypatch)
    world.do(networks.update, ref="web", request=NetworkPatch(mtu=1300))
    assert not seen
    assert world.catalog.status(made.id).state is State.DEGRADED
    world.kernel.paths["/run/container"] = inside
    world.restart()
    world.settle()
    assert world.catalog.status(made.id).state is State.READY
    assert inside.links[made.ifname].mtu == 1300


def test_a_namespace_that_is_gone_is_a_status_of_its_endpoint_only(world):
    world.make()
    ref = NetnsRef(NetnsKind.NAME, "red")
    gone = [Netns, Attachment, DefaultRoute]
    sibling = world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red", name="sibling"))
    del world.kernel.names["red"]
    world.kernel.refuse(lambda op: type(op.item) in gone and op.after is not None, NamespaceMissing(f"{ref} is gone"))
    world.do(networks.update, ref="web", request=NetworkPatch(mtu=1300))
    assert world.kernel.host.links["web"].mtu == 1300
    web = world.catalog.network("web")
    assert world.catalog.status(web.id).state is State.READY
    red = world.catalog.endpoint("red")
    for one in (red, sibling):
        assert world.catalog.status(one.id).state is State.DEGRADED
        assert world.catalog.status(one.id).message == "namespace 'red' is gone"
    world.do(endpoints.delete, ref="red", force=True)
    assert world.catalog.status(sibling.id).state is State.DEGRADED
    world.kernel.relent()
    world.settle()


def test_a_portmap_is_of_one_ip_version(world):
    world.do(networks.create, request=NetworkCreate(name="web"))
    world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
    made = world.do(portmaps.create, request=PortmapCreate(endpoint="red", host_port=53))
    world.do(networks.update, ref="web", request=NetworkPatch(gateway=None))
    status = world.catalog.status(made.id)
    assert status.state is State.DEGRADED
    assert "IPv4 gateway" in status.message


# --- what readers see


def test_what_is_stored_is_shown_before_the_first_pass(world):
    made = world.make()
    world.worker.stop()
    go_on = Event()
    real = world.kernel.observe

    def slow(expected):
        assert go_on.wait(WAIT)
        return real(expected)

    world.kernel.observe = slow
    world.catalog = Catalog()
    world.start()
    try:
        assert world.catalog.network("web").bridge == "web"
        assert world.catalog.endpoint("red").name == "red"
        assert world.catalog.portmap(made.id) == made
        assert world.catalog.status(made.id).state is State.PENDING
    finally:
        go_on.set()
    world.settle()
    assert world.catalog.status(made.id).state is State.READY


def test_a_name_is_known_while_it_is_published_again(world):
    world.make()
    catalog = world.catalog
    web = catalog.network("web")

    class Watched(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            catalog.network("web")

        def pop(self, *arguments):
            found = super().pop(*arguments)
            catalog.network("web")
            return found

        def __delitem__(self, key):
            super().__delitem__(key)
            catalog.network("web")

    catalog._names = Watched(catalog._names)
    catalog.networks = Watched(catalog.networks)
    catalog.put(("network", web.id), web)
    assert catalog.network("web") is web


def test_a_name_follows_its_object(world):
    world.make()
    red = world.catalog.endpoint("red")
    world.do(endpoints.update, ref="red", request=endpoints.EndpointPatch(name="blue"))
    assert world.catalog.endpoint("blue").id == red.id
    with pytest.raises(NotFound):
        world.catalog.endpoint("red")
    world.do(endpoints.delete, ref="blue", force=True)
    with pytest.raises(NotFound):
        world.catalog.endpoint("blue")
