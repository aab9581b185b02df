"""What the worker must survive: clients that leave, a full disk, what nobody expected; and when it looks again."""

import errno
import json
import logging
import time
from concurrent.futures import Future
from functools import partial
from ipaddress import ip_interface, ip_network
from threading import Event

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from test_worker import WAIT, World

from app.kernel.fake import FakeKernel
from app.kernel.fakeworld import Namespace
from app.model.errors import BridgeheadError, KernelRefused, NamespaceMissing, NotFound, StoreFailed
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import Attachment, Bridge, DefaultRoute, Netns
from app.model.status import State
from app.reconcile import healer as healer_module
from app.reconcile import worker as worker_module
from app.sandbox import eventually
from app.services import endpoints, networks, portmaps
from app.services.catalog import Catalog
from app.services.requests import EndpointCreate, NetworkCreate, NetworkPatch, PortmapCreate
from app.store import session as session_module


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "bridgehead.db").start()
    yield made
    made.worker.stop()
    made.engine.dispose()


class Held:
    """Holds the worker in a request until released, so that those after it wait together."""

    def __init__(self, world):
        self._entered, self._release = Event(), Event()
        self.answer = world.worker.submit(self._hold)

    def _hold(self, _context):
        self._entered.set()
        assert self._release.wait(WAIT)
        raise NotFound("held")

    def __enter__(self):
        assert self._entered.wait(WAIT)
        return self

    def __exit__(self, *_failure):
        self._release.set()


def stored(world):
    with world.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT name FROM network ORDER BY name").scalars().all()


def bridges(world):
    return sorted(name for name, link in world.kernel.host.links.items() if link.kind == "bridge")


def passes(world, monkeypatch):
    """The list that grows with each full pass."""
    seen = []
    real = healer_module.heal

    def counted(*arguments):
        seen.append(time.monotonic())
        return real(*arguments)

    monkeypatch.setattr(healer_module, "heal", counted)
    return seen


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


# --- the database


def test_a_failed_commit_is_followed_by_a_full_pass(world, monkeypatch):
    world.settle()
    seen = passes(world, monkeypatch)
    world.read_only(True)
    with pytest.raises(StoreFailed):
        world.do(networks.create, request=NetworkCreate(name="web"))
    world.settle()
    assert len(seen) == 1
    world.read_only(False)
    world.make()


def test_a_take_back_that_is_stuck_is_mended_by_a_full_pass(world):
    world.read_only(True)
    real = world.kernel.apply
    broken = []

    def apply(op):
        if op.after is None and not broken:
            broken.append(op)
            raise OSError(errno.EIO, "I/O error")
        real(op)

    world.kernel.apply = apply
    with pytest.raises(StoreFailed):
        world.do(networks.create, request=NetworkCreate(name="web"))
    world.settle()
    assert broken
    assert bridges(world) == []


def lose_transaction(context):
    """What SQLite does by itself on a full disk: the whole transaction is gone, and the statement fails."""
    networks.create(context, NetworkCreate(name="mine", subnet="10.2.0.0/24"))
    connection = context.store._connection
    connection.connection.driver_connection.execute("ROLLBACK")
    connection.exec_driver_sql("INSERT INTO nothing VALUES (1)")


def test_a_transaction_that_the_database_took_back_is_nobodys(world):
    with Held(world):
        before = world.worker.submit(
            partial(networks.create, request=NetworkCreate(name="before", subnet="10.0.0.0/24"))
        )
        refused = world.worker.submit(partial(networks.delete, ref="nothing", force=False))
        lost = world.worker.submit(lose_transaction)
        after = world.worker.submit(partial(networks.create, request=NetworkCreate(name="after", subnet="10.1.0.0/24")))
    for answer in (before, lost, after):
        with pytest.raises(StoreFailed, match="nothing was changed"):
            answer.result(WAIT)
    with pytest.raises(NotFound):
        refused.result(WAIT)
    world.settle()
    assert bridges(world) == stored(world) == list(world.catalog.networks) == []
    world.make()


