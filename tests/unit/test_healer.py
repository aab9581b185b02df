"""Healing of what the monitor points at: keys in, looked at again, mended; done twice it changes nothing."""

import time
from concurrent.futures import Future
from ipaddress import ip_interface

import pytest

from app.model.errors import NotFound
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import Sysctl
from app.model.status import State
from app.reconcile.watchlist import Findings
from app.sandbox import eventually
from app.services import endpoints, networks, portmaps
from app.services.requests import EndpointCreate, NetworkCreate, NetworkPatch, PortmapCreate


@pytest.fixture
def world(world):
    world.settle()
    return world


def heal(world, *keys, **found):
    """Returns once it is done."""
    world.worker.report(Findings(keys=set(keys), **found))
    done = Future()

    def nothing(_context):
        done.set_result(None)
        raise NotFound("nothing")

    # a request that comes after a report is run with the healing before it, or after
    for _time in range(2):
        with pytest.raises(NotFound):
            world.worker.submit(nothing).result(30)
        done = Future()


def keys_of(world):
    return [("network", one) for one in world.catalog.networks] + [("endpoint", one) for one in world.catalog.endpoints]


def test_what_is_right_is_looked_at_and_left_alone(world):
    world.make()
    before, done, passes = world.kernel.snapshot(), len(world.kernel.log), world.worker.looks[0]
    heal(world, *keys_of(world), due=True, settings=True)
    heal(world, *keys_of(world))
    assert (world.kernel.snapshot(), len(world.kernel.log)) == (before, done)
    assert world.worker.looks == (passes, 2)


def test_events_of_a_removal_lead_to_no_look(world):
    world.make()
    before, gone = world.worker.looks, keys_of(world)
    world.do(networks.delete, ref="web", force=True)
    heal(world, *gone)
    assert world.worker.looks == before


@pytest.mark.parametrize("damage", ["address", "down", "route", "bridge", "veth", "default", "connected"])
def test_damage_is_mended_by_key(world, damage):
    world.make()
    before, kernel = world.kernel.snapshot(), world.kernel
    web, red = kernel.host.links["web"], kernel.names["red"]
    if damage == "address":
        web.addresses.clear()
    elif damage == "down":
        web.up = False
    elif damage == "bridge":
        kernel._drop(kernel.host, "web")
    elif damage == "veth":
        kernel._drop(red, "eth0")
    elif damage in ("route", "default"):
        red.routes.clear()
    else:
        red.links["eth0"].connected = False
    heal(world, *keys_of(world))
    assert kernel.snapshot() == before
    assert red.links["eth0"].connected
    assert all(world.catalog.status(one).state is State.READY for _kind, one in keys_of(world))


def test_a_bridge_alone_brings_its_ports_back(world):
    world.make()
    before = world.kernel.snapshot()
    world.kernel._drop(world.kernel.host, "web")
    heal(world, keys_of(world)[0])
    assert world.kernel.snapshot() == before


def test_a_setting_is_found_on_the_timer(world):
    world.make()
    world.kernel.sysctls["net/ipv4/ip_forward"] = "0"
    heal(world, due=True)
    assert world.kernel.sysctls["net/ipv4/ip_forward"] == "1"


def test_a_setting_that_was_refused_once_is_seen_to_on_the_timer_again(world):
    """As that of a bridge is, which is gone when it is first tried."""
    world.make()
    forwarding, tried = "net/ipv4/ip_forward", []
    world.kernel.refuse(lambda op: isinstance(op.item, Sysctl) and not tried and not tried.append(op))
    for _time in range(2):
        world.kernel.sysctls[forwarding] = "0"
        heal(world, due=True)
        assert (world.kernel.sysctls[forwarding], len(tried)) == ("1", 1)


def test_rules_that_were_touched_are_synced_from_what_was_applied(world):
    world.make()
    wanted = dict(world.rules.items)
    world.rules.items.clear()
    heal(world, rules=True)
    assert world.rules.items == wanted


def states_told(world, monkeypatch):
    """The states that are published from now on, by id."""
    told, publish = [], world.catalog.set_status

    def noted(identity, state, message=""):
        told.append((identity, state))
        publish(identity, state, message)

    monkeypatch.setattr(world.catalog, "set_status", noted)
    return told


def test_nobody_is_degraded_by_rules_that_are_put_back_at_once(world, monkeypatch, caplog):
    world.make()
    told = states_told(world, monkeypatch)
    world.rules.items.clear()
    heal(world, rules=True)
    assert "healed: rules were not as wanted" in caplog.text
    heal(world, rules=True)  # others' rules changed, and none of ours
    assert {state for _one, state in told} == {State.READY}


