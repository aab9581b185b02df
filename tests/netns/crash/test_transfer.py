"""What a user sees of the daemon's own death: nothing."""

import threading
from contextlib import ExitStack

import pytest
from crash.victim import BACKENDS
from world import endpoint, network, portmap

from app.sandbox import HOST, HOST6

KILLS = 10
_PIECE = 1 << 16


@pytest.fixture(params=BACKENDS)
def firewall(request):
    return request.param


@pytest.fixture
def ipv6():
    return True


@pytest.fixture
def forward_policy(firewall):
    """Legacy FORWARD's; an accept of nftables' rules overrules no drop of another's."""
    return "DROP" if firewall == "iptables" else "ACCEPT"


class Transfer(threading.Thread):
    """Sends numbered pieces through a connection and takes each back before the next; it must never break."""

    def __init__(self, connection):
        super().__init__(name="transfer", daemon=True)
        self._connection = connection
        self._over = threading.Event()
        self.pieces = 0
        self.failure = None

    def run(self):
        try:
            while not self._over.is_set():
                piece = self.pieces.to_bytes(8, "big") * (_PIECE // 8)
                self._connection.sendall(piece)
                assert self._received(len(piece)) == piece, f"piece {self.pieces} came back otherwise"
                self.pieces += 1
        except (OSError, AssertionError) as failure:
            self.failure = failure

    def _received(self, size):
        data = bytearray()
        while len(data) < size:
            data += self._connection.recv(size - len(data)) or b"?" * size
        return bytes(data)

    def progresses(self):
        """Waits for ten more pieces; they are sent through the new state of things."""
        wanted = self.pieces + 10
        while self.pieces < wanted and self.failure is None:
            self._over.wait(0.001)
        assert self.failure is None, self.failure

    def stop(self):
        self._over.set()
        self.join()


def test_transfers_outlive_ten_deaths_of_the_daemon(sandbox, daemon, api):
    network(api, "web", subnet6="fd00:15::/64")
    endpoint(api, "red")
    for host_ip in ("0.0.0.0", "::"):
        portmap(api, "red", 8080, target_port=80, host_ip=host_ip)
    red = sandbox.netns("red")
    with ExitStack() as stack:
        transfers = []
        for address, anywhere in ((HOST, "0.0.0.0"), (HOST6, "::")):
            stack.enter_context(red.tcp_server(80, anywhere, banner=b"\n"))
            for place in (sandbox.client, sandbox.host):
                connection = stack.enter_context(place.connect(address, 8080, timeout=10.0))
                assert connection.recv(1) == b"\n"
                transfers.append(Transfer(connection))
        for one in transfers:
            one.start()
            stack.callback(one.stop)
        for number in range(KILLS):
            daemon.kill() if number % 2 else daemon.stop()
            for one in transfers:
                one.progresses()
            daemon.start()
            for one in transfers:
                one.progresses()
    pieces = sum(one.pieces for one in transfers)
    print(f"\n{len(transfers)} connections, {KILLS} deaths, {pieces * _PIECE >> 20} MB each way, none broke")
