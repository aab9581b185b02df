"""Messages packed by hand are what pyroute2 makes of the same."""

import socket
from ipaddress import ip_interface

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from app.kernel import messages
from app.kernel.wire import ADDRESS_PROTOCOL, IFF_UP, LINK_GROUP, ROUTE_PROTOCOL

INDEX = st.integers(1, 2**31 - 1)
DESCRIPTOR = st.integers(0, 2**20)
MTU = st.integers(68, 65535)
NAME = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", min_size=1, max_size=15)
MAC = st.binary(min_size=6, max_size=6).map(lambda packed: packed.hex(":"))
ALIAS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
ADDRESS = st.ip_addresses()
INTERFACE = ADDRESS.flatmap(
    lambda one: st.integers(0, one.max_prefixlen).map(lambda prefix: ip_interface((one, prefix)))
)
PORT_OPTIONS = st.dictionaries(st.sampled_from(["hairpin", "isolated", "learning", "locked"]), st.booleans())
ATTRIBUTES = {
    "hairpin": "IFLA_BRPORT_MODE",
    "isolated": "IFLA_BRPORT_ISOLATED",
    "learning": "IFLA_BRPORT_LEARNING",
    "locked": "IFLA_BRPORT_LOCKED",
}


def body(kind, attributes, **fields):
    """pyroute2's message without its header."""
    message = kind()
    message["header"] = {"type": 0, "flags": 0, "sequence_number": 0, "pid": 0}
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[16:])


def family(address):
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@given(NAME, INDEX)
def test_get_link(name, index):
    mask = ["IFLA_EXT_MASK", 8]
    assert messages.get_link(name).body == body(ifinfmsg, [["IFLA_IFNAME", name], mask])
    assert messages.get_link(index=index).body == body(ifinfmsg, [mask], index=index)
    target = ["IFLA_IF_NETNSID", 7]  # IFLA_TARGET_NETNSID by its older name
    assert messages.get_link(index=index, target=7).body == body(ifinfmsg, [mask, target], index=index)


@given(INDEX, NAME, INDEX)
def test_what_goes(index, name, group):
    held = ["IFLA_GROUP", group]
    assert messages.get_links().body == body(ifinfmsg, [["IFLA_EXT_MASK", 8]])
    assert messages.move_link(index, group).body == body(ifinfmsg, [held], index=index)
    assert messages.delete_link(index, name).body == body(ifinfmsg, [], index=index)
    assert messages.delete_group(group).body == body(ifinfmsg, [held])


@given(INDEX)
def test_dumps(index):
    assert messages.get_addresses().body == body(ifaddrmsg, [])
    assert messages.get_addresses(index).body == body(ifaddrmsg, [], index=index)
    assert messages.get_routes().body == body(rtmsg, [], family=socket.AF_UNSPEC)
    wanted = body(rtmsg, [], family=socket.AF_INET6, table=254, type=1)  # RT_TABLE_MAIN, RTN_UNICAST
    assert messages.get_routes(socket.AF_INET6, 254, 1).body == wanted
    assert messages.get_nsids().body == body(nsidmsg, [])


@given(NAME, MAC, MTU)
def test_new_bridge(name, mac, mtu):
    plain = [["IFLA_IFNAME", name], ["IFLA_ADDRESS", mac], ["IFLA_MTU", mtu], ["IFLA_GROUP", LINK_GROUP]]
    kind = ["IFLA_LINKINFO", {"attrs": [["IFLA_INFO_KIND", "bridge"]]}]
    assert messages.new_bridge(name, mac=mac, mtu=mtu).body == body(ifinfmsg, [*plain, kind])