def test_rules_that_cannot_be_put_back_are_told_until_they_are(world):
    mapping = world.make()
    told = (mapping.id, *world.catalog.networks)
    world.rules.items.clear()
    world.rules.refuse = True
    heal(world, rules=True)
    for one in told:
        assert world.catalog.status(one).state is State.DEGRADED
        assert "cannot be put back: the kernel refused" in world.catalog.status(one).message
    # a request that has no rules changes nothing about it, and what it publishes says so
    world.do(networks.update, ref="web", request=NetworkPatch(labels={"a": "b"}))
    assert {world.catalog.status(one).state for one in told} == {State.DEGRADED}
    heal(world, missed=True)
    assert {world.catalog.status(one).state for one in told} == {State.DEGRADED}
    world.rules.refuse = False
    heal(world, missed=True)
    assert {world.catalog.status(one).state for one in told} == {State.READY}
    assert world.rules.items


def test_a_request_in_between_leaves_the_status_of_rules_that_wait(world, monkeypatch):
    mapping = world.make()
    undo(world, 12, lambda: setattr(world.rules, "items", {}), rules=True)
    world.do(networks.update, ref="web", request=NetworkPatch(labels={"a": "b"}))
    for one in (mapping.id, *world.catalog.networks):
        assert "undoes each repair" in world.catalog.status(one).message
    told = states_told(world, monkeypatch)

    def looked():
        heal(world, due=True)
        return bool(world.rules.items)

    eventually(looked)
    assert {state for _one, state in told} == {State.READY}


def test_a_foreign_address_stays(world):
    world.make()
    theirs = ip_interface("10.9.9.9/24")
    world.kernel.host.links["web"].addresses.add(theirs)
    heal(world, *keys_of(world))
    assert theirs in world.kernel.host.links["web"].addresses


def plug(world, *, own=False, **fields):
    """own: the namespace is made by the daemon, who makes it again where somebody deletes it."""
    world.do(networks.create, request=NetworkCreate(name="web"))
    if not own:
        world.kernel.add_namespace("red")
    red = world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red", **fields))
    mapping = world.do(portmaps.create, request=PortmapCreate(endpoint="red", host_port=53, protocol="udp"))
    return red, mapping


def end(world):
    """What happens where somebody else's namespace is deleted."""
    red = world.kernel.names.pop("red")
    for name in [name for name in red.links if name != "lo"]:
        world.kernel._drop(red, name)


def test_a_dead_namespace_takes_the_ports_and_leaves_the_address(world):
    red, mapping = plug(world)
    end(world)
    heal(world, ("endpoint", red.id))
    assert world.catalog.status(red.id).state is State.DEGRADED
    assert world.catalog.status(mapping.id).state is State.DEGRADED
    assert "'red'" in world.catalog.status(mapping.id).message
    assert not [key for key in world.rules.items if key[0] == "forward"]
    assert not world.kernel._held
    assert world.catalog.endpoints[red.id].addresses == red.addresses
    world.kernel.add_namespace("red")
    heal(world, ("endpoint", red.id))
    assert {world.catalog.status(one).state for one in (red.id, mapping.id)} == {State.READY}
    assert [key for key in world.rules.items if key[0] == "forward"]
    assert world.kernel._held


def test_a_dead_namespace_is_known_to_full_passes_and_requests(world):
    _red, mapping = plug(world)
    end(world)
    heal(world, missed=True)
    assert world.catalog.status(mapping.id).state is State.DEGRADED
    late = world.do(portmaps.create, request=PortmapCreate(endpoint="red", host_port=54, protocol="udp"))
    assert world.catalog.status(late.id).state is State.DEGRADED
    assert not world.kernel._held
    heal(world, missed=True)
    assert not world.kernel._held
    world.do(endpoints.delete, ref="red", force=True)
    assert not world.worker._requests.dead


def test_whoever_asks_for_it_by_name_gets_a_dead_namespace_made(world):
    red, _mapping = plug(world)
    end(world)
    heal(world, ("endpoint", red.id))
    assert "red" not in world.kernel.names
    world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red", name="second"))
    heal(world, ("endpoint", red.id))
    assert world.catalog.status(red.id).state is State.READY


