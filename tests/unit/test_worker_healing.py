"""What the worker's full pass puts right, in which order, and when it looks again."""

import errno
import time
from functools import partial
from ipaddress import ip_interface, ip_network

from app.kernel.fake import FakeKernel
from app.model.errors import KernelRefused
from app.model.state import Bridge
from app.reconcile import worker as worker_module
from app.services import endpoints, networks, portmaps
from app.services.catalog import Catalog
from app.services.requests import EndpointCreate, NetworkCreate, NetworkPatch, PortmapCreate

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
