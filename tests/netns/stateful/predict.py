"""What a request must lead to: the codes of which one refuses it, else what it changes in the model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from re import fullmatch

from stateful.model import HOST_ADDRESSES, SUFFIX, Endpoint, Network, Plan, Portmap, Reservation, first_usable, usable

_FLAGS = {"internal": False, "isolated": True, "icc": True, "masquerade": True, "spoof_protection": False}
_NETWORK = {"mtu": 1500, "snat_address": None, "labels": {}, **_FLAGS}


@dataclass
class Prediction:
    """faults: with any, it is refused with one of them. perhaps: it may be refused with one of these."""

    faults: set = field(default_factory=set)
    perhaps: set = field(default_factory=set)
    apply: Callable = lambda _answer: None
    """Called with the answer's body."""


def _not_found():
    return Prediction({"not_found"})


# --- networks


def create_network(world, body):
    seen = Prediction()
    if any(one.name == body["name"] for one in world.networks.values()):
        seen.faults.add("name_taken")
    if "bridge" in body and world.is_host_link(body["bridge"]):
        seen.faults.add("interface_exists")
    plans = {version: _new_plan(world, body, version, seen.faults) for version in (4, 6)}
    fields = {name: body.get(name, default) for name, default in _NETWORK.items()}
    has_ipv6 = body.get("subnet6") is not None
    _check_network(fields, has_ipv6, body.get("snat_address"), seen.faults)

    def apply(answer):
        made = {version: plan for version, plan in plans.items() if plan is not None}
        if body.get("subnet6") == "auto":
            subnet = ip_network(answer["subnet6"])
            assert subnet.prefixlen == 64
            assert subnet.subnet_of(ip_network("fd00::/8"))
            assert not world.overlaps(subnet)
            made[6] = Plan(subnet, None if "gateway6" in body else first_usable(subnet), subnet)
        free = not world.is_host_link(body["name"])
        bridge = body.get("bridge") or (body["name"] if free else answer["bridge"])
        assert free or "bridge" in body or fullmatch("bh-[0-9a-f]{10}", bridge)
        world.networks[answer["id"]] = Network(answer["id"], body["name"], bridge, made, fields)

    seen.apply = apply
    return seen


def _new_plan(world, body, version, faults):
    suffix = SUFFIX[version]
    text = body.get(f"subnet{suffix}")
    if text == "auto" or (text is None and version == 6):
        if text is None and body.get("gateway6") is not None:
            faults.add("invalid")
        if text == "auto" and (body.get("gateway6") is not None or body.get("ip_range6") is not None):
            faults.add("address_outside_subnet")  # the prefix is a random one
        return None
    try:
        subnet = ip_network(text) if text is not None else world.next_subnet()
    except ValueError:  # host bits
        faults.add("invalid")
        return None
    if world.overlaps(subnet):
        faults.add("subnet_overlap")
    plan = Plan(subnet, first_usable(subnet), subnet)
    _change_plan(plan, body, version, faults)
    return plan


def _change_plan(plan, body, version, faults):
    suffix = SUFFIX[version]
    if f"gateway{suffix}" in body:
        text = body[f"gateway{suffix}"]
        plan.gateway = None if text is None else ip_address(text)
        _check_address(plan.subnet, plan.gateway, faults)
    if f"ip_range{suffix}" in body:
        text = body[f"ip_range{suffix}"]
        plan.ip_range = plan.subnet if text is None else ip_network(text)
        if not plan.ip_range.subnet_of(plan.subnet):
            faults.add("address_outside_subnet")


def _check_address(subnet, address, faults):
    if address is None:
        return
    if address not in subnet:
        faults.add("address_outside_subnet")
    elif not usable(subnet)[0] <= int(address) <= usable(subnet)[1]:
        faults.add("invalid")


def _check_network(fields, has_ipv6, given_source, faults):
    if has_ipv6 and fields["mtu"] < 1280:
        faults.add("invalid")
    if fields["snat_address"] is not None and not fields["masquerade"]:
        faults.add("invalid")
    if given_source is not None and given_source not in HOST_ADDRESSES:
        faults.add("invalid")