@pytest.mark.parametrize("how", ["key", "pass"])
def test_an_ephemeral_endpoint_goes_with_its_namespace(world, how):
    red, mapping = plug(world, ephemeral=True)
    end(world)
    heal(world, ("endpoint", red.id)) if how == "key" else heal(world, missed=True)
    assert red.id not in world.catalog.endpoints
    assert mapping.id not in world.catalog.portmaps
    assert not world.kernel._held
    assert world.kernel.gone(NetnsRef(NetnsKind.NAME, "red"))


@pytest.mark.parametrize("how", ["key", "pass"])
def test_an_ephemeral_endpoint_that_had_the_default_route_goes_too(world, caplog, how):
    """Its sibling, which takes the route over, is made again, for the namespace is the daemon's own."""
    world.do(networks.create, request=NetworkCreate(name="web"))
    stays = world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
    goes = world.do(
        endpoints.create,
        request=EndpointCreate(network="web", namespace="red", name="goes", ephemeral=True, default_route=True),
    )
    end(world)
    heal(world, ("endpoint", goes.id)) if how == "key" else heal(world, missed=True)
    assert list(world.catalog.endpoints) == [stays.id]
    red = world.kernel.names["red"]
    assert red.links.keys() == {"lo", stays.ifname}
    assert red.routes[4].ifname == stays.ifname
    assert world.catalog.status(stays.id).state is State.READY
    assert "Traceback" not in caplog.text


def test_an_ephemeral_endpoint_whose_namespace_went_while_the_daemon_was_down_goes_at_the_start(world, caplog):
    _red, mapping = plug(world, own=True, ephemeral=True)
    applied = []
    end(world)
    world.worker.stop()
    world.rules.apply = applied.append
    world.restart().settle()
    assert not world.catalog.endpoints
    assert mapping.id not in world.catalog.portmaps
    assert (applied, world.kernel._held) == ([], {})  # the pass itself takes away what was its
    assert not [key for key in world.rules.items if key[0] == "forward"]
    assert "web" in world.kernel.host.links
    assert "cannot be deleted" not in caplog.text


def test_an_ephemeral_endpoint_that_the_kernel_would_not_let_go_goes_with_a_full_pass(world):
    red, mapping = plug(world, own=True, ephemeral=True)
    end(world)
    passes, refused = world.worker.looks[0], []

    def once(op):
        if op.after is None and op.item.owner == mapping.id and not refused:
            refused.append(op)
            return True
        return False

    world.kernel.refuse(once)
    heal(world, ("endpoint", red.id))
    assert refused
    assert world.worker.looks[0] > passes
    assert not world.catalog.endpoints
    assert not world.kernel._held


@pytest.mark.parametrize("how", ["key", "pass"])
def test_an_ephemeral_endpoint_goes_with_a_namespace_that_vanishes_while_it_is_looked_at(world, monkeypatch, how):
    world.do(networks.create, request=NetworkCreate(name="web"))
    stays = world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
    goes = world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red", ephemeral=True))
    name, looks = ("observe_items", "observe")[how == "pass"], []
    observe = getattr(world.kernel, name)

    def vanishing(items):
        if not looks:
            end(world)
        looks.append(name)
        return observe(items)

    monkeypatch.setattr(world.kernel, name, vanishing)
    heal(world, ("endpoint", stays.id)) if how == "key" else heal(world, missed=True)
    assert looks
    assert list(world.catalog.endpoints) == [stays.id]
    assert goes.ifname not in world.kernel.names["red"].links
    assert world.catalog.status(stays.id).state is State.READY


def test_a_namespace_that_vanishes_between_look_and_repair_is_not_made_under_its_endpoints(world, caplog):
    """Whatever is refused for it, the next look sees that it is gone."""
    world.do(networks.create, request=NetworkCreate(name="web"))
    stays = world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
    goes = world.do(endpoints.create, request=EndpointCreate(network="web", namespace="red", ephemeral=True))

    def vanishes(_op):
        if "red" in world.kernel.names:
            end(world)
        return False

    world.kernel.names["red"].links[stays.ifname].addresses.clear()
    world.kernel.refuse(vanishes)
    heal(world, ("endpoint", stays.id))
    world.kernel.relent()
    heal(world, ("endpoint", stays.id))
    heal(world, ("endpoint", stays.id), ("endpoint", goes.id))
    assert list(world.catalog.endpoints) == [stays.id]
    assert world.kernel.names["red"].links.keys() == {"lo", stays.ifname}
    assert world.catalog.status(stays.id).state is State.READY
    assert "Traceback" not in caplog.text


