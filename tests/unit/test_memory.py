"""The objects in memory: whatever is put, dropped and taken back, every look-up is as in one built anew."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from values import NOW, portmap

from app.model.spec import (
    AddressPlan,
    Allocation,
    AllocationKind,
    Endpoint,
    NetnsKind,
    NetnsRef,
    Network,
    Protocol,
)
from app.store.memory import Memory

NETWORKS = [f"n{number}" for number in range(4)]
ENDPOINTS = [f"e{number}" for number in range(6)]
NAMESPACES = ["name:red", "name:blue", "name:green"]


def network(identity, internal):
    number = NETWORKS.index(identity)
    plan = AddressPlan(
        ip_network(f"10.{number}.0.0/24"), ip_address(f"10.{number}.0.1"), ip_network(f"10.{number}.0.0/24")
    )
    return Network(
        id=identity,
        name=f"net{number}",
        bridge=f"br{number}",
        plans=(plan,),
        mtu=1500,
        internal=internal,
        created_at=NOW,
        updated_at=NOW,
    )


def endpoint(identity, network_id, namespace):
    return Endpoint(
        id=identity,
        network_id=network_id,
        name=f"name-{identity}",
        netns=NetnsRef(NetnsKind.NAME, namespace.removeprefix("name:")),
        namespace_key=namespace,
        create_namespace=True,
        addresses=(ip_address("10.0.0.2"),),
        mac="02:00:00:00:00:01",
        ifname=f"eth-{identity}",
        host_ifname=f"veth-{identity}",
        created_at=NOW,
        updated_at=NOW,
    )


def allocation(network_id, last):
    return Allocation(
        id=f"a{last}",
        network_id=network_id,
        address=ip_address(f"10.0.0.{last}"),
        kind=AllocationKind.RESERVATION,
        created_at=NOW,
    )


class World:
    """A memory, and the plain values that should be in it."""

    def __init__(self):
        self.store = Memory()
        self.values = {"_networks": {}, "_endpoints": {}, "_portmaps": {}, "_allocations": {}}

    def put(self, kind, identity, value):
        getattr(self.store, kind).put(value)
        self.values[kind] = {**self.values[kind], identity: value}

    def drop(self, kind, identity):
        getattr(self.store, kind).drop(identity)
        self.values[kind] = {key: value for key, value in self.values[kind].items() if key != identity}


def look(store):
    """Everything that can be asked."""
    networks, endpoints = store.networks(), store.endpoints()
    addresses = [ip_address(text) for text in ("0.0.0.0", "127.0.0.1", "203.0.113.2")]
    first, last = ip_address("10.0.0.0"), ip_address("10.0.0.255")
    return {
        "all": (networks, endpoints, store.portmaps(), store.allocations()),
        "names": [store.network(f"net{number}") for number in range(4)] + [store.endpoint(one) for one in ENDPOINTS],
        "bridges": [store.network_with_bridge(f"br{number}") for number in range(4)],
        "overlaps": [store.network_overlapping(ip_network(one)) for one in ("10.0.0.0/8", "10.2.0.0/16", "11.0.0.0/8")],
        "routed": store.routed_versions(),
        "beside": [store.networks_beside(one) for one in networks],
        "members": [(store.endpoints_of(one), store.endpoint_count(one)) for one in networks],
        "in": [store.endpoints_in(one) for one in NAMESPACES],
        "published": [(store.portmaps_of(one), store.has_portmaps(one)) for one in endpoints],
        "local": [store.has_local_ports(one, 4) for one in networks],
        "ports": [list(store.held_ports(Protocol.TCP, one, 1, 99)) for one in addresses],
        "taken": [list(store.taken(one, first, last)) for one in networks],
        "holders": [store.holder(one, first + 3) for one in networks],
    }


def built(values):
    store = Memory()
    for kind, held in values.items():
        for value in held.values():
            getattr(store, kind).put(value)
    return store


steps = st.one_of(
    st.tuples(st.just("network"), st.sampled_from(NETWORKS), st.booleans()),
    st.tuples(st.just("endpoint"), st.sampled_from(ENDPOINTS), st.sampled_from(NETWORKS), st.sampled_from(NAMESPACES)),
    st.tuples(
        st.just("portmap"),
        st.sampled_from(["p0", "p1", "p2", "p3"]),
        st.sampled_from(ENDPOINTS),
        st.sampled_from(["0.0.0.0", "127.0.0.1", "203.0.113.2"]),
        st.integers(1, 40),
        st.integers(1, 9),
    ),
    st.tuples(st.just("allocation"), st.sampled_from(NETWORKS), st.integers(2, 9)),
    st.tuples(st.just("drop"), st.sampled_from([*NETWORKS, *ENDPOINTS, "p0", "p1", "p2", "p3"])),
)


def carry_out(world, step):
    match step:
        case "network", identity, internal:
            world.put("_networks", identity, network(identity, internal))
        case "endpoint", identity, network_id, namespace:
            held = world.values["_endpoints"].get(identity)
            if network_id in world.values["_networks"] and (held is None or held.network_id == network_id):
                world.put("_endpoints", identity, endpoint(identity, network_id, namespace))
        case "portmap", identity, endpoint_id, *where:
            if endpoint_id in world.values["_endpoints"]:
                world.put("_portmaps", identity, portmap(identity, endpoint_id, *where))
        case "allocation", network_id, last:
            world.put("_allocations", (network_id, ip_address(f"10.0.0.{last}")), allocation(network_id, last))
        case "drop", identity:
            drop(world, identity)


def drop(world, identity):
    """With what refers to it, as the database demands."""
    for one in list(world.values["_endpoints"].values()):
        if one.network_id == identity:
            drop(world, one.id)
    for one in list(world.values["_portmaps"].values()):
        if one.endpoint_id == identity:
            world.drop("_portmaps", one.id)
    for kind in ("_networks", "_endpoints", "_portmaps"):
        world.drop(kind, identity)


@given(st.lists(steps, max_size=30), st.lists(steps, max_size=30))
def test_what_is_taken_back_was_never_there(kept, taken_back):
    world = World()
    for step in kept:
        carry_out(world, step)
    before, values = look(world.store), dict(world.values)
    mark = world.store._journal.mark()
    for step in taken_back:
        carry_out(world, step)
    assert look(world.store) == look(built(world.values))
    world.store._journal.rollback(mark)
    assert look(world.store) == before == look(built(values))


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_look_up_meets_what_it_finds_only(size):
    store = Memory()
    store._networks.put(network("n0", False))
    store._endpoints.put(endpoint("e0", "n0", "name:red"))
    for number in range(size):
        store._portmaps.put(portmap(f"p{number}", "e0", "0.0.0.0", 20_000 + number, 1))
    met = list(store._ports.meeting((Protocol.TCP, 4), 20_003, 20_004))
    assert [one[0] for one in met] == [20_003, 20_004]
