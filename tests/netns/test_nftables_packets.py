"""What packets may do by the nftables rules alone, in both IP versions: docs/dataplane.md, row by row."""

from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from nftlab import ENDPOINTS, NETS, Lab, address, policy, port

from app.firewall.nftables import NftablesFirewall
from app.sandbox import HOST6_SECOND

pytestmark = [
    pytest.mark.parametrize("ipv6", [True]),
    pytest.mark.parametrize("bridge_nf", [False, True]),
    pytest.mark.parametrize("version", [4, 6]),
]
SHORT = 0.3


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def lab(sandbox, version):
    made = Lab(sandbox, NftablesFirewall())
    made.servers = {}
    sandbox.internet.exec(["ip", "route", "add", NETS[version]["web"], "via", address(version, "host")])
    with ExitStack() as stack:
        for name in (*ENDPOINTS, "server"):
            made.servers[name] = stack.enter_context(made.ns[name].tcp_server(80, address(version, "any")))
        yield made
        made.want()


@pytest.fixture
def reaches(lab, version):
    def asked(who, where, number=80):
        """The endpoint that answers, and the address it sees; None where none does."""
        answer = lab.ns[who].tcp(address(version, where), number, timeout=SHORT)
        if answer is None:
            return None
        name = {"internet": "server"}.get(answer.decode().strip(), answer.decode().strip())
        return name, lab.servers[name].last_peer

    return asked


def test_between_networks(lab, reaches, version):
    def at(name):
        return address(version, name)

    lab.want(policy(version, "web"), policy(version, "db"))
    assert lab.ns["red"].ping(at("blue"))
    assert lab.ns["red"].ping(at("web"))
    assert reaches("host", "red") == ("red", at("web"))
    # of several IPv6 addresses, the kernel takes the one that was added last
    assert reaches("red", "server") in [("server", at("host")), ("server", HOST6_SECOND)]
    assert reaches("red", "green") is reaches("green", "red") is reaches("client", "red") is None
    lab.want(policy(version, "web", isolated=False), policy(version, "db"))
    assert reaches("red", "green") is reaches("green", "red") is None
    lab.want(policy(version, "web", isolated=False), policy(version, "db", isolated=False))
    assert reaches("red", "green") == ("green", at("red"))
    assert reaches("client", "red") is None
    lab.want(policy(version, "web", masquerade=False), policy(version, "db"))
    assert reaches("client", "red") == ("red", at("client"))
    assert reaches("red", "server") == ("server", at("red"))
    assert reaches("green", "red") is None
    second = ip_address("203.0.113.3" if version == 4 else at("host"))
    lab.want(policy(version, "web", snat_address=second), policy(version, "db"))
    assert reaches("red", "server") == ("server", str(second))


def test_published_ports(lab, reaches, version):
    def at(name):
        return address(version, name)

    ports = [port(version, "red"), port(version, "green", 8081), port(version, "blue", 8082, host="host")]
    lab.want(policy(version, "web"), policy(version, "db"), *ports)
    for client, seen in {"client": "client", "green": "green", "blue": "web", "red": "web", "host": "web"}.items():
        assert reaches(client, "host", 8080) == ("red", at(seen)), client
    assert reaches("blue", "web", 8080) == ("red", at("web"))
    assert reaches("green", "web", 8080) == ("red", at("green"))
    assert reaches("client", "host", 8082) == ("blue", at("client"))
    assert reaches("red", "web", 8082) is None
    # transit traffic to a foreign address with the same number
    assert reaches("client", "server", 8080) is None
    lab.want(policy(version, "web", icc=False), policy(version, "db"), *ports)
    assert reaches("blue", "host", 8080) is None
    assert reaches("green", "host", 8080) == ("red", at("green"))
    assert lab.ns["red"].ping(at("web"))
    lab.want(policy(version, "web", routed=False), policy(version, "db"), ports[1])
    assert lab.ns["red"].ping(at("blue"))
    assert lab.ns["red"].ping(at("web"))
    assert reaches("red", "host", 8081) is reaches("red", "server") is reaches("client", "red") is None
    assert reaches("client", "host", 8081) == ("green", at("client"))


def test_by_loopback(lab, reaches, version, bridge_nf):
    if version == 6:  # what route_localnet is for IPv4: the answers' way to ::1
        lab.host.exec(
            ["ip", "-6", "route", "add", "local", "::1/128", "dev", "web", "table", "local", "metric", "2048"]
        )
    lab.want(policy(version, "web"), port(version, "red"), port(version, "blue", 8083, host="loop"))
    assert reaches("client", "host", 8083) is None
    if version == 6 and bridge_nf:
        # the bridge translates an answer back before IPv6 sees it, and that takes no ::1 from the wire
        assert reaches("host", "loop", 8080) is None
        return
    assert reaches("host", "loop", 8080) == ("red", address(version, "web"))
    assert reaches("host", "loop", 8083) == ("blue", address(version, "web"))


def test_a_range(lab, version):
    lab.want(policy(version, "web"), port(version, "red", 8000, count=3))
    assert lab.ns["client"].tcp(address(version, "host"), 8000, timeout=SHORT) == b"red\n"
    with lab.ns["red"].tcp_server(82, address(version, "any"), banner=b"third\n"):
        assert lab.ns["client"].tcp(address(version, "host"), 8002, timeout=SHORT) == b"third\n"
    assert lab.ns["client"].tcp(address(version, "host"), 8003, timeout=SHORT) is None
