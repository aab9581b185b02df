"""What the picture shows: which series of which benchmark, and how it is called there."""

OURS, FLOOR, PEER = "ours", "floor", "peer"

_ATTACH = (
    (OURS, "Bridgehead", "endpoint", "POST /endpoints"),
    (OURS, "the 1,000th, 10,000 ports there", "thousand", "POST /endpoints, the 1,000th, 10,000 mappings there"),
    (FLOOR, "raw netlink, in C", "endpoint", "raw netlink: add"),
    (FLOOR, "ip -batch", "endpoint", "ip -batch: add"),
    (PEER, "netavark", "peers", "netavark: added"),
    (PEER, "CNI bridge alone", "peers", "CNI: added by bridge alone"),
    (PEER, "CNI bridge, portmap, firewall", "peers", "CNI: added"),
    (PEER, "Docker, network connect", "peers", "Docker: added"),
)
_REMOVE = (
    (OURS, "Bridgehead", "endpoint", "DELETE /endpoints"),
    (FLOOR, "raw netlink, in C", "endpoint", "raw netlink: delete"),
    (PEER, "netavark", "peers", "netavark: removed"),
    (PEER, "CNI bridge, portmap, firewall", "peers", "CNI: removed"),
    (PEER, "Docker, network disconnect", "peers", "Docker: removed"),
)
_TOGETHER = (
    (OURS, "Bridgehead", "burst", "existing namespaces"),
    (FLOOR, "raw netlink, one at a time", "burst", "raw netlink, one at a time"),
    (PEER, "netavark", "peers", "netavark: 8 clients"),
    (PEER, "CNI bridge, portmap, firewall", "peers", "CNI: 8 clients"),
    (PEER, "Docker, network connect", "peers", "Docker: 8 clients"),
)
_PUBLISH = (
    (OURS, "Bridgehead, none there", "portmaps", "POST /portmaps, tcp"),
    (OURS, "Bridgehead, 10,000 there", "portmaps", "POST /portmaps, tcp, 10,000 there"),
    (OURS, "Bridgehead, iptables, 1,000 there", "iptables", "POST /portmaps, tcp"),
    (FLOOR, "raw nfnetlink, one element", "portmaps", "raw nfnetlink: one element added"),
    (FLOOR, "iptables-legacy, 1,000 there", "iptables", "iptables-legacy, typed once"),
)
_WITH_PORT = (
    (OURS, "Bridgehead", "peers", "Bridgehead: with a port"),
    (PEER, "netavark", "peers", "netavark: with a port"),
    (PEER, "CNI bridge, portmap, firewall", "peers", "CNI: with a port"),
)
_START = (
    (OURS, "all in place", "start", "all in place"),
    (OURS, "on an empty kernel", "start", "empty kernel"),
    (FLOOR, "raw netlink, one nft transaction", "start", "raw: both"),
)
GROUPS = (
    ("One endpoint into an existing namespace", _ATTACH),
    ("One endpoint removed", _REMOVE),
    ("200 endpoints by 8 clients: time for each", _TOGETHER),
    ("One port published", _PUBLISH),
    ("One endpoint with a port, 500 ports there", _WITH_PORT),
    ("Start with 1,000 endpoints and 10,000 ports", _START),
)
_MILLISECONDS = {"ms": lambda value: value, "s": lambda value: value * 1000, "/s": lambda value: 1000 / value}


def bars(results):
    """Title and bars (label, milliseconds, kind) of each group; what was not measured is left out."""
    by_name = {one.name: samples for one, samples in results}
    return [
        (title, [bar for wanted in series if (bar := _bar(by_name, *wanted)) is not None]) for title, series in GROUPS
    ]


def _bar(by_name, kind, label, name, series):
    samples = by_name.get(name)
    if samples is None or series not in samples:
        return None
    return label, _MILLISECONDS[samples.units[series]](samples.median(series)), kind
