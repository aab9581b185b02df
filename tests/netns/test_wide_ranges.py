"""Ranges of thousands of ports: made while there are descriptors for them, else refused with nothing left behind."""

import resource

import pytest
from world import delete, endpoint, get, network, patch, portmap, refused

from app.sandbox import HOST, snapshot

BACKENDS = pytest.mark.parametrize("firewall", ["iptables", "nftables"])


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def red(api, sandbox):
    network(api)
    endpoint(api, "red")
    return sandbox.netns("red")


@BACKENDS
def test_every_port_there_is(sandbox, daemon, api, red):
    """Each holds a descriptor: refused where the limit is lower, and what works is told."""
    _limit(daemon, 20000)
    before = snapshot(sandbox)
    body = {"endpoint": "red", "host_port": "1-65535", "target_port": 1}
    refused(api.post("/portmaps", json=body), 409, "too_many_ports", "20000", "65535", "LimitNOFILE")
    assert get(api, "portmaps") == []
    assert not before.difference(snapshot(sandbox))
    made = portmap(api, "red", "1-1000", target_port=1)
    refused(api.patch(f"/portmaps/{made['id']}", json={"host_port": "1-65535"}), 409, "too_many_ports", "1000")
    assert get(api, f"portmaps/{made['id']}") == made
    with red.tcp_server(1000):
        assert sandbox.client.tcp(HOST, 1000) == b"red\n"
    delete(api, f"portmaps/{made['id']}")
    assert not before.difference(snapshot(sandbox))


@BACKENDS
def test_ten_thousand_ports_at_once(sandbox, daemon, api, red):
    before = snapshot(sandbox)
    made = portmap(api, "red", "20000-29999", target_port=30000)
    with red.tcp_server(39999):
        assert sandbox.client.tcp(HOST, 29999) == b"red\n"
    daemon.restart()
    assert get(daemon.client, f"portmaps/{made['id']}")["status"]["state"] == "ready"
    patch(daemon.client, f"portmaps/{made['id']}", host_port="20001-29999")
    with red.tcp_server(39998):
        assert sandbox.client.tcp(HOST, 29999) == b"red\n"
    delete(daemon.client, f"portmaps/{made['id']}")
    assert not before.difference(snapshot(sandbox))


def test_ports_that_are_given_back_make_room(daemon, api, red):
    wide = portmap(api, "red", "20000-20999")
    _limit(daemon, 1200)
    made = api.post("/portmaps", json={"endpoint": "red", "host_port": "30000-30999"})
    refused(made, 409, "too_many_ports", "1200")
    delete(api, f"portmaps/{wide['id']}")
    portmap(api, "red", "30000-30099")


def _limit(daemon, files):
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (files, files))