def test_what_the_kernel_refuses_on_the_timer_is_not_tried_all_the_time(world):
    world.make()
    world.kernel.sysctls["net/ipv4/ip_forward"] = "0"
    world.kernel.refuse(lambda op: op.item.key == ("sysctl", "net/ipv4/ip_forward"))
    heal(world, due=True)
    looks = world.worker.looks[1]
    heal(world, due=True)
    assert world.worker.looks[1] == looks
    world.kernel.relent()
    heal(world, missed=True)
    assert world.kernel.sysctls["net/ipv4/ip_forward"] == "1"


# --- somebody who undoes each repair


def undo(world, times, damage, *keys, **found):
    """Damages and has it found, again and again; how often it was mended."""
    done = 0
    for _time in range(times):
        damage()
        before = len(world.kernel.log), world.rules.repairs
        heal(world, *keys, **found)
        done += (len(world.kernel.log), world.rules.repairs) != before
    return done


def test_who_undoes_each_repair_is_outwaited(world, caplog):
    world.make()
    network = next(iter(world.catalog.networks))
    web = world.kernel.host.links["web"]
    assert undo(world, 30, lambda: setattr(web, "up", False), ("network", network)) == 10
    status = world.catalog.status(network)
    assert status.state is State.DEGRADED
    assert "bridge web is down: somebody undoes each repair (10 in" in status.message
    assert caplog.text.count("somebody undoes each repair") == 1
    # its own hand, or time, ends it
    web.up = True
    heal(world, ("network", network))
    assert world.catalog.status(network).state is State.READY


def test_what_waits_is_mended_once_it_may_be(world):
    world.make()
    network = next(iter(world.catalog.networks))
    web = world.kernel.host.links["web"]
    undo(world, 12, lambda: setattr(web, "up", False), ("network", network))
    assert not web.up

    def looked():
        heal(world, due=True)
        return web.up

    eventually(looked)
    assert world.catalog.status(network).state is State.READY


def test_while_a_bridge_waits_its_ports_do_too_and_no_pass_is_made(world):
    world.make()
    kernel, passes = world.kernel, world.worker.looks[0]
    undo(world, 12, lambda: "web" in kernel.host.links and kernel._drop(kernel.host, "web"), *keys_of(world))
    assert "web" not in kernel.host.links
    endpoint = next(iter(world.catalog.endpoints))
    assert "it waits for bridge web" in world.catalog.status(endpoint).message
    assert world.worker._next_pass > time.monotonic() + 1000
    assert world.worker.looks[0] == passes
    heal(world, missed=True)
    assert all(world.catalog.status(one).state is State.READY for _kind, one in keys_of(world))


def test_who_undoes_rules_is_outwaited(world):
    mapping = world.make()
    wanted = dict(world.rules.items)
    assert undo(world, 30, lambda: setattr(world.rules, "items", {}), rules=True) == 10
    assert world.rules.items == {}
    assert "rules are not as wanted: somebody undoes each repair" in world.catalog.status(mapping.id).message

    def looked():
        heal(world, due=True)
        return world.rules.items == wanted

    eventually(looked)
    assert {world.catalog.status(one).state for one in (mapping.id, *world.catalog.networks)} == {State.READY}


def test_a_lost_host_address_is_still_told_after_a_repair_of_the_rules(world):
    world.make()
    address = ip_interface("203.0.113.9/24")
    world.kernel.host.links["lo"].addresses.add(address)
    mapping = world.do(
        portmaps.create, request=PortmapCreate(endpoint="red", host_port=80, protocol="tcp", host_ip=str(address.ip))
    )
    assert world.catalog.status(mapping.id).state is State.READY
    world.kernel.host.links["lo"].addresses.discard(address)
    world.rules.items.clear()
    heal(world, rules=True)
    status = world.catalog.status(mapping.id)
    assert (status.state, "not an address of this host any more" in status.message) == (State.DEGRADED, True)


def test_what_others_rules_do_is_looked_at_when_they_change(world):
    world.make()
    (network,) = world.catalog.networks
    said = "chain forward of table inet theirs (drop, somebody)"
    world.rules.troubled[network] = said
    before = len(world.kernel.log), world.worker.looks
    heal(world, foreign=True)
    assert (world.catalog.status(network).state, world.catalog.status(network).message) == (State.DEGRADED, said)
    world.rules.troubled.clear()

    def looked():
        heal(world, foreign=True)
        return world.catalog.status(network).state is State.READY

    eventually(looked)
    heal(world, due=True)
    assert (len(world.kernel.log), world.worker.looks) == before  # nothing is reconciled for it
