"""The worker: a commit that fails takes the kernel's changes back; healing; the catalog."""

import pytest
from test_executor import Rules
from working import POOLS, WAIT

from app.kernel.fake import FakeKernel
from app.kernel.visits import PLACES_MAX
from app.model.errors import KernelRefused, ShuttingDown, StoreFailed
from app.model.state import Attachment, Bridge, DefaultRoute, PortForward
from app.model.status import State
from app.reconcile.worker import _BATCH, Parts, Worker
from app.services import endpoints, networks
from app.services.catalog import Catalog
from app.services.requests import EndpointCreate, NetworkCreate, NetworkPatch
from app.store.session import open_database


def view(world):
    return world.kernel.snapshot(), dict(world.rules.items), dict(world.catalog.networks), dict(world.catalog.endpoints)


def test_a_failing_commit_takes_the_kernel_back(world):
    world.make()
    before = view(world)
    world.read_only(True)
    for service, request in (
        (networks.create, {"request": NetworkCreate(name="db", subnet="10.0.0.0/24")}),
        (endpoints.create, {"request": EndpointCreate(network="web", namespace="blue")}),
        (networks.update, {"ref": "web", "request": NetworkPatch(gateway="192.168.15.9", isolated=False)}),
        (networks.delete, {"ref": "web", "force": True}),
    ):
        with pytest.raises(StoreFailed, match="nothing was changed"):
            world.do(service, **request)
        now = view(world)
        assert now[0] == before[0]
        assert now[1:] == before[1:]
    world.read_only(False)
    world.do(networks.delete, ref="web", force=True)
    assert world.rules.items == {}
    assert set(world.kernel.host.links) == {"lo"}


def test_a_read_only_database_changes_nothing(world):
    world.make()
    before = view(world)
    connection = world.worker._requests._connection.connection.driver_connection
    connection.execute("PRAGMA query_only=ON").close()
    with pytest.raises(StoreFailed, match="readonly"):
        world.do(endpoints.create, request=EndpointCreate(network="web", namespace="blue"))
    assert view(world) == before


def test_a_bug_in_a_service_leaves_nothing_and_the_worker_alive(world):
    before = view(world)

    def broken(context):
        networks.create(context, NetworkCreate(name="web"))
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        world.worker.submit(broken).result(WAIT)
    assert view(world) == before
    world.make()
    assert world.worker.alive


def test_the_start_heals_links_rules_and_routes(world):
    world.make()
    before = view(world)
    world.worker.stop()
    world.rules.items.clear()
    world.kernel.names["red"].routes.clear()
    world.kernel._drop(world.kernel.host, "web")
    world.start()
    world.settle()
    assert view(world)[:2] == before[:2]


def test_the_start_removes_what_no_row_wants(world):
    world.make()
    world.worker.stop()
    with world.engine.begin() as connection:
        for table in ("portmap", "allocation", "endpoint", "network"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    world.catalog = Catalog()
    world.start()
    world.settle()
    assert set(world.kernel.host.links) == {"lo"}
    assert world.kernel.names == {}
    assert world.rules.items == {}
    assert world.kernel.sysctls == FakeKernel().sysctls


@pytest.mark.parametrize("kind", [Bridge, Attachment, DefaultRoute])
def test_one_thing_that_cannot_be_healed_does_not_hold_up_the_rest(world, kind):
    world.make()
    world.worker.stop()
    world.kernel = FakeKernel()
    world.kernel.refuse(lambda op: isinstance(op.item, kind))
    world.catalog = Catalog()
    world.start()
    world.settle()
    states = [world.catalog.status(one).state for one in (*world.catalog.networks, *world.catalog.endpoints)]
    assert State.FAILED in states
    assert any(isinstance(item, PortForward) for item in world.rules.items.values())
    world.kernel.relent()
    world.restart()
    world.settle()
    states = [world.catalog.status(one).state for one in (*world.catalog.networks, *world.catalog.endpoints)]
    assert set(states) == {State.READY}


def test_a_lost_port_gets_no_rule(world):
    from ipaddress import ip_address

    from app.model.spec import Protocol

    made = world.make()
    world.worker.stop()
    world.kernel.hold_port(Protocol.UDP, ip_address("0.0.0.0"), 53, "process 'dnsmasq' (pid 5)")
    world.catalog = Catalog()
    world.start()
    world.settle()
    status = world.catalog.status(made.id)
    assert status.state is State.FAILED
    assert "dnsmasq" in status.message
    assert not any(isinstance(item, PortForward) for item in world.rules.items.values())


def test_after_stop_everything_is_refused_and_stays_up(world):
    world.make()
    links = set(world.kernel.host.links)
    world.worker.stop()
    with pytest.raises(ShuttingDown):
        world.do(networks.delete, ref="web", force=True)
    assert world.kernel.closed
    assert set(world.kernel.host.links) == links
    assert not world.worker.alive


def test_what_the_kernel_refuses_at_the_start_is_raised(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/bridgehead.db")

    def no_kernel():
        raise KernelRefused(1, "socket")

    worker = Worker(Parts(engine, Catalog(), no_kernel, Rules, POOLS))
    with pytest.raises(KernelRefused, match="EPERM"):
        worker.start()
    engine.dispose()


def test_a_status_s_since_moves_with_its_state_only():
    catalog = Catalog()
    catalog.set_status("x", State.READY)
    since = catalog.status("x").since
    catalog.set_status("x", State.READY, "words")
    assert catalog.status("x").since == since
    assert catalog.status("x").message == "words"
    catalog.set_status("x", State.FAILED)
    assert catalog.status("x").since > since
    assert catalog.status("unknown").state is State.PENDING


def test_without_a_firewall_a_guarded_network_says_what_is_not_guarded(world):
    world.rules.name = "none"
    guarded = world.do(networks.create, request=NetworkCreate(name="web", spoof_protection=True))
    other = world.do(networks.create, request=NetworkCreate(name="lan", subnet="10.0.0.0/24"))
    status = world.catalog.status(guarded.id)
    assert (status.state, status.message.partition(":")[0]) == (State.READY, "spoof_protection guards MACs only")
    assert world.catalog.status(other.id).message == ""


def test_as_many_namespaces_stay_open_as_a_batch_may_have():
    assert PLACES_MAX >= _BATCH
