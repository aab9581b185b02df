"""Operations as commands, and errors as documents."""

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from app.api.problems import document
from app.model import errors
from app.model.commands import commands
from app.model.ops import Op
from app.model.spec import NetnsKind, NetnsRef, Protocol
from app.model.state import Attachment, Bridge, DefaultRoute, ForeignLink, HostPort, LoopbackRoute, Netns, Sysctl

RED = NetnsRef(NetnsKind.NAME, "red")
ONE, TWO = ip_interface("10.0.0.1/24"), ip_interface("10.0.0.2/24")
ONE6 = ip_interface("fd00::1/64")
BRIDGE = Bridge("7", "web", "02:00:00:00:00:01", 1500, frozenset({ONE}), ipv6=False)
VETH = Attachment(
    owner="8",
    host_ifname="veth8",
    bridge="web",
    netns=RED,
    namespace_key="name:red",
    ifname="eth0",
    mac="02:00:00:00:00:02",
    mtu=1500,
    addresses=frozenset({TWO}),
    ipv6=False,
    hairpin=True,
)
ROUTE = DefaultRoute("8", RED, "name:red", ip_address("10.0.0.1"), "eth0")
ROUTE6 = DefaultRoute("8", RED, "name:red", ip_address("fd00::1"), "eth0")
PORT = HostPort("9", Protocol.TCP, ip_address("0.0.0.0"), 80)
LOCALNET = Sysctl("7", "net/ipv4/conf/a.b/route_localnet", "1")

CASES = [
    (None, Netns("red", "8"), ["ip netns add red", "ip -n red link set lo up"]),
    (Netns("red", "8"), None, ["ip netns delete red"]),
    (None, PORT, ["# reserve tcp port 80 of 0.0.0.0"]),
    (PORT, None, ["# release tcp port 80 of 0.0.0.0"]),
    (
        None,
        BRIDGE,
        [
            "ip link add web address 02:00:00:00:00:01 mtu 1500 type bridge",
            "ip link set web alias bridgehead:7",
            "sysctl -w net.ipv6.conf.web.disable_ipv6=1",
            "ip address add 10.0.0.1/24 dev web",
            "ip link set web up",
        ],
    ),
    (BRIDGE, None, ["ip link delete web"]),
    (
        BRIDGE,
        replace(BRIDGE, addresses=frozenset({TWO}), mtu=1400),
        ["ip address add 10.0.0.2/24 dev web", "ip address delete 10.0.0.1/24 dev web", "ip link set web mtu 1400"],
    ),
    (replace(BRIDGE, up=False), BRIDGE, ["ip link set web up"]),
    (
        None,
        VETH,
        [
            "ip link add veth8 mtu 1500 master web type veth peer name eth0 address 02:00:00:00:00:02 netns red",
            "ip link set veth8 alias bridgehead:8",
            "sysctl -w net.ipv6.conf.veth8.disable_ipv6=1",
            "bridge link set dev veth8 hairpin on",
            "ip link set veth8 up",
            "ip netns exec red sysctl -w net.ipv6.conf.eth0.disable_ipv6=1",
            "ip -n red address add 10.0.0.2/24 dev eth0",
            "ip -n red link set eth0 up",
        ],
    ),
    (VETH, None, ["ip link delete veth8"]),
    (VETH, replace(VETH, hairpin=False), ["bridge link set dev veth8 hairpin off"]),
    (VETH, replace(VETH, bridge="db"), ["ip link set veth8 master db", "bridge link set dev veth8 hairpin on"]),
    (VETH, replace(VETH, isolated=True), ["bridge link set dev veth8 isolated on"]),
    (
        VETH,
        replace(VETH, locked=True),
        [
            "bridge fdb replace 02:00:00:00:00:02 dev veth8 master static sticky",
            "bridge link set dev veth8 learning off locked on",
        ],
    ),
    (
        replace(VETH, locked=True),
        VETH,
        [
            "bridge link set dev veth8 learning on locked off",
            "bridge fdb delete 02:00:00:00:00:02 dev veth8 master",
        ],
    ),
    (
        None,
        replace(BRIDGE, addresses=frozenset({ONE, ONE6}), ipv6=True),
        [
            "ip link add web address 02:00:00:00:00:01 mtu 1500 type bridge",
            "ip link set web alias bridgehead:7",
            *(
                f"sysctl -w net.ipv6.conf.web.{key}=0"
                for key in ("accept_ra", "autoconf", "accept_dad", "dad_transmits", "addr_gen_mode", "disable_ipv6")
            ),
            "ip address add 10.0.0.1/24 dev web",
            "ip address add fd00::1/64 dev web nodad",
            "ip link set web up",
        ],
    ),
    (None, ROUTE6, ["ip -n red -6 route replace default via fd00::1 dev eth0"]),
    (ROUTE6, None, ["ip -n red -6 route delete default via fd00::1 dev eth0"]),
    (VETH, replace(VETH, addresses=frozenset()), ["ip -n red address delete 10.0.0.2/24 dev eth0"]),
    (None, ROUTE, ["ip -n red route replace default via 10.0.0.1 dev eth0"]),
    (ROUTE, None, ["ip -n red route delete default via 10.0.0.1 dev eth0"]),
    (
        None,
        replace(ROUTE, netns=NetnsRef(NetnsKind.PID, "7", 1)),
        ["nsenter --net=/proc/7/ns/net ip route replace default via 10.0.0.1 dev eth0"],
    ),
    (
        None,
        replace(ROUTE, netns=NetnsRef(NetnsKind.PATH, "/p")),
        ["nsenter --net=/p ip route replace default via 10.0.0.1 dev eth0"],
    ),
    (None, LOCALNET, ["sysctl -w net.ipv4.conf.a/b.route_localnet=1"]),
    (LOCALNET, None, ["# sysctl net.ipv4.conf.a/b.route_localnet: its former value again"]),
    (None, LoopbackRoute("7", "web"), ["ip -6 route append local ::1/128 dev web table local metric 4096"]),
    (LoopbackRoute("7", "web"), None, ["ip -6 route delete local ::1/128 dev web table local metric 4096"]),
    (ForeignLink("7", "old0"), None, ["ip link delete old0"]),
]


