"""Bodies of requests, good ones and bad ones. Addresses are offsets into a subnet until the network is known."""

from hypothesis import strategies as st

from app.sandbox import HOST, HOST6, HOST_SECOND

NAMESPACES = st.sampled_from(["a", "b", "c", "d"])
PORT_NUMBERS = st.sampled_from([8000, 8001, 8002, 8003, 8004, 49153])
_FLAGS = ("internal", "isolated", "icc", "masquerade", "spoof_protection")
_LABELS = st.sampled_from([{}, {"k": "v"}])


def _some(**fields):
    """A dict with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def _merged(*parts):
    return st.tuples(*parts).map(lambda dicts: {name: value for one in dicts for name, value in one.items()})


def _flags(size):
    return st.dictionaries(st.sampled_from(_FLAGS), st.booleans(), max_size=size)


class Offset:
    """An address of a network that is not known yet: from the first of its subnet on."""

    def __init__(self, version, offset):
        self.version, self.offset = version, offset

    def __repr__(self):
        return f"Offset({self.version}, {self.offset})"

    def within(self, network):
        plan = network.plans.get(self.version)
        return str(plan.subnet.network_address + self.offset) if plan else f"fd00:99::{self.offset:x}"


def placed(body, network):
    """With addresses in the place of offsets."""
    return {name: one.within(network) if isinstance(one, Offset) else one for name, one in body.items()}


def _offsets(version):
    # 0 and, in the smallest subnets, 7 are no host's; 300 is outside of most
    return st.sampled_from([1, 2, 3, 4, 5, 6, 0, 7, 300]).map(lambda offset: Offset(version, offset))


def _subnets(number):
    inside = f"10.{number}.0"
    return [
        {},
        {"subnet": f"{inside}.0/24"},
        {"subnet": f"{inside}.0/24", "gateway": None},
        {"subnet": f"{inside}.0/24", "gateway": f"{inside}.77", "ip_range": f"{inside}.128/29"},
        {"subnet": f"{inside}.0/29"},
        {"subnet": f"{inside}.0/29", "gateway": f"{inside}.6"},
        {"subnet": f"{inside}.0/28"},
    ]


def _odd_subnets(number):
    """Most of them are refused."""
    inside = f"10.{number}.0"
    return [
        {"subnet": "10.0.0.0/16"},
        {"subnet": f"{inside}.8/24"},
        {"subnet": f"{inside}.0/24", "gateway": f"{inside}.0"},
        {"subnet": f"{inside}.0/24", "gateway": "10.9.0.1"},
        {"subnet": f"{inside}.0/24", "ip_range": "10.9.0.0/28"},
        {"subnet": "203.0.113.128/25"},
        {"gateway6": f"fd00:{number}::1"},
    ]


def _network(number):
    return _merged(
        st.just({"name": f"n{number}"}),
        _flags(2),
        st.sampled_from(_subnets(number) * 3 + _odd_subnets(number)),
        st.sampled_from(
            [
                {},
                {},
                {"subnet6": f"fd00:{number}::/64"},
                {"subnet6": f"fd00:{number}::/125"},
                {"subnet6": f"fd00:{number}::/64", "gateway6": None},
                {"subnet6": "auto"},
            ]
        ),
        _some(
            bridge=st.sampled_from([f"br{number}", f"br{number}", f"br{number}", "eth0", "br1"]),
            mtu=st.sampled_from([1400, 1500, 1280, 576]),
            snat_address=st.sampled_from([HOST_SECOND, HOST_SECOND, None, "192.0.2.1"]),
            labels=_LABELS,
        ),
    )


_BARE = st.sampled_from([*({"name": f"n{number}"} for number in range(4)), {"name": "admin0"}])
"""admin0: the administrator has a link of that name."""
NETWORKS = st.integers(0, 9).flatmap(lambda number: _network(number % 4) if number < 8 else _BARE)
NETWORK_PATCHES = _merged(
    _flags(3),
    _some(
        gateway=st.none() | _offsets(4),
        gateway6=st.none() | _offsets(6),
        ip_range=st.none(),
        mtu=st.sampled_from([1400, 1500, 576]),
        snat_address=st.sampled_from([None, HOST_SECOND, "192.0.2.1"]),
        labels=_LABELS,
    ),
)
_OWN_NAMES = st.sampled_from(["e0", "e1", "a", "b-2"])
ENDPOINTS = _merged(
    st.fixed_dictionaries({"namespace": NAMESPACES}),
    _some(
        create_namespace=st.booleans(),
        name=_OWN_NAMES,
        address=_offsets(4),
        address6=_offsets(6),
        mac=st.integers(1, 255).map(lambda number: f"02:00:00:00:07:{number:02x}"),
        ifname=st.sampled_from(["eth0", "eth1", "net0"]),
        host_ifname=st.sampled_from(["vx", "vy", "eth0"]),
        default_route=st.sampled_from([None, True, False]),
        ephemeral=st.booleans(),
        labels=_LABELS,
    ),
)
ENDPOINT_PATCHES = _some(
    name=_OWN_NAMES, default_route=st.sampled_from([None, True, False]), ephemeral=st.booleans(), labels=_LABELS
)
_PORTS = st.sampled_from([8000, 8001, 8002, 8003, "8000-8002", "8001-8004", "8064-8200", 49153])
_HOST_IPS = st.sampled_from(["0.0.0.0", "::", HOST, "127.0.0.1", HOST6, "192.0.2.9"])
_PORTMAP = {
    "host_ip": _HOST_IPS,
    "host_port": _PORTS,
    "target_port": st.sampled_from([80, 8000, 65534]),
    "labels": _LABELS,
}
PORTMAPS = _some(protocol=st.sampled_from(["tcp", "udp", "sctp"]), **_PORTMAP)
PORTMAP_PATCHES = _some(**_PORTMAP)
RESERVATIONS = _some(address=_offsets(4) | _offsets(6), note=st.sampled_from(["", "printer"]))
STRAY = st.sampled_from(
    [
        ("PATCH", "networks/none", {"icc": False}),
        ("DELETE", "endpoints/none", None),
        ("DELETE", "portmaps/none", None),
        ("PATCH", "portmaps/none", {"target_port": 80}),
        ("POST", "endpoints", {"network": "none", "namespace": "e"}),
        ("POST", "portmaps", {"endpoint": "none"}),
        ("POST", "ipam/allocations", {"network": "none"}),
    ]
)