def patch_network(world, ref, body):
    network = world.network(ref)
    if network is None:
        return _not_found()
    seen = Prediction()
    fields = network.fields | {name: body[name] for name in _NETWORK if name in body}
    _check_network(fields, 6 in network.plans, body.get("snat_address"), seen.faults)
    plans = {version: Plan(**vars(plan)) for version, plan in network.plans.items()}
    if 6 not in plans and body.get("gateway6") is not None:
        seen.faults.add("invalid")
    for version, plan in plans.items():
        _change_plan(plan, body, version, seen.faults)
        moved = plan.gateway is not None and plan.gateway != network.plans[version].gateway
        if moved and world.holder(network, plan.gateway) is not None:
            seen.faults.add("address_taken")

    def apply(_answer):
        lost = network.plans[4].gateway is not None and plans[4].gateway is None
        network.fields, network.plans = fields, plans
        if lost and not world.foreign.is_addressed(network.bridge):
            world.foreign.lose_routes(network.bridge)  # the kernel turns IPv4 off on a link without an address

    seen.apply = apply
    return seen


def delete_network(world, ref, force):
    network = world.network(ref)
    if network is None:
        return _not_found()
    faults = {"network_in_use"} if world.members(network) and not force else set()
    return Prediction(faults, apply=lambda _answer: world.remove_network(network))


# --- endpoints


def create_endpoint(world, body):
    network = world.network(body["network"])
    if network is None:
        return _not_found()
    seen = Prediction()
    namespace, create = body["namespace"], body.get("create_namespace", True)
    held = {one.ifname for one in world.inside(namespace)}
    seen.faults |= _endpoint_faults(world, network, body, held)
    addresses = {version: _address(world, network, version, body, seen.faults) for version in network.plans}

    def apply(answer):
        host_ifname = body.get("host_ifname", answer["host_ifname"])
        assert "host_ifname" in body or fullmatch("veth[0-9a-f]{10}", host_ifname)
        assert "mac" in body or int(answer["mac"][:2], 16) & 3 == 2
        world.spaces.setdefault(namespace, True)
        for version, address in addresses.items():
            if f"address{SUFFIX[version]}" not in body:
                network.plans[version].cursor = int(address)
        world.endpoints[answer["id"]] = Endpoint(
            id=answer["id"],
            name=body.get("name") or _free_name(world, namespace),
            network=network,
            namespace=namespace,
            create_namespace=create,
            addresses=addresses,
            mac=body.get("mac", answer["mac"]),
            ifname=body.get("ifname") or next(f"eth{n}" for n in range(99) if f"eth{n}" not in held),
            host_ifname=host_ifname,
            default_route=body.get("default_route"),
            took_route=world.tick() if body.get("default_route") else 0,
            ephemeral=body.get("ephemeral", False),
            labels=body.get("labels", {}),
        )

    seen.apply = apply
    return seen


def _endpoint_faults(world, network, body, held):
    """But for its addresses. held: names of interfaces in its namespace."""
    faults = set()
    if body["namespace"] not in world.spaces and not body.get("create_namespace", True):
        faults.add("namespace_missing")
    if body.get("name") in {one.name for one in world.endpoints.values()}:
        faults.add("name_taken")
    if "ifname" in body and body["ifname"] in held:
        faults.add("interface_exists")
    if "host_ifname" in body and world.is_host_link(body["host_ifname"]):
        faults.add("interface_exists")
    if "address6" in body and 6 not in network.plans:
        faults.add("invalid")
    return faults


def _address(world, network, version, body, faults):
    text = body.get(f"address{SUFFIX[version]}")
    if text is None:
        address = world.next_address(network, version)
        if address is None:
            faults.add("pool_exhausted")
        return address
    address = ip_address(text)
    _check_address(network.plans[version].subnet, address, faults)
    if world.holder(network, address) is not None:
        faults.add("address_taken")
    return address


def _free_name(world, wanted):
    names = {one.name for one in world.endpoints.values()}
    return next(one for one in (wanted, *(f"{wanted}-{n}" for n in range(2, 99))) if one not in names)


def patch_endpoint(world, ref, body):
    endpoint = world.endpoint(ref)
    if endpoint is None:
        return _not_found()
    seen = Prediction()
    if "name" in body and any(one.name == body["name"] and one is not endpoint for one in world.endpoints.values()):
        seen.faults.add("name_taken")
    if "default_route" in body and not world.alive(endpoint):
        seen.perhaps.add("namespace_missing")

    def apply(_answer):
        for name, value in body.items():
            setattr(endpoint, name, value)
        if "default_route" in body:
            endpoint.took_route = world.tick() if body["default_route"] else 0

    seen.apply = apply
    return seen