@pytest.mark.parametrize(("before", "after", "lines"), CASES)
def test_commands(before, after, lines):
    assert commands(Op(before, after)) == lines


def test_an_operation_wants_an_item():
    with pytest.raises(ValueError, match="without an item"):
        Op(None, None)


def every_error(kind=errors.BridgeheadError):
    for one in kind.__subclasses__():
        yield one
        yield from every_error(one)


CODES = {
    422: {"invalid", "address_outside_subnet", "idempotency_mismatch"},
    412: {"precondition_failed"},
    404: {"not_found", "namespace_missing"},
    409: {
        *("name_taken", "address_taken", "subnet_overlap", "pool_exhausted", "port_taken", "network_in_use"),
        *("endpoint_in_use", "interface_exists", "internal_network", "no_gateway", "bridge_full"),
        *("too_many_ports", "not_empty"),
    },
    401: {"unauthorized"},
    403: {"forbidden"},
    408: {"too_slow"},
    421: {"misdirected"},
    429: {"too_many_requests"},
    502: {"kernel_refused"},
    413: {"body_too_large"},
    503: {"store_failed", "shutting_down"},
}


def test_the_contract_s_codes():
    found = {}
    for one in set(every_error()) - {errors.Conflict, errors.StartupError}:
        assert one.title != errors.BridgeheadError.title
        found.setdefault(one.status, set()).add(one.code)
    assert found == CODES


def test_a_document():
    assert document(errors.NotFound("no 'x'")) == {
        "type": "urn:bridgehead:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": "no 'x'",
        "code": "not_found",
    }


def test_the_kernel_s_refusal_tells_errno_and_question():
    found = document(errors.KernelRefused(errno.EEXIST, "ip link add x", "why"))
    assert (found["errno"], found["errno_name"], found["asked"]) == (errno.EEXIST, "EEXIST", "ip link add x")
    assert found["detail"] == "the kernel refused 'ip link add x': EEXIST (why)"
    assert errors.KernelRefused(99999, "x").name == "99999"
