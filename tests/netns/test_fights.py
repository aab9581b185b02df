"""Others who do not rest: who undoes each repair is outwaited; whose rules change is looked at, and not too often."""

import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import pytest
from world import endpoint, get, network, portmap

from app.sandbox import HOST, eventually

TABLE = "inet theirs"
SOON = 5.0
FAST = {"iptables": 5, "nftables": 10}
"""Repairs that are a fight: by a timer of 0.4 s, ten would take half of the time within which they count, at best."""


@pytest.fixture(params=["iptables", "nftables"])
def firewall(request):
    return request.param


@pytest.fixture
def forward_policy(firewall):
    return "DROP" if firewall == "iptables" else "ACCEPT"


@pytest.fixture
def daemon_options(firewall):
    return {"values": {"fast_repairs": FAST[firewall]}}


@contextmanager
def undoing(damage, is_mended):
    """Somebody who damages again what is mended, within a moment; yields the times at which they did."""
    stop, times = threading.Event(), []

    def run():
        while not stop.is_set() and len(times) < 200:
            if is_mended() and not stop.wait(0.02) and damage().returncode == 0:
                times.append(time.monotonic())
            stop.wait(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join()


def says(api, path, state, *words):
    status = get(api, path)["status"]
    assert status["state"] == state, status
    for word in words:
        assert word in status["message"], status
    return True


def test_who_takes_an_address_away_each_time_is_outwaited(sandbox, daemon, api, firewall):
    network(api)
    endpoint(api, "red")
    address = ["192.168.15.1/24", "dev", "web"]
    with sandbox.host.rtnl() as rtnl:

        def is_there():
            return any(str(one) == address[0] for _index, one in rtnl.addresses())

        def damage():
            return sandbox.host.exec(["ip", "address", "del", *address], check=False)

        words = ("lacks 192.168.15.1/24", "undoes each repair")
        with undoing(damage, is_there) as times:
            eventually(lambda: says(api, "networks/web", "degraded", *words), SOON)
            eventually(lambda: len(times) > FAST[firewall] + 1, SOON, "the next repair comes, and is undone")
            waits = [later - earlier for earlier, later in pairwise(times)]
            assert median(waits[: FAST[firewall] - 1]) * 2 < max(waits[FAST[firewall] - 1 :])
            assert daemon.log().count("somebody undoes each repair") == 1
        eventually(is_there, SOON)
        eventually(lambda: says(api, "networks/web", "ready"), SOON)
    assert sandbox.netns("red").ping("192.168.15.1")


def test_who_takes_our_rules_away_each_time_is_outwaited(sandbox, daemon, api, firewall):
    network(api)
    endpoint(api, "red")
    mapping = portmap(api, "red", 8080, target_port=80)
    if firewall == "iptables":
        listed, flush = ["iptables-legacy", "-t", "nat", "-S", "PREROUTING"], ["iptables-legacy", "-t", "nat", "-F"]
    else:
        listed, flush = ["nft", "list", "table", "ip", "bridgehead"], ["nft", "delete", "table", "ip", "bridgehead"]
    host = sandbox.host

    def is_there():
        return "BRIDGEHEAD" in host.exec(listed, check=False).stdout.upper()

    with undoing(lambda: host.exec(flush, check=False), is_there) as times:
        words = ("rules are not as wanted", "undoes each repair")
        eventually(lambda: says(api, f"portmaps/{mapping['id']}", "degraded", *words), 20)
        assert says(api, "networks/web", "degraded", *words)
        # the repairs, and what began it; the daemon may have heard of the last before its doer returned
        eventually(lambda: len(times) == FAST[firewall] + 1, SOON)
        assert get(api, "networks/web")["status"]["state"] == "degraded"
    eventually(is_there, SOON)
    eventually(lambda: says(api, f"portmaps/{mapping['id']}", "ready"), SOON)
    with sandbox.netns("red").tcp_server(80):
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"


def drops(sandbox):
    chain = f"add table {TABLE}; add chain {TABLE} gate {{ type filter hook forward priority 10; policy drop; }}"
    sandbox.host.exec(["nft", chain])


def test_a_foreign_drop_is_told_within_moments_and_so_is_its_end(sandbox, daemon, api):
    network(api)
    said = daemon.log().count("healed: ")
    drops(sandbox)
    eventually(lambda: says(api, "networks/web", "degraded", "chain gate of table inet theirs"), SOON)
    sandbox.host.exec(["nft", "add", "rule", *TABLE.split(), "gate", "accept"])
    eventually(lambda: says(api, "networks/web", "ready"), SOON)
    sandbox.host.exec(["nft", "delete", "table", *TABLE.split()])
    assert daemon.log().count("healed: ") == said


def test_a_storm_of_foreign_rules_is_looked_at_now_and_then(sandbox, daemon, api, figure):
    network(api)
    drops(sandbox)
    eventually(lambda: says(api, "networks/web", "degraded"), SOON)
    used, start = cpu(daemon.pid), time.perf_counter()
    host = sandbox.host
    script = "\n".join(f"add rule {TABLE} gate tcp dport {port} drop" for port in range(1, 21))
    for _time in range(40):
        host.exec(["nft", f"{script}; flush chain {TABLE} gate"])
    share = (cpu(daemon.pid) - used) / (time.perf_counter() - start)
    figure(f"foreign nft transactions in a row: {share:.1%} of one CPU")
    assert share < 0.5
    host.exec(["nft", "delete", "table", *TABLE.split()])
    eventually(lambda: says(api, "networks/web", "ready"), SOON)


def cpu(pid):
    """Seconds."""
    with open(f"/proc/{pid}/stat") as opened:
        fields = opened.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
