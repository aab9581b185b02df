"""What the API and the kernel must show of the model. The kernel's part is a set of facts, each a tuple of words."""

from ipaddress import ip_address, ip_interface

from stateful.model import EVERY, SUFFIX, usable

from app.firewall.nft_rules import layout

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


# --- the API


def shown(world):
    """By kind, each object by its id, as the lists show it but for its times."""
    return {
        "networks": {one.id: _network(one) for one in world.networks.values()},
        "endpoints": {one.id: _endpoint(world, one) for one in world.endpoints.values()},
        "portmaps": {one.id: _portmap(world, one) for one in world.portmaps.values()},
        "ipam/pools": _pools(world),
        "ipam/allocations": _allocations(world),
    }


def _text(value):
    return None if value is None else str(value)


def _network(network):
    answer = {"name": network.name, "bridge": network.bridge, "state": "ready", **network.fields}
    for version, suffix in SUFFIX.items():
        plan = network.plans.get(version)
        for field in ("subnet", "gateway", "ip_range"):
            answer[field + suffix] = None if plan is None else _text(getattr(plan, field))
    return answer


def _endpoint(world, endpoint):
    network = endpoint.network
    answer = {
        "network": network.id,
        "network_name": network.name,
        "pid": None,
        "netns": None,
        "state": "ready" if world.alive(endpoint) else "degraded",
    }
    own = ("name", "namespace", "create_namespace", "mac", "ifname", "host_ifname", "default_route", "ephemeral")
    answer |= {name: getattr(endpoint, name) for name in (*own, "labels")}
    for version, suffix in SUFFIX.items():
        plan = network.plans.get(version)
        answer[f"address{suffix}"] = _text(endpoint.addresses.get(version))
        answer[f"prefix_len{suffix}"] = plan and plan.subnet.prefixlen
        answer[f"gateway{suffix}"] = _text(network.way_out(version))
    return answer


def _portmap(world, portmap):
    first, last = portmap.host_port, portmap.host_port + portmap.count - 1
    return {
        "endpoint": portmap.endpoint.id,
        "endpoint_name": portmap.endpoint.name,
        "host_port": first if first == last else f"{first}-{last}",
        "state": "ready" if portmap.forwards(world.alive(portmap.endpoint)) else "degraded",
        **{name: getattr(portmap, name) for name in ("protocol", "host_ip", "target_port", "labels")},
    }


def _pools(world):
    found = {}
    for network in world.networks.values():
        for version, plan in network.plans.items():
            first, last = usable(plan.subnet)
            size, used = last - first + 1, len(world.members(network))
            held = [one for one in world.reservations.values() if one.network is network]
            reserved = sum(one.address.version == version for one in held) + (plan.gateway is not None)
            found[network.id, str(plan.subnet)] = {
                "network_name": network.name,
                "ip_range": str(plan.ip_range),
                "size": size,
                "used": used,
                "reserved": reserved,
                "free": size - used - reserved,
            }
    return found


def _allocations(world):
    found = {}
    for network in world.networks.values():
        for plan in network.plans.values():
            if plan.gateway is not None:
                found[network.id, str(plan.gateway)] = ("gateway", network.id, network.name, "")
    for endpoint in world.endpoints.values():
        for address in endpoint.addresses.values():
            found[endpoint.network.id, str(address)] = ("endpoint", endpoint.id, endpoint.name, "")
    for one in world.reservations.values():
        found[one.network.id, str(one.address)] = ("reservation", one.id, one.note, one.note)
    return found


def answered(get):
    """The same, as the lists show it. get: the answer's body for a path."""
    found = {path: {one["id"]: _plain(one) for one in get(path)} for path in ("networks", "endpoints", "portmaps")}
    counted = ("network_name", "ip_range", "size", "used", "reserved", "free")
    pools = {(one["network"], one["subnet"]): {name: one[name] for name in counted} for one in get("ipam/pools")}
    held = {}
    for one in get("ipam/allocations"):
        holder = one["holder"]
        key = one["network"], one["address"]
        assert key not in held, f"held twice: {key}"
        held[key] = (holder["kind"], holder["id"], holder["name"], one["note"])
    return found | {"ipam/pools": pools, "ipam/allocations": held}


def _plain(one):
    status = one["status"]
    assert bool(status["message"]) == (status["state"] != "ready"), status
    hidden = {"id", "created_at", "updated_at", "status"}
    return {name: value for name, value in one.items() if name not in hidden} | {"state": status["state"]}


# --- the kernel


def expected(world, firewall):
    """What must be there, and what may be."""
    must, may = set(STANDING[firewall](world)), set()
    for network in world.networks.values():
        must |= set(_bridge(network)) | set(_policies(network))
    for endpoint in world.endpoints.values():
        guard = set(_guard(endpoint))
        if world.alive(endpoint):
            must |= set(_veth(world, endpoint)) | guard
        else:
            may |= guard
    for name, ours in world.spaces.items():
        must |= set(_space(world, name, ours))
    for portmap in world.portmaps.values():
        must |= set(_forwards(world, portmap))
    _settings(world, must, may)
    _add_foreign(world, must)
    return must, may


def _link(place, name, kind, *, mtu, mac="-", master="-", owner="-", port="-"):
    return ("link", place, name, kind, "up", f"mtu {mtu}", f"mac {mac}", f"master {master}", f"mark {owner}", port)


