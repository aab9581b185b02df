"""Clients that connect and say nothing: they may take what descriptors there are, and changes go on."""

import resource
import socket
from contextlib import ExitStack

import pytest
from world import endpoint, network, portmap

from app.sandbox import HOST

CLIENTS = 1500


@pytest.fixture(params=["nftables", "iptables"])
def firewall(request):
    return request.param


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def descriptors():
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (former[1], former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, former)


@pytest.mark.usefixtures("descriptors")
def test_idle_clients_keep_nobody_from_changing_the_rules(sandbox, daemon, api):
    with ExitStack() as stack:
        for _number in range(CLIENTS):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            idle.connect(str(daemon.socket))
        network(api, spoof_protection=True)
        endpoint(api, "red")
        portmap(api, "red", 8080, target_port=80)
        with sandbox.netns("red").tcp_server(80):
            assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert api.get("/host").status_code == 200