def test_a_full_database_refuses_and_goes_on_serving(tmp_path):
    world = World(tmp_path / "full.db")

    def limit(database, _record):
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count={pages + 4}").close()

    world.engine.dispose()
    event.listen(world.engine, "connect", limit)
    world.start()
    labels = {f"k{number}": "x" * 256 for number in range(60)}
    create = [
        partial(networks.create, request=NetworkCreate(name=f"n{number}", subnet=f"10.0.{number}.0/24", labels=labels))
        for number in range(8)
    ]
    made, refused = [], []
    try:
        for _round in range(2):
            with Held(world):
                answers = [world.worker.submit(service) for service in create]
            for number, answer in enumerate(answers):
                failure = answer.exception(WAIT)
                (made if failure is None else refused).append(f"n{number}")
                assert failure is None or isinstance(failure, BridgeheadError), failure
            assert any(isinstance(answer.exception(), StoreFailed) for answer in answers)
            world.settle()
            assert bridges(world) == stored(world)
            assert sorted(one.name for one in world.catalog.networks.values()) == stored(world)
        for name in stored(world):
            world.do(networks.delete, ref=name, force=True)
        world.do(networks.create, request=NetworkCreate(name="small", subnet="10.1.0.0/24"))
        assert bridges(world) == ["small"]
    finally:
        world.worker.stop()
        world.engine.dispose()


def test_without_room_the_kernel_is_not_touched(world, monkeypatch):
    world.make()
    before = world.kernel.snapshot(), dict(world.rules.items)
    done = []
    monkeypatch.setattr(world.kernel, "apply", done.append)
    with monkeypatch.context() as full:
        full.setattr(session_module, "ROOM", 1 << 60)
        assert not session_module.is_writable(world.engine)
        with pytest.raises(StoreFailed, match=r"is full: .* nothing was changed"):
            world.do(networks.delete, ref="web", force=True)
        with pytest.raises(NotFound):
            world.do(networks.delete, ref="nothing", force=True)
    assert done == []
    assert (world.kernel.snapshot(), dict(world.rules.items)) == before
    assert session_module.is_writable(world.engine)


@pytest.mark.parametrize("written", [False, True])
def test_after_a_failed_commit_readers_see_what_is_stored(world, written, caplog):
    """A commit may fail after it was written, or before; what was written all the same is in the audit log."""
    world.make()
    caplog.set_level(logging.INFO, "bridgehead.audit")

    def commit(connection):
        if written:
            connection.connection.driver_connection.execute("COMMIT")
        raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(world.engine, "commit", commit)
    answers = [
        world.worker.submit(partial(networks.create, request=NetworkCreate(name="db", subnet="10.0.0.0/24"))),
        world.worker.submit(partial(networks.delete, ref="web", force=True)),
    ]
    for answer in answers:
        with pytest.raises(StoreFailed):
            answer.result(WAIT)
    event.remove(world.engine, "commit", commit)
    world.settle()
    assert sorted(one.name for one in world.catalog.networks.values()) == stored(world) == bridges(world)
    assert stored(world) == (["db"] if written else ["web"])
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "bridgehead.audit"]
    told = sorted((one["verb"], one["kind"], one["who"]) for one in lines)
    if written:
        assert ("create", "network", "bridgehead") in told
        assert [kind for verb, kind, _who in told if verb == "delete"] == ["endpoint", "network", "portmap"]
        assert {one["detail"] for one in lines} == {"its commit was reported as failed, and found written"}
    else:
        assert told == []


def test_what_readers_see_is_read_again_until_it_can_be(world, monkeypatch):
    """After something unexpected the first look at the store fails too."""
    monkeypatch.setattr(worker_module, "_HEAL_AGAIN", 0.01)
    read, failures = worker_module.read, [StoreFailed("the disk is away")] * 2

    def failing(engine):
        if failures:
            raise failures.pop()
        return read(engine)

    def broken(_one):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(world.worker._requests, "_publish", broken)
        patch.setattr(worker_module, "read", failing)
        with pytest.raises(RuntimeError):
            world.do(networks.create, request=NetworkCreate(name="web"))
        assert eventually(lambda: [one.name for one in world.catalog.networks.values()] == ["web"])
    assert not failures


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


# --- when it looks again


