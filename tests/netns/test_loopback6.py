"""Row 8 by [::1]: a local route of ::1 by the bridge, there while a port wants it, and open to no wire."""

import socket
import struct

import pytest
from driven import bridge, driven
from world import delete, endpoint, get, network, portmap

from app.model.state import LoopbackRoute
from app.sandbox import HOST6, SERVER6, eventually

PROTOCOLS = ("tcp", "udp", "sctp")
BACKENDS = pytest.mark.parametrize("firewall", ["iptables", "nftables"])
WEB6 = "fd00:15::1"


@pytest.fixture
def ipv6():
    return True


@pytest.fixture
def forward_policy():
    return "ACCEPT"


def routes(sandbox):
    shown = sandbox.host.exec(["ip", "-6", "route", "show", "table", "local", "proto", "98"]).stdout
    return sorted(line.split()[3] for line in shown.splitlines() if line.startswith("local ::1 "))


def publish(sandbox, api, namespace, number, **fields):
    """A network of its own for it: its namespace."""
    network(api, f"net{number}", subnet6=f"fd00:{number}::/64")
    endpoint(api, namespace, f"net{number}")
    for protocol in PROTOCOLS:
        portmap(api, namespace, 8000 + number, protocol=protocol, target_port=80, host_ip="::", **fields)
    return sandbox.netns(namespace)


@BACKENDS
@pytest.mark.parametrize("bridge_nf", [False])
def test_a_local_process_reaches_the_ports_of_several_networks(sandbox, daemon, api):
    host = sandbox.host
    red, blue = publish(sandbox, api, "red", 15), publish(sandbox, api, "blue", 16)
    assert routes(sandbox) == ["net15", "net16"]
    for protocol in PROTOCOLS:
        with red.server(protocol, 80, "::"), blue.server(protocol, 80, "::"), host.server(protocol, 9000, "::1"):
            assert host.ask(protocol, "::1", 8015) == b"red\n", f"{protocol}: {host.failure}"
            assert host.ask(protocol, "::1", 8016) == b"blue\n", f"{protocol}: {host.failure}"
            assert host.ask(protocol, "::1", 9000) == host.banner
    for one in get(api, "portmaps"):
        delete(api, f"portmaps/{one['id']}")
    assert routes(sandbox) == []


def datagram(macs, source, destination, port):
    """A frame with a datagram whose checksum holds."""
    payload = destination.encode() + b"\n"
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    length = 8 + len(payload)
    head = struct.pack("!HHH", 40000, port, length)
    summed = ends + struct.pack("!II", length, 17) + head + b"\0\0" + payload + b"\0" * (len(payload) % 2)
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    packet = head + struct.pack("!H", ~total & 0xFFFF) + payload
    return macs + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, length, 17, 64) + ends + packet


def inject(place, ifname, mac, frames):
    macs = bytes.fromhex((mac + place.links()[ifname].mac).replace(":", ""))
    with place.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((ifname, 0))
        for source, destination, port in frames:
            raw.send(datagram(macs, source, destination, port))


@BACKENDS
@pytest.mark.parametrize("way", ["bridge", "uplink"])
def test_the_loopback_from_the_wire_is_dropped(sandbox, daemon, api, way):
    """To ::1 and as from ::1, to a published port and to the host's own; the datagrams to a real address arrive."""
    host = sandbox.host
    red, blue = publish(sandbox, api, "red", 15), publish(sandbox, api, "blue", 16)
    if way == "bridge":
        place, ifname, mac, source, real = blue, "eth0", host.links()["net16"].mac, "fd00:16::2", "fd00:16::1"
    else:
        place, ifname, mac, source, real = sandbox.internet, "wan0", host.links()["eth0"].mac, SERVER6, HOST6
    with red.udp_server(80, "::") as published, host.udp_server(5001, "::") as own:
        for port, server in ((8015, published), (5001, own)):
            inject(place, ifname, mac, [(source, "::1", port), ("::1", real, port), (source, real, port)])
            eventually(lambda server=server: server.received)
            assert [peer[0] for peer in server.peers] == [source]
            assert server.received == [f"{real}\n".encode()]


@BACKENDS
def test_a_route_that_went_is_there_again_after_a_restart(sandbox, daemon, api):
    publish(sandbox, api, "red", 15)
    sandbox.host.exec(["ip", "-6", "route", "flush", "table", "local", "proto", "98"])
    assert routes(sandbox) == []
    daemon.restart()
    assert routes(sandbox) == ["net15"]


def test_one_that_nobody_wants_is_removed_and_a_foreign_one_left(sandbox, tmp_path):
    ours, foreign = LoopbackRoute("net-web", "web"), ["local", "::1/128", "dev", "eth0", "table", "local", "metric"]
    sandbox.host.exec(["ip", "-6", "route", "append", *foreign, "4096"])
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(bridge("web", f"{WEB6}/64"), ours)
        kernel.make(ours)
        assert kernel.is_kept(ours)
    with driven(sandbox, tmp_path) as kernel:
        assert ours in kernel.observe().values()
        kernel.remove(ours)
        kernel.remove(ours)
        assert ours.key not in kernel.observe()
        kernel.make(ours)
        sandbox.host.delete_link("web")
        kernel.remove(ours)
        assert ours.key not in kernel.observe()
    assert "dev eth0" in sandbox.host.exec(["ip", "-6", "route", "show", "table", "local"]).stdout
