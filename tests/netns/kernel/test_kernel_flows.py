"""Flows that are forgotten, and host ports that are held."""

import os
import socket
import sys
from ipaddress import ip_address

import pytest

from app.kernel import ports
from app.kernel.conntrack import Conntrack, needs_flush
from app.kernel.wire import CT_GET, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Packed, attribute
from app.model.errors import PortTaken
from app.model.ops import Op
from app.model.spec import Protocol
from app.model.state import HostPort, PortForward
from app.sandbox import HOST, HOST6, SERVER, SERVER6, eventually

CLIENT_OF = {4: "203.0.113.99", 6: "2001:db8:1::99"}
ANY = {4: "0.0.0.0", 6: "::"}
OWN = {4: HOST, 6: HOST6}
FOREIGN = {4: SERVER, 6: SERVER6}
NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}


def nested(kind, *parts):
    return attribute(kind | 0x8000, b"".join(parts))


def flow_tuple(kind, version, source, destination, number, sport, dport):
    ips = (1, 2) if version == 4 else (3, 4)
    held = [attribute(key, ip_address(one).packed) for key, one in zip(ips, (source, destination), strict=True)]
    ports_ = [attribute(2, sport.to_bytes(2, "big")), attribute(3, dport.to_bytes(2, "big"))]
    return nested(kind, nested(1, *held), nested(2, attribute(1, bytes([number])), *ports_))


def add_flow(sandbox, protocol, destination, port, sport=4000):
    """What a packet would leave in the table: no kernel module of the protocol is needed for it."""
    version = ip_address(destination).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    number = NUMBERS[protocol]
    client = CLIENT_OF[version]
    body = bytes([family, 0, 0, 0]) + flow_tuple(1, version, client, destination, number, sport, port)
    body += flow_tuple(2, version, destination, client, number, port, sport)
    body += attribute(3, (0x8).to_bytes(4, "big")) + attribute(7, (600).to_bytes(4, "big"))
    if protocol is Protocol.TCP:
        body += nested(4, nested(1, attribute(1, bytes([3]))))
    if protocol is Protocol.SCTP:
        verification = [attribute(key, (7).to_bytes(4, "big")) for key in (2, 3)]
        body += nested(4, nested(3, attribute(1, bytes([4])), *verification))

    def add():
        with Conntrack() as table:
            table.change(Packed(body), 0x100, NLM_F_CREATE | NLM_F_EXCL, lambda: "conntrack -I")

    sandbox.host.run(add)


def flows(sandbox, protocol, version):
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    def read():
        with Conntrack() as table:
            return {(str(flow.destination), flow.port) for flow in table.flows(family, NUMBERS[protocol])}

    return sandbox.host.run(read)


def forward(protocol, host_ip, port, count=1):
    version = ip_address(host_ip).version
    target = ip_address("10.5.0.2" if version == 4 else "fd05::2")
    return PortForward("pm", "web", protocol, ip_address(host_ip), port, target, 80, count)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
@pytest.mark.parametrize(
    ("anywhere", "first", "count", "gone"),
    [(True, 53, 1, {53}), (False, 53, 1, {53}), (True, 53, 3, {53, 54, 55}), (False, 54, 2, {54, 55})],
)
def test_flows_to_the_host_s_ports_are_forgotten(sandbox, kernel, version, protocol, anywhere, first, count, gone):
    own, foreign = OWN[version], FOREIGN[version]
    for port in range(52, 57):
        add_flow(sandbox, protocol, own, port)
        add_flow(sandbox, protocol, foreign, port)
    host_ip = ANY[version] if anywhere else own
    kernel.do("flush", [forward(protocol, host_ip, first, count)])
    expected = {(foreign, port) for port in range(52, 57)} | {(own, port) for port in range(52, 57) if port not in gone}
    assert flows(sandbox, protocol, version) == expected


@pytest.mark.parametrize("others", [0, 1000])
def test_one_mapping_or_a_hundred_cost_one_dump(sandbox, kernel, monkeypatch, figure, others):
    for number in range(others):
        add_flow(sandbox, Protocol.UDP, HOST, 1000, sport=2000 + number)
    dumps = []
    request = Conntrack.request
    counted = lambda self, *rest: dumps.append(rest[1:3] == (CT_GET, NLM_F_DUMP)) or request(self, *rest)  # noqa: E731
    for count, most in ((1, 1), (100, 1)):
        wanted = [forward(Protocol.UDP, "0.0.0.0", port) for port in range(50, 50 + count)]
        add_flow(sandbox, Protocol.UDP, HOST, 50)
        with monkeypatch.context() as patch:
            patch.setattr(Conntrack, "request", counted)
            kernel.do("flush", [*wanted, forward(Protocol.TCP, "::", 1)])
        assert {port for _address, port in flows(sandbox, Protocol.UDP, 4)} == ({1000} if others else set())
        figure(f"{others} other flows, {count} mappings: {sum(dumps)} dumps, {len(dumps)} requests")
        assert sum(dumps) == most
        assert len(dumps) == most + 1
        dumps.clear()
    for kind in (forward(Protocol.UDP, "::", 53), forward(Protocol.SCTP, "0.0.0.0", 53)):
        add_flow(sandbox, kind.protocol, OWN[kind.host_ip.version], 53)
    kernel.do("flush", [forward(Protocol.UDP, "::", 53), forward(Protocol.SCTP, "0.0.0.0", 53)])
    assert not flows(sandbox, Protocol.UDP, 6) | flows(sandbox, Protocol.SCTP, 4)


