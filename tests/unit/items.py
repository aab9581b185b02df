"""Items of every kind, for hypothesis and for examples."""

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import strategies as st

from app.model.spec import NetnsKind, NetnsRef, Protocol
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    ForeignLink,
    HostPort,
    LoopbackRoute,
    Netns,
    NetworkPolicy,
    PortForward,
    SourceGuard,
    Sysctl,
    state_of,
)

owners = st.sampled_from(["id1", "id2"])
names = st.sampled_from(["a0", "b0", "c0"])
addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]).map(ip_address)
interfaces = st.frozensets(st.sampled_from(["10.0.0.1/24", "10.0.0.2/24"]).map(ip_interface))
macs = st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02"])
mtus = st.sampled_from([1400, 1500])
ports = st.sampled_from([80, 443])
refs = st.sampled_from(
    [NetnsRef(NetnsKind.NAME, "red"), NetnsRef(NetnsKind.PID, "7", 9), NetnsRef(NetnsKind.PATH, "/p")]
)
protocols = st.sampled_from(Protocol)

item = st.one_of(
    st.builds(Netns, names, owners),
    st.builds(HostPort, owners, protocols, addresses, ports),
    st.builds(
        NetworkPolicy, owners, names, st.just(ip_network("10.0.0.0/24")), st.booleans(), st.booleans(), st.booleans()
    ),
    st.builds(PortForward, owners, names, protocols, addresses, ports, addresses, ports),
    st.builds(SourceGuard, owners, names, macs, st.frozensets(addresses)),
    st.builds(Bridge, owners, names, macs, mtus, interfaces, st.just(False), st.booleans()),
    st.builds(
        Attachment,
        owner=owners,
        host_ifname=names,
        bridge=names,
        netns=refs,
        namespace_key=names,
        ifname=names,
        mac=macs,
        mtu=mtus,
        addresses=interfaces,
        ipv6=st.just(False),
        hairpin=st.booleans(),
        up=st.booleans(),
    ),
    st.builds(DefaultRoute, owners, refs, names, addresses, names),
    st.builds(Sysctl, owners, st.sampled_from(["net/ipv4/ip_forward", "net/ipv4/conf/a0/route_localnet"]), names),
    st.builds(LoopbackRoute, owners, names),
    st.builds(ForeignLink, owners, names),
)
states = st.lists(item, max_size=12).map(lambda items: state_of(*items))