def delete_endpoint(world, ref, force):
    endpoint = world.endpoint(ref)
    if endpoint is None:
        return _not_found()
    faults = {"endpoint_in_use"} if world.mappings(endpoint) and not force else set()
    return Prediction(faults, apply=lambda _answer: world.remove_endpoint(endpoint))


# --- port mappings


def _ports(value):
    first, _dash, last = str(value).partition("-")
    return int(first), int(last or first) - int(first) + 1


def create_portmap(world, body):
    endpoint = world.endpoint(body["endpoint"])
    if endpoint is None:
        return _not_found()
    protocol, host_ip = body.get("protocol", "tcp"), body.get("host_ip", "0.0.0.0")
    first, number = _ports(body["host_port"]) if "host_port" in body else (world.next_port(protocol, host_ip), 1)
    wanted = Portmap(
        "", endpoint, protocol, host_ip, first, number, body.get("target_port", first), body.get("labels", {})
    )
    seen = Prediction()
    _check_portmap(world, wanted, None, seen)

    def apply(answer):
        wanted.id = answer["id"]
        world.portmaps[wanted.id] = wanted

    seen.apply = apply
    return seen


def _check_portmap(world, wanted, before, seen):
    network, version = wanted.endpoint.network, wanted.version
    if wanted.host_ip not in HOST_ADDRESSES | {"0.0.0.0", "::"}:
        seen.faults.add("invalid")
    if before is None or (before.endpoint, before.version) != (wanted.endpoint, version):
        if network.fields["internal"]:
            seen.faults.add("internal_network")
        elif version not in network.plans:
            seen.faults.add("invalid")
        elif network.plans[version].gateway is None:
            seen.faults.add("no_gateway")
    if wanted.target_port + wanted.count - 1 > 65535:
        seen.faults.add("invalid")
    mappings, processes = world.port_holders(
        wanted.protocol, wanted.host_ip, wanted.host_port, wanted.count, but=before
    )
    if mappings:
        seen.faults.add("port_taken")
    if processes:
        # a port that nothing can be forwarded from is not reserved
        (seen.faults if world.alive(wanted.endpoint) else seen.perhaps).add("port_taken")


def patch_portmap(world, ref, body):
    before = world.portmaps.get(ref)
    endpoint = world.endpoint(body["endpoint"]) if "endpoint" in body and before else before and before.endpoint
    if endpoint is None:
        return _not_found()
    wanted = Portmap(**vars(before) | {"endpoint": endpoint})
    for name in ("host_ip", "target_port", "labels"):
        setattr(wanted, name, body.get(name, getattr(before, name)))
    if "host_port" in body:
        wanted.host_port, wanted.count = _ports(body["host_port"])
    seen = Prediction()
    _check_portmap(world, wanted, before, seen)
    seen.apply = lambda _answer: vars(before).update(vars(wanted))
    return seen


def delete_portmap(world, ref):
    if ref not in world.portmaps:
        return _not_found()
    return Prediction(apply=lambda _answer: world.portmaps.pop(ref))


# --- reservations


def reserve(world, body):
    network = world.network(body["network"])
    if network is None:
        return _not_found()
    version = ip_address(body["address"]).version if "address" in body else 4
    if version not in network.plans:
        return Prediction({"address_outside_subnet"})
    seen = Prediction()
    field_name = f"address{SUFFIX[version]}"
    asked = {field_name: body["address"]} if "address" in body else {}
    address = _address(world, network, version, asked, seen.faults)

    def apply(answer):
        if not asked:
            network.plans[version].cursor = int(address)
        world.reservations[answer["id"]] = Reservation(answer["id"], network, address, body.get("note", ""))

    seen.apply = apply
    return seen


def release(world, ref):
    if ref in world.reservations:
        return Prediction(apply=lambda _answer: world.reservations.pop(ref))
    if ref in world.endpoints:
        return Prediction({"endpoint_in_use"})
    network = world.networks.get(ref)
    gateways = network is not None and any(plan.gateway is not None for plan in network.plans.values())
    return Prediction({"network_in_use"}) if gateways else _not_found()