def test_a_lasting_refusal_is_tried_less_and_less_often(world, monkeypatch):
    monkeypatch.setattr(worker_module, "_HEAL_AGAIN", 1.0)
    made = world.worker
    waits = []
    for lacking in ([("a",)] * 5, [("b",)] * 2, [()], [("b",)]):
        for key in lacking:
            made._schedule(frozenset({key} if key else set()))
            waits.append(round(made._next_pass - time.monotonic()))
    assert waits == [1, 2, 4, 8, 16, 1, 2, 3600, 1]
    made._next_pass = 0.0


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


# --- healing


def test_healing_turns_route_localnet_off_before_the_rules_go(world):
    world.do(networks.create, request=NetworkCreate(name="web"))
    world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
    world.kernel.holds_address = lambda _address: True
    world.do(portmaps.create, request=PortmapCreate(endpoint="red", host_port=53, host_ip="127.0.0.1"))
    world.worker.stop()
    with world.engine.begin() as connection:
        for table in ("portmap", "allocation", "endpoint", "network"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    seen = []
    real = world.rules.sync

    def sync(items):
        seen.append(dict(world.kernel.sysctls))
        return real(items)

    world.rules.sync = sync
    world.catalog = Catalog()
    world.start()
    world.settle()
    ((localnet, forward),) = ((one["net/ipv4/conf/web/route_localnet"], one["net/ipv4/ip_forward"]) for one in seen)
    assert (localnet, forward) == ("0", "1")
    assert world.kernel.sysctls == FakeKernel().sysctls


def test_settings_of_a_bridge_that_is_made_anew_are_set_again(world):
    world.kernel.add_link("eth0", ip_interface("2001:db8::2/64"))
    world.do(networks.create, request=NetworkCreate(name="web", subnet6="fd00::/64"))
    world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
    for host_ip in ("0.0.0.0", "::"):
        world.do(portmaps.create, request=PortmapCreate(endpoint="red", host_port=53, host_ip=host_ip))
    before = (world.kernel.sysctls, set(world.kernel.loopbacks))
    assert (before[0]["net/ipv4/conf/web/route_localnet"], before[1]) == ("1", {"web"})
    world.worker.stop()
    world.kernel.host.links["web"].owner = "another"
    world.start()
    world.settle()
    assert (world.kernel.sysctls, world.kernel.loopbacks) == before


def test_flows_are_forgotten_where_healing_changed_rules(world):
    world.make()
    (forward,) = (item for item in world.rules.items.values() if item.key[0] == "forward")
    world.kernel.flushed.clear()
    world.worker.stop()
    world.start()
    world.settle()
    assert world.kernel.flushed == []
    assert world.kernel.flushed_into == set()
    world.worker.stop()
    world.rules.sync = partial(_found, world.rules.sync)
    world.start()
    world.settle()
    assert world.kernel.flushed == [forward]
    assert world.kernel.flushed_into == {ip_network("192.168.15.0/24")}


def _found(sync, items):
    sync(items)
    return ["a rule was missing"]


def test_what_was_refused_in_a_pass_is_not_taken_for_done(world):
    world.make()
    world.worker.stop()
    world.kernel.host.links["web"].mtu = 1280
    world.kernel.refuse(lambda op: isinstance(op.item, Bridge), KernelRefused(errno.EPERM, "ip link set web"))
    world.start()
    world.settle()
    world.kernel.relent()
    world.do(networks.update, ref="web", request=NetworkPatch(isolated=False))
    assert world.kernel.host.links["web"].mtu == 1500


def test_a_portmap_is_of_one_ip_version(world):
    world.do(networks.create, request=NetworkCreate(name="web"))
    world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
    made = world.do(portmaps.create, request=PortmapCreate(endpoint="red", host_port=53))
    world.do(networks.update, ref="web", request=NetworkPatch(gateway=None))
    status = world.catalog.status(made.id)
    assert status.state is State.DEGRADED
    assert "IPv4 gateway" in status.message


def test_a_request_after_the_stop_is_answered(world):
    world.worker.stop()
    answer: Future = world.worker.submit(partial(networks.delete, ref="nothing", force=False))
    assert answer.exception(WAIT) is not None