def test_its_socket_stays_open(sandbox, kernel, monkeypatch):
    for port in (53, 54):
        add_flow(sandbox, Protocol.UDP, HOST, port)
        with monkeypatch.context() as patch:
            patch.setattr(Conntrack, "close", None)
            kernel.do("flush", [forward(Protocol.UDP, "0.0.0.0", port)])
    assert flows(sandbox, Protocol.UDP, 4) == set()


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_lives_on(sandbox, kernel, version):
    add_flow(sandbox, Protocol.TCP, OWN[version], 80)
    published = forward(Protocol.TCP, ANY[version], 80)
    assert not needs_flush(published)
    kernel.do("flush", [published])
    assert flows(sandbox, Protocol.TCP, version) == {(OWN[version], 80)}


# --- ports


def listening(sandbox, address, port, *, v6only):
    def listen():
        held = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if ":" in address:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        held.bind((address, port))
        held.listen()
        return held

    return sandbox.host.run(listen)


@pytest.mark.parametrize(
    ("held", "v6only", "wanted", "taken"),
    [
        ("::", False, "0.0.0.0", True),
        ("::", False, HOST, True),
        ("::", False, "::", True),
        ("::", True, "0.0.0.0", False),
        ("::", True, HOST6, True),
        (HOST6, True, "::", True),
        (HOST6, True, "::1", False),
        (HOST6, False, "0.0.0.0", False),
        (f"::ffff:{HOST}", False, "0.0.0.0", True),
        (f"::ffff:{HOST}", False, "127.0.0.1", False),
        (HOST, False, "::", False),
        (HOST, False, "0.0.0.0", True),
    ],
)
def test_the_holder_of_a_port_is_named(sandbox, kernel, held, v6only, wanted, taken):
    with listening(sandbox, held, 80, v6only=v6only):
        if not taken:
            kernel.do("probe_port", Protocol.TCP, ip_address(wanted), 80)
            return
        with pytest.raises(PortTaken, match=rf"\(pid {os.getpid()}\)"):
            kernel.do("probe_port", Protocol.TCP, ip_address(wanted), 80)


def test_a_socket_that_does_not_collide_is_not_named(sandbox, kernel):
    """Two processes hold the number, on other addresses; only one of them is in the way."""
    code = f"import socket, sys; held = socket.create_server(('{HOST}', 80)); sys.stdin.read()"
    child = sandbox.host.spawn([sys.executable, "-c", code])
    try:
        assert eventually(lambda: is_taken(kernel, HOST))
        with (
            listening(sandbox, HOST6, 80, v6only=False),
            pytest.raises(PortTaken, match=rf"\(pid {child.pid}\)"),
        ):
            kernel.do("probe_port", Protocol.TCP, ip_address("0.0.0.0"), 80)
    finally:
        child.kill()
        child.communicate()


def is_taken(kernel, address):
    try:
        kernel.do("probe_port", Protocol.TCP, ip_address(address), 80)
    except PortTaken:
        return True
    return False


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_a_range_is_reserved_and_released(sandbox, kernel, protocol, version):
    item = HostPort("pm", protocol, ip_address(ANY[version]), 8000, 4)
    kernel.make(item)
    assert kernel.is_kept(item)
    has_sockets = sandbox.host.run(lambda: ports._open(protocol, ip_address(ANY[version]))) is not None
    assert has_sockets or protocol is Protocol.SCTP
    if has_sockets:
        for address in (ANY[version], OWN[version]):
            with pytest.raises(PortTaken):
                kernel.do("probe_port", protocol, ip_address(address), 8003)
        kernel.do("probe_port", protocol, ip_address(ANY[10 - version]), 8003)
    kernel.do("apply", Op(item, HostPort("pm", protocol, ip_address(OWN[version]), 8002, 4)))
    kernel.do("probe_port", protocol, ip_address(ANY[version]), 8001)
    kernel.remove(HostPort("pm", protocol, ip_address(OWN[version]), 8002, 4))
    kernel.do("probe_port", protocol, ip_address(ANY[version]), 8003)
    assert kernel.observe() == {}