@given(NAME, INDEX, MTU, NAME, MAC, DESCRIPTOR)
def test_new_veth(name, master, mtu, peer, mac, netns):
    queues = [["IFLA_NUM_TX_QUEUES", 1], ["IFLA_NUM_RX_QUEUES", 1]]
    inside = [["IFLA_IFNAME", peer], ["IFLA_ADDRESS", mac], ["IFLA_MTU", mtu], ["IFLA_NET_NS_FD", netns], *queues]
    info = [
        ["IFLA_INFO_KIND", "veth"],
        ["IFLA_INFO_DATA", {"attrs": [["VETH_INFO_PEER", {"attrs": inside}]]}],
    ]
    outside = [["IFLA_IFNAME", name], ["IFLA_MTU", mtu], ["IFLA_GROUP", LINK_GROUP], ["IFLA_MASTER", master]]
    wanted = body(ifinfmsg, [*outside, *queues, ["IFLA_LINKINFO", {"attrs": info}]])
    made = messages.new_veth(name, master=master, mtu=mtu, peer=peer, peer_mac=mac, peer_netns=netns)
    assert made.body == wanted


@given(
    INDEX,
    st.none() | st.booleans(),
    st.none() | MTU,
    st.none() | MAC,
    st.none() | ALIAS,
    st.none() | INDEX,
    st.none() | PORT_OPTIONS,
)
def test_set_link(index, up, mtu, mac, alias, master, port):
    plain = {"IFLA_MTU": mtu, "IFLA_ADDRESS": mac, "IFLA_IFALIAS": alias, "IFLA_MASTER": master}
    attributes = [[key, value] for key, value in plain.items() if value is not None]
    if port:
        options = [[ATTRIBUTES[name], int(value)] for name, value in port.items()]
        options += [["IFLA_BRPORT_FLUSH", None]] if port.get("locked") else []
        slave = [["IFLA_INFO_SLAVE_KIND", "bridge"], ["IFLA_INFO_SLAVE_DATA", {"attrs": options}]]
        attributes.append(["IFLA_LINKINFO", {"attrs": slave}])
    flags = {} if up is None else {"flags": IFF_UP if up else 0, "change": IFF_UP}
    made = messages.set_link(index, up=up, mtu=mtu, mac=mac, alias=alias, master=master, port=port)
    assert made.body == body(ifinfmsg, attributes, index=index, **flags)


@given(INDEX, INTERFACE)
def test_addresses(index, address):
    fields = {"family": family(address), "index": index, "prefixlen": address.network.prefixlen}
    local = [["IFA_LOCAL", str(address.ip)], ["IFA_ADDRESS", str(address.ip)]]
    assert messages.delete_address(index, address).body == body(ifaddrmsg, local, **fields)
    marked = [*local, ["IFA_PROTO", ADDRESS_PROTOCOL]]
    if address.version == 6:
        fields["flags"] = 0x02  # IFA_F_NODAD
    elif address.network.prefixlen < 31:
        marked.append(["IFA_BROADCAST", str(address.network.broadcast_address)])
    assert messages.new_address(index, address).body == body(ifaddrmsg, marked, **fields)


@given(ADDRESS, INDEX)
def test_default_routes(via, index):
    fields = {"family": family(via), "table": 254, "scope": 0, "type": 1, "proto": ROUTE_PROTOCOL}
    wanted = body(rtmsg, [["RTA_GATEWAY", str(via)], ["RTA_OIF", index]], **fields)
    assert messages.new_default_route(via, index, replace=False).body == wanted
    assert messages.delete_default_route(via, index).body == wanted


@given(DESCRIPTOR)
def test_nsids(netns):
    assert messages.get_nsid(netns).body == body(nsidmsg, [["NETNSA_FD", netns]])
    wanted = [["NETNSA_FD", netns], ["NETNSA_TARGET_NSID", 7]]
    assert messages.get_nsid(netns, 7).body == body(nsidmsg, wanted)
    wanted = [["NETNSA_FD", netns], ["NETNSA_NSID", 0xFFFFFFFF]]
    assert messages.new_nsid(netns).body == body(nsidmsg, wanted)