def _bridge(network):
    mtu, name = network.fields["mtu"], network.bridge
    yield _link("", name, "bridge", mtu=mtu, mac=network.mac, owner=network.id)
    for plan in network.plans.values():
        if plan.gateway is not None:
            yield from _addressed("", name, ip_interface(f"{plan.gateway}/{plan.subnet.prefixlen}"))


def _addressed(place, link, interface):
    yield ("address", place, link, str(interface))
    yield ("route", place, str(interface.network), "-", link)


def _policies(network):
    flags = network.fields
    for version, plan in network.plans.items():
        routed = network.way_out(version) is not None
        yield ("policy", version, network.bridge, "routed" if routed else "closed", f"icc {flags['icc']}")
        if not routed:
            continue
        if flags["isolated"]:
            yield ("isolated", version, network.bridge)
        if not flags["masquerade"]:
            yield ("open", version, network.bridge)
            continue
        source = flags["snat_address"]
        fixed = source is not None and ip_address(source).version == version
        yield ("outward", str(plan.subnet), source if fixed else "masquerade")


def _veth(world, endpoint):
    network = endpoint.network
    mtu, flags = network.fields["mtu"], network.fields
    hairpin = bool(world.mappings(endpoint))
    port = f"forwarding hairpin {hairpin} isolated {not flags['icc']} locked {flags['spoof_protection']}"
    yield _link("", endpoint.host_ifname, "veth", mtu=mtu, master=network.bridge, owner=endpoint.id, port=port)
    yield _link(endpoint.namespace, endpoint.ifname, "veth", mtu=mtu, mac=endpoint.mac, owner=endpoint.id)
    for version, address in endpoint.addresses.items():
        interface = ip_interface(f"{address}/{network.plans[version].subnet.prefixlen}")
        yield from _addressed(endpoint.namespace, endpoint.ifname, interface)


def _standing_nft(world):
    """The rules that every network of an IP version stands on: how many each chain holds."""
    for version, family in ((4, "ip"), (6, "ip6")):
        if any(version in one.plans for one in world.networks.values()):
            made = layout(family)
            for chain in made.chains:
                yield ("rules", version, "bridgehead", chain, len(made.filling(chain)))


def _standing_legacy(world):
    """The same of the legacy tables: our jumps from the built-in chains, and what stands in the chains behind them."""
    for version in (4, 6):
        networks = [one for one in world.networks.values() if version in one.plans]
        if not networks:
            continue
        if version == 4:
            yield from _reached(version, "raw", "PREROUTING", 1)
        yield from _reached(version, "filter", "FORWARD", 4)
        yield from _reached(version, "nat", "POSTROUTING", 3)
        closed = sum(one.way_out(version) is None for one in networks)
        published = [one for one in world.portmaps.values() if one.version == version]
        if any(one.forwards(world.alive(one.endpoint)) for one in published):
            yield from _reached(version, "nat", "OUTPUT", 1)
            yield from _reached(version, "nat", "PREROUTING", closed + (1 if version == 4 else 2))
        elif closed:
            yield from _reached(version, "nat", "PREROUTING", closed)


def _reached(version, table, chain, number):
    yield ("jump", version, table, chain)
    yield ("rules", version, table, f"BRIDGEHEAD-{chain}", number)


STANDING = {"nftables": _standing_nft, "iptables": _standing_legacy}


def _guard(endpoint):
    if endpoint.network.fields["spoof_protection"]:
        for address in endpoint.addresses.values():
            yield ("guard", endpoint.host_ifname, endpoint.mac, str(address))


def _space(world, name, ours):
    yield ("namespace", name, "marked" if ours else "not marked")
    for version in (4, 6):
        endpoint = world.default_route(name, version)
        if endpoint is not None:
            via = str(endpoint.network.way_out(version))
            yield ("route", name, f"default{version}", via, endpoint.ifname)


def _forwards(world, portmap):
    alive = world.alive(portmap.endpoint)
    protocol, address = portmap.protocol, portmap.host_ip
    for offset in range(portmap.count):
        port = portmap.host_port + offset
        if alive and protocol != "sctp":
            yield ("bound", protocol, address, port)
        if portmap.forwards(alive):
            target = str(portmap.endpoint.addresses[portmap.version])
            yield ("forward", protocol, address, port, target, portmap.target_port + offset)


def _settings(world, must, may):
    for version, path in FORWARDING.items():
        routed = any(one.way_out(version) is not None for one in world.networks.values())
        must.add(("setting", path, "1" if routed else "0"))
    for network in world.networks.values():
        local = [one for one in world.portmaps.values() if one.endpoint.network is network]
        local = [one for one in local if one.host_ip in (EVERY[4], "127.0.0.1") and network.way_out(4) is not None]
        dead = local and not any(world.alive(one.endpoint) for one in local)
        for value in ("0", "1") if dead else (str(int(bool(local))),):
            (may if dead else must).add(("setting", f"net/ipv4/conf/{network.bridge}/route_localnet", value))


def _add_foreign(world, must):
    must.add(("foreign", "rule"))
    must.add(_link("", "admin0", "bridge", mtu=1500))
    for place, link, text in world.foreign.addresses:
        must |= set(_addressed(place, link, ip_interface(text)))
    must |= {("route", "", destination, "-", bridge) for bridge, destination in world.foreign.routes}
    must |= {("bound", protocol, EVERY[4], port) for protocol, port in world.foreign.listeners}
