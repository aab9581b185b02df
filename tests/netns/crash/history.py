"""A history of every kind of request, and what the API shows of its outcome, comparable between runs."""

import json

from world import get

WEB, WEB6 = "192.168.15.0/24", "fd00:15::/64"
_RANDOM = {"id", "created_at", "updated_at", "mac", "host_ifname", "status", "endpoint", "network"}
_KINDS = ("networks", "endpoints", "portmaps", "ipam/pools", "ipam/allocations")


def _portmap(api, protocol):
    return next(one["id"] for one in get(api, "portmaps") if one["protocol"] == protocol)


def _reservation(api):
    return next(one["id"] for one in get(api, "ipam/allocations") if one["holder"]["kind"] == "reservation")


def _post(path, **body):
    return lambda api: api.post(f"/{path}", json=body)


def _patch(path, **body):
    return lambda api: api.patch(f"/{path}", json=body)


def _delete(path):
    return lambda api: api.delete(f"/{path}")


HISTORY = {
    "POST network, both IP versions": _post("networks", name="web", subnet=WEB, subnet6=WEB6),
    "POST endpoint, new namespace": _post("endpoints", network="web", namespace="red"),
    "POST another": _post("endpoints", network="web", namespace="blue"),
    "POST port mapping": _post("portmaps", endpoint="red", host_port=8080, target_port=80),
    "POST range of UDP": _post("portmaps", endpoint="red", protocol="udp", host_ip="::", host_port="5000-5003"),
    "POST routed network": _post("networks", name="lan", subnet="192.168.16.0/24", masquerade=False, isolated=False),
    "POST second endpoint of a namespace": _post("endpoints", network="lan", namespace="red"),
    "POST reservation": _post("ipam/allocations", network="web", address="192.168.15.200"),
    "PATCH gateway": _patch("networks/web", gateway="192.168.15.254", gateway6="fd00:15::ff"),
    "PATCH icc and spoof protection": _patch("networks/web", icc=False, spoof_protection=True),
    "PATCH internal": _patch("networks/web", internal=True),
    "PATCH external": _patch("networks/web", internal=False, icc=True, isolated=False, mtu=1400),
    "PATCH default route": _patch("endpoints/red-2", default_route=True),
    "PATCH port mapping": lambda api: api.patch(
        f"/portmaps/{_portmap(api, 'tcp')}", json={"endpoint": "blue", "host_port": "8081-8083"}
    ),
    "DELETE port mapping": lambda api: api.delete(f"/portmaps/{_portmap(api, 'udp')}"),
    "DELETE endpoint, forced": _delete("endpoints/blue?force=true"),
    "DELETE reservation": lambda api: api.delete(f"/ipam/allocations/{_reservation(api)}"),
    "DELETE network, forced": _delete("networks/web?force=true"),
    "DELETE last network, forced": _delete("networks/lan?force=true"),
}


def identities(api):
    """Of every object what must outlive everything: by kind and name, its id, MAC and interface."""
    return {
        (kind, one.get("name") or one["protocol"]): (one["id"], one.get("mac"), one.get("host_ifname"))
        for kind in ("networks", "endpoints", "portmaps")
        for one in get(api, kind)
    }


def view(api):
    """What the API shows, without what is random."""
    shown = {kind: [_plain(one) for one in get(api, kind)] for kind in _KINDS}
    return {kind: sorted(json.dumps(one, sort_keys=True) for one in found) for kind, found in shown.items()}


def _plain(one):
    kept = {name: value for name, value in one.items() if name not in _RANDOM}
    if "status" in one:
        kept["state"] = one["status"]["state"]
    if "holder" in kept:
        kept["holder"] = {name: value for name, value in kept["holder"].items() if name != "id"}
    return kept
