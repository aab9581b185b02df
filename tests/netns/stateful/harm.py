"""What somebody else does to the kernel: damage that must be put back, and things of theirs that must stay.

Each takes the world, the sandbox and a number that chooses among its targets; where it has none it says so by False.
"""

from functools import partial
from subprocess import CalledProcessError

from stateful.facts import FORWARDING

from app.model.errors import KernelRefused

IPTABLES, IP6TABLES = "iptables-legacy", "ip6tables-legacy"


def _chosen(pick, targets):
    return targets[pick % len(targets)] if targets else None


def _on_network(damage, suits=lambda _world, _network: True):
    def harm(world, sandbox, pick):
        network = _chosen(pick, [one for one in world.networks.values() if suits(world, one)])
        if network is None:
            return False
        damage(world, sandbox.host, network)
        return True

    return harm


def _on_endpoint(damage, suits=lambda _world, _endpoint: True):
    def harm(world, sandbox, pick):
        endpoint = _chosen(pick, [one for one in world.endpoints.values() if world.alive(one) and suits(world, one)])
        if endpoint is None:
            return False
        damage(world, sandbox, endpoint)
        return True

    return harm


def _ip(host, *words):
    host.exec(["ip", *words])


# --- bridges


def _delete_bridge(world, host, network):
    host.delete_link(network.bridge)
    world.foreign.lose("", network.bridge)


def _bridge_down(world, host, network):
    host.set_up(network.bridge, up=False)
    world.foreign.lose_routes(network.bridge)


def _bridge_mtu(_world, host, network):
    _ip(host, "link", "set", network.bridge, "mtu", "1290")


def _bridge_mac(_world, host, network):
    _ip(host, "link", "set", network.bridge, "address", "02:00:00:00:99:99")


def _gateway(version):
    def suits(world, network):
        plan = network.plans.get(version)
        if plan is None or plan.gateway is None:
            return False
        # else the kernel takes the administrator's, of the same subnet, along
        return not any(one[:2] == ("", network.bridge) and "10.77" not in one[2] for one in world.foreign.addresses)

    def damage(world, host, network):
        plan = network.plans[version]
        _ip(host, "address", "del", f"{plan.gateway}/{plan.subnet.prefixlen}", "dev", network.bridge)
        if version == 4 and not world.foreign.is_addressed(network.bridge):
            world.foreign.lose_routes(network.bridge)  # the kernel drops them with a link's last IPv4 address

    return _on_network(damage, suits)


def _subnet_route(version):
    def damage(_world, host, network):
        _ip(host, f"-{version}", "route", "del", str(network.plans[version].subnet), "dev", network.bridge)

    return _on_network(damage, lambda _world, one: version in one.plans and one.plans[version].gateway is not None)


# --- endpoints


def _delete_port(world, sandbox, endpoint):
    sandbox.host.delete_link(endpoint.host_ifname)
    world.foreign.lose(endpoint.namespace, endpoint.ifname)


def _port_down(_world, sandbox, endpoint):
    sandbox.host.set_up(endpoint.host_ifname, up=False)


def _port_free(_world, sandbox, endpoint):
    _ip(sandbox.host, "link", "set", endpoint.host_ifname, "nomaster")


def _port_flags(_world, sandbox, endpoint):
    sandbox.host.exec(["bridge", "link", "set", "dev", endpoint.host_ifname, "isolated", "on", "hairpin", "on"])


def _delete_inner(world, sandbox, endpoint):
    sandbox.netns(endpoint.namespace).delete_link(endpoint.ifname)
    world.foreign.lose(endpoint.namespace, endpoint.ifname)


def _inner_down(_world, sandbox, endpoint):
    sandbox.netns(endpoint.namespace).set_up(endpoint.ifname, up=False)


def _inner_address(version):
    def damage(_world, sandbox, endpoint):
        address = f"{endpoint.addresses[version]}/{endpoint.network.plans[version].subnet.prefixlen}"
        _ip(sandbox.netns(endpoint.namespace), "address", "del", address, "dev", endpoint.ifname)

    return _on_endpoint(damage, lambda _world, one: version in one.addresses)


def _default_route(version):
    def damage(_world, sandbox, endpoint):
        _ip(sandbox.netns(endpoint.namespace), f"-{version}", "route", "del", "default")

    return _on_endpoint(damage, lambda world, one: world.default_route(one.namespace, version) is not None)


# --- rules and settings


def _with_network(version, *commands):
    def harm(world, sandbox, _pick):
        if not any(version in one.plans for one in world.networks.values()):
            return False
        for command in commands:
            sandbox.host.exec(command)
        return True

    return harm


def _no_guards(world, sandbox, _pick):
    guarded = [one for one in world.endpoints.values() if one.network.fields["spoof_protection"] and world.alive(one)]
    if guarded:
        sandbox.host.exec(["nft", "delete", "table", "bridge", "bridgehead"])
    return bool(guarded)


