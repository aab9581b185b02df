"""The end: what runs is finished, what waits is answered, networks stay up; `down` removes them; systemd is told."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from world import endpoint, get, network, portmap

from app.sandbox import HOST, eventually, snapshot


def post(path, body):
    content = json.dumps(body)
    return f"POST {path} HTTP/1.1\r\nhost: b\r\ncontent-length: {len(content)}\r\n\r\n{content}".encode()


def connection(daemon):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(daemon.socket))
    return client


def answer(client):
    """Status and document of one answer."""
    found = b""
    while b"\r\n\r\n" not in found:
        part = client.recv(65536)
        assert part, "the connection was closed without an answer"
        found += part
    head, _empty, body = found.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += client.recv(65536)
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
@pytest.mark.parametrize("attempt", range(3))
def test_requests_in_flight_are_answered(sandbox, daemon, api, attempt):
    """Every one: made, and then it is there after the next start, or 503, and then it is not."""
    network(api)
    clients = [connection(daemon) for _number in range(60)]
    for number, client in enumerate(clients):
        client.sendall(post("/endpoints", {"network": "web", "namespace": f"e{number}"}))
    made = {answer(clients[attempt])[1]["name"]}
    os.kill(daemon.pid, signal.SIGTERM)
    refused = 0
    for number, client in enumerate(clients):
        if number == attempt:
            continue
        status, body = answer(client)
        if status == 201:
            made.add(body["name"])
        else:
            assert (status, body["code"]) == (503, "shutting_down")
            refused += 1
    assert daemon.exit_code() == 0
    for client in clients:
        client.close()
    assert len(made) + refused == len(clients)
    daemon.start()
    assert {one["name"] for one in get(api, "endpoints")} == made == set(sandbox.netns_names())


def test_a_request_that_is_half_there_is_finished_and_later_ones_are_refused(daemon, api):
    whole = post("/networks", {"name": "web"})
    with connection(daemon) as client, connection(daemon) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: b\r\n\r\n")
        assert answer(idle)[0] == 200
        client.sendall(whole[:-5])
        eventually(lambda: get(api, "healthz"))
        os.kill(daemon.pid, signal.SIGTERM)

        def refused():
            with connection(daemon) as later:
                later.sendall(b"GET /networks HTTP/1.1\r\nhost: b\r\n\r\n")
                status, body = answer(later)
                return (status, body.get("code")) == (503, "shutting_down") if status != 200 else None

        eventually(refused)
        client.sendall(whole[-5:])
        assert answer(client)[0] == 201
    assert daemon.exit_code() == 0
    daemon.start()
    assert [one["name"] for one in get(api, "networks")] == ["web"]


def test_a_request_that_never_ends_does_not_keep_it(daemon):
    with connection(daemon) as client:
        client.sendall(post("/networks", {"name": "web"})[:-5])
        assert daemon.stop() == 0


def bridgehead(*arguments):
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
def test_down_leaves_nothing(sandbox, daemon, baseline, api):
    network(api, "web", subnet6="auto")
    network(api, "lan", masquerade=False)
    for name in ("red", "blue"):
        endpoint(api, name)
        endpoint(api, name, "lan", name=f"{name}-lan")
    foreign = sandbox.add_netns("foreign")
    endpoint(api, "foreign")
    portmap(api, "red", 8080, target_port=80)
    before = snapshot(sandbox)
    asked = bridgehead("down", "--socket", daemon.socket)
    assert asked.returncode == 1
    assert "--yes" in asked.stderr
    assert before.difference(snapshot(sandbox)) == ""
    done = bridgehead("down", "--yes", "--socket", daemon.socket)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["web", "lan"]
    assert foreign.exists
    sandbox.delete_netns("foreign")
    assert baseline.difference() == ""
    assert get(api, "networks") == get(api, "endpoints") == get(api, "portmaps") == []
    assert bridgehead("down", "--yes", "--socket", daemon.socket).stdout == ""
    daemon.stop()
    assert baseline.difference() == ""
    daemon.start()


def test_a_stop_leaves_networks_up(sandbox, daemon, api):
    network(api)
    endpoint(api, "red")
    portmap(api, "red", 8080, target_port=80)
    before = snapshot(sandbox, frozenset({8080}))
    daemon.stop()
    with sandbox.netns("red").tcp_server(80):
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
    assert not before.difference(snapshot(sandbox, frozenset({8080})))


# --- the service manager


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """What the daemon tells the service manager, message by message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        yield lambda: bound.recv(4096).decode().splitlines()


@pytest.fixture
def commanded(sandbox, manager):
    made = sandbox.daemon(firewall="none", command=True)
    made.start()
    yield made
    made.stop()


def told(manager, word):
    """The message with this word, and those before it."""
    messages = []
    while not any(line.startswith(word) for line in (messages or [[]])[-1]):
        messages.append(manager())
    return messages


def test_the_service_manager_is_told(manager, commanded):
    *before, ready = told(manager, "READY=1")
    assert all(message == ["WATCHDOG=1"] for message in before)
    assert any(line == "STATUS=0 networks, 0 endpoints, 0 ports; none" for line in ready)
    network(commanded.client)
    for _times in range(3):
        told(manager, "WATCHDOG=1")
    assert told(manager, "WATCHDOG=1")[-1][1] == "STATUS=1 networks, 0 endpoints, 0 ports; none"
    commanded.client.delete("/networks/web")
    commanded.stop()
    assert told(manager, "STOPPING=1")


def test_a_daemon_that_hangs_is_not_said_to_be_well(manager, commanded):
    told(manager, "READY=1")
    os.kill(commanded.pid, signal.SIGSTOP)
    while True:
        try:
            manager()
        except TimeoutError:
            break
    os.kill(commanded.pid, signal.SIGCONT)
    assert told(manager, "WATCHDOG=1")
