"""Endpoints: made, changed, removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from app.drivers.bridge import PORTS_MAX
from app.model import naming
from app.model.errors import BridgeFull, EndpointInUse, InterfaceExists, Invalid, NamespaceMissing, NameTaken
from app.model.spec import AllocationKind, Endpoint, IPAddress, NetnsKind, NetnsRef, Network
from app.services import addresses, foreign
from app.services.context import Change, Context, Key, unique
from app.services.requests import EndpointCreate, EndpointPatch, refuse_null

_RUN_NETNS = ("/run/netns/", "/var/run/netns/")
_IFNAME_TRIES = 4096


def create(context: Context, request: EndpointCreate) -> Change:
    """Raises NotFound, Forbidden, Invalid, NamespaceMissing, NameTaken, AddressTaken, InterfaceExists and more."""
    network = context.network(request.network)
    context.require(network)
    require_room(context, network)
    netns, exists = _netns(context, request)
    key = _namespace_key(context, netns, exists=exists)
    if exists:
        foreign.require_own(context, netns, key)
    endpoint_id = naming.new_id()
    endpoint = Endpoint(
        id=endpoint_id,
        network_id=network.id,
        name=_name(context, request, netns, endpoint_id),
        netns=netns,
        namespace_key=key,
        create_namespace=request.create_namespace,
        addresses=_addresses(context, network, request),
        mac=request.mac or naming.random_mac(),
        ifname=_ifname(context, request, netns, key, exists=exists),
        host_ifname=_host_ifname(context, request, endpoint_id),
        default_route=request.default_route,
        default_route_at=context.now if request.default_route else None,
        ephemeral=request.ephemeral,
        labels=request.labels,
        uid=context.principal.uid,
        created_at=context.now,
        updated_at=context.now,
    )
    add(context, network, endpoint)
    return Change(endpoint.id, unique([("endpoint", endpoint.id), ("namespace", key), *_multihomed(context, key)]))


def require_room(context: Context, network: Network) -> None:
    """Raises BridgeFull."""
    if context.store.endpoint_count(network) >= PORTS_MAX:
        raise BridgeFull(
            f"network '{network.name}' has {PORTS_MAX} endpoints, all that a Linux bridge takes; use another network"
        )


def add(context: Context, network: Network, endpoint: Endpoint) -> None:
    """Stores a new endpoint whose names and addresses are free, and that it holds these."""
    context.store.add_endpoint(endpoint)
    for address in endpoint.addresses:
        addresses.hold(
            context,
            network,
            address,
            AllocationKind.ENDPOINT,
            holder_id=endpoint.id,
            created_at=endpoint.created_at,
        )


def _addresses(context: Context, network: Network, request: EndpointCreate) -> tuple[IPAddress, ...]:
    """One of each of the network's IP versions."""
    if network.plan(6) is None and request.address6 is not None:
        raise Invalid(
            f"address6 {request.address6}: network '{network.name}' has no subnet6; leave address6 out, "
            "or use a network that was made with one"
        )
    asked = {4: (request.address, "address"), 6: (request.address6, "address6")}
    return tuple(addresses.give(context, network, plan, *asked[plan.version]) for plan in network.plans)


def _multihomed(context: Context, namespace_key: str) -> list[Key]:
    """The networks of a namespace where they are several: strict reverse path filtering would drop its packets."""
    networks = dict.fromkeys(endpoint.network_id for endpoint in context.store.endpoints_in(namespace_key))
    return [("network", network_id) for network_id in networks] if len(networks) > 1 else []


def _netns(context: Context, request: EndpointCreate) -> tuple[NetnsRef, bool]:
    """The namespace, and whether it is there. Raises Invalid, NamespaceMissing, Forbidden."""
    given = [name for name in ("namespace", "pid", "netns") if getattr(request, name) is not None]
    if len(given) != 1:
        said = f"{' and '.join(given)} are given" if given else "none is given"
        raise Invalid(f"exactly one of namespace, pid and netns says where the endpoint goes; {said}")
    if request.namespace is not None:
        ref = NetnsRef(NetnsKind.NAME, request.namespace)
        try:
            return context.host.resolve(ref), True
        except NamespaceMissing as missing:
            if context.host.namespace_name_free(request.namespace):
                if request.create_namespace:
                    context.host.permit_creation(ref.value)
                    return ref, False
                raise NamespaceMissing(
                    f"namespace '{request.namespace}' is not there, and create_namespace is false"
                ) from None
            raise Invalid(f"{missing.detail}; remove that file, or choose another name") from None
    if request.pid is not None:
        return context.host.resolve(NetnsRef(NetnsKind.PID, str(request.pid))), True
    path = str(request.netns)
    if not path.startswith("/") or "\0" in path:
        raise Invalid(f"netns '{path}' is not an absolute path, such as /run/netns/red or /proc/1234/ns/net")
    return context.host.resolve(foreign.followed(context, _canonical(path))), True