RULES = {
    "nftables": {
        "table ip deleted": _with_network(4, ["nft", "delete", "table", "ip", "bridgehead"]),
        "table ip6 flushed": _with_network(6, ["nft", "flush", "table", "ip6", "bridgehead"]),
        "chain flushed": _with_network(4, ["nft", "flush", "chain", "ip", "bridgehead", "published"]),
        "set flushed": _with_network(4, ["nft", "flush", "set", "ip", "bridgehead", "networks"]),
        "ports flushed": _with_network(4, ["nft", "flush", "map", "ip", "bridgehead", "ports_anywhere"]),
        "guards deleted": _no_guards,
    },
    "iptables": {
        "nat flushed": _with_network(4, [IPTABLES, "-t", "nat", "-F"], [IPTABLES, "-t", "nat", "-X"]),
        "FORWARD's jump deleted": _with_network(4, [IPTABLES, "-D", "FORWARD", "-j", "BRIDGEHEAD-FORWARD"]),
        "a chain flushed": _with_network(4, [IPTABLES, "-F", "BRIDGEHEAD-FORWARD"]),
        "IPv6 nat flushed": _with_network(6, [IP6TABLES, "-t", "nat", "-F"]),
        "IPv6 filter flushed": _with_network(6, [IP6TABLES, "-F"]),
        "guards deleted": _no_guards,
    },
}


def _forwarding_off(version):
    def harm(world, sandbox, _pick):
        if not any(one.way_out(version) is not None for one in world.networks.values()):
            return False
        sandbox.host.write_sysctl(FORWARDING[version], 0)
        return True

    return harm


def _localnet_off(_world, host, network):
    host.write_sysctl(f"net/ipv4/conf/{network.bridge}/route_localnet", 0)


def _has_local_ports(world, network):
    return any(one.host_ip == "0.0.0.0" and one.endpoint.network is network for one in world.portmaps.values())


def namespace_deleted(world, sandbox, pick, daemon_runs=True):
    name = _chosen(pick, sorted(world.spaces))
    if name is None:
        return False
    sandbox.delete_netns(name)
    world.namespace_dies(name, daemon_runs)
    return True


DAMAGE = {
    "bridge deleted": _on_network(_delete_bridge),
    "bridge down": _on_network(_bridge_down),
    "bridge's MTU": _on_network(_bridge_mtu),
    "bridge's MAC": _on_network(_bridge_mac),
    "gateway gone": _gateway(4),
    "IPv6 gateway gone": _gateway(6),
    "subnet's route gone": _subnet_route(4),
    "IPv6 subnet's route gone": _subnet_route(6),
    "veth deleted": _on_endpoint(_delete_port),
    "port down": _on_endpoint(_port_down),
    "port off its bridge": _on_endpoint(_port_free),
    "port's flags": _on_endpoint(_port_flags),
    "inner link deleted": _on_endpoint(_delete_inner),
    "inner link down": _on_endpoint(_inner_down),
    "inner address gone": _inner_address(4),
    "inner IPv6 address gone": _inner_address(6),
    "default route gone": _default_route(4),
    "IPv6 default route gone": _default_route(6),
    "forwarding off": _forwarding_off(4),
    "IPv6 forwarding off": _forwarding_off(6),
    "route_localnet off": _on_network(_localnet_off, _has_local_ports),
    "namespace deleted": namespace_deleted,
}


# --- what is theirs and stays


def _own_address(world, host, network):
    text = f"10.77.{list(world.networks).index(network.id)}.1/24"
    if not any(text == one[2] for one in world.foreign.addresses):
        _ip(host, "address", "add", text, "dev", network.bridge)
        world.foreign.addresses.add(("", network.bridge, text))


def _second_address(world, host, network):
    """In the network's own subnet, beside the gateway."""
    plan = network.plans[4]
    address = plan.subnet.broadcast_address - 1
    text = f"{address}/{plan.subnet.prefixlen}"
    if ("", network.bridge, text) not in world.foreign.addresses and world.holder(network, address) is None:
        _ip(host, "address", "add", text, "dev", network.bridge)
        world.foreign.addresses.add(("", network.bridge, text))


def _own_route(world, host, network):
    destination = f"10.78.{list(world.networks).index(network.id)}.0/24"
    if not any(destination == one[1] for one in world.foreign.routes):
        _ip(host, "route", "add", destination, "dev", network.bridge)
        world.foreign.routes.add((network.bridge, destination))


def _inner_second(world, sandbox, endpoint):
    text = "10.80.0.1/24"
    if (endpoint.namespace, endpoint.ifname, text) not in world.foreign.addresses:
        _ip(sandbox.netns(endpoint.namespace), "address", "add", text, "dev", endpoint.ifname)
        world.foreign.addresses.add((endpoint.namespace, endpoint.ifname, text))


THEIRS = {
    "an address on a bridge": _on_network(_own_address),
    "a second address of a subnet": _on_network(_second_address),
    "a route by a bridge": _on_network(_own_route),
    "an address inside": _on_endpoint(_inner_second),
}


def damages(firewall):
    """All damage that can be done with this backend, by name."""
    return DAMAGE | RULES[firewall]


def while_down(name, harm):
    """The same while no daemon runs. What was damaged before cannot be damaged again."""
    made = partial(harm, daemon_runs=False) if name == "namespace deleted" else harm

    def tried(world, sandbox, pick):
        try:
            return made(world, sandbox, pick)
        except (CalledProcessError, KernelRefused, FileNotFoundError):
            return False

    return tried