def _canonical(path: str) -> NetnsRef:
    """A path to a named namespace is that name, so that both ways of saying it mean one namespace."""
    name = PurePosixPath(path).name
    if path in {prefix + name for prefix in _RUN_NETNS}:
        return NetnsRef(NetnsKind.NAME, name)
    return NetnsRef(NetnsKind.PATH, path)


def _namespace_key(context: Context, netns: NetnsRef, *, exists: bool) -> str:
    """The key of the namespace's other endpoints, by whatever name they know it; else its own."""
    known = context.host.known_as(netns) if exists else None
    return known if known is not None and context.store.endpoints_in(known) else netns.key


def _name(context: Context, request: EndpointCreate, netns: NetnsRef, endpoint_id: str) -> str:
    if request.name is not None:
        held = context.store.endpoint_named(request.name)
        if held is not None:
            raise NameTaken(f"endpoint name '{request.name}' is taken by endpoint {held.id}; choose another")
        return request.name
    wanted = netns.value if netns.kind is NetnsKind.NAME else f"ep-{naming.short_hash(endpoint_id, 8)}"
    name, number = wanted, 1
    while context.store.endpoint_named(name) is not None:
        number += 1
        name = f"{wanted[:56]}-{number}"
    return name


def _ifname(context: Context, request: EndpointCreate, netns: NetnsRef, key: str, *, exists: bool) -> str:
    held = {endpoint.ifname for endpoint in context.store.endpoints_in(key)}
    if request.ifname is not None:
        if request.ifname in held or (exists and context.host.link_exists_in(netns, request.ifname)):
            raise InterfaceExists(f"{netns} has an interface '{request.ifname}' already; choose another ifname")
        return request.ifname
    for number in range(_IFNAME_TRIES):
        name = f"eth{number}"
        if name not in held and not (exists and context.host.link_exists_in(netns, name)):
            return name
    raise InterfaceExists(f"{netns} has eth0 to eth{_IFNAME_TRIES - 1}; name an ifname")


def _host_ifname(context: Context, request: EndpointCreate, endpoint_id: str) -> str:
    if request.host_ifname is None:
        return f"veth{naming.short_hash(endpoint_id)}"
    require_free_host_ifname(context, request.host_ifname)
    return request.host_ifname


def require_free_host_ifname(context: Context, name: str) -> None:
    """Raises InterfaceExists."""
    endpoint = context.store.endpoint_with_host_ifname(name)
    if endpoint is not None:
        raise InterfaceExists(f"host_ifname '{name}' is that of endpoint '{endpoint.name}'; choose another")
    network = context.store.network_with_bridge(name)
    if network is not None or context.host.link_exists(name):
        owner = f"network '{network.name}'" if network else "somebody else"
        raise InterfaceExists(f"the host's interface '{name}' belongs to {owner}; choose another host_ifname")


def update(context: Context, ref: str, request: EndpointPatch) -> Change:
    """Raises NotFound, Forbidden, NameTaken, Invalid."""
    endpoint = context.endpoint(ref)
    context.require(context.network(endpoint.network_id))
    refuse_null(request, "default_route")
    given = request.given()
    if "name" in given and given["name"] != endpoint.name:
        held = context.store.endpoint_named(given["name"])
        if held is not None:
            raise NameTaken(f"endpoint name '{given['name']}' is taken by endpoint {held.id}; choose another")
    if "default_route" in given:
        given["default_route_at"] = context.now if given["default_route"] else None
    changed = replace(endpoint, updated_at=context.now, **given)
    context.store.update_endpoint(changed)
    return Change(endpoint.id, (("endpoint", endpoint.id), ("namespace", endpoint.namespace_key)))


def delete(context: Context, ref: str, *, force: bool) -> Change:
    """Raises NotFound, Forbidden, EndpointInUse where it has port mappings and `force` is not set."""
    endpoint = context.endpoint(ref)
    context.require(context.network(endpoint.network_id))
    portmaps = context.store.portmaps_of(endpoint)
    if portmaps and not force:
        raise EndpointInUse(
            f"endpoint '{endpoint.name}' has port mappings ({', '.join(map(str, portmaps[:5]))}); "
            "delete them first, or use ?force=true"
        )
    return Change(endpoint.id, unique(remove(context, endpoint)))


def remove(context: Context, endpoint: Endpoint) -> list[Key]:
    """Takes an endpoint and its mappings out of the store; the keys that must be planned again."""
    keys: list[Key] = _multihomed(context, endpoint.namespace_key)
    for portmap in context.store.portmaps_of(endpoint):
        context.store.delete_portmap(portmap)
        keys += [("portmap", portmap.id), ("network", endpoint.network_id)]
    context.store.delete_endpoint(endpoint)
    return [*keys, ("endpoint", endpoint.id), ("namespace", endpoint.namespace_key)]
