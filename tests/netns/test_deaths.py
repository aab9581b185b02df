"""Namespaces that die, by process, name or path, and come back; and all of them at once: a reboot."""

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from world import delete, endpoint, everything, get, made, network, portmap

from app.kernel import libc
from app.sandbox import CLIENT, HOST, SERVER, Sandbox, eventually

SOON = 2.0
"""Generous, for a busy machine."""


@pytest.fixture(params=["iptables", "nftables"])
def firewall(request):
    return request.param


@pytest.fixture
def forward_policy(firewall):
    # beside a policy of DROP in the legacy tables, nftables' accept would not be enough
    return "DROP" if firewall == "iptables" else "ACCEPT"


def _state(api, name):
    return get(api, f"endpoints/{name}")["status"]


def _process(sandbox):
    process = sandbox.process()
    pid, _inside_it = process.__enter__()
    return {"pid": pid}, partial(process.__exit__, None, None, None)


def _name(sandbox):
    sandbox.add_netns("red")
    return {"namespace": "red"}, partial(sandbox.delete_netns, "red")


PATH = Path("/run/container")


def _path(sandbox):
    process = sandbox.process()
    pid, _inside_it = process.__enter__()
    sandbox.host.run(partial(_bind, f"/proc/{pid}/ns/net"))

    def end():
        sandbox.host.run(_unbind)
        process.__exit__(None, None, None)

    return {"netns": str(PATH)}, end


def _bind(source):
    PATH.touch()
    libc.mount(source, str(PATH), "none", libc.MS_BIND)


def _unbind():
    libc.umount(str(PATH))
    PATH.unlink()


DEATHS = {"process": _process, "name": _name, "path": _path}


@pytest.mark.parametrize("death", DEATHS)
def test_a_dead_namespace_degrades_its_endpoint_and_its_ports_go(sandbox, daemon, api, firewall, death):
    network(api, "web")
    fields, die = DEATHS[death](sandbox)
    dying = made(api, "endpoints", network="web", name="dying", **fields)
    mapping = portmap(api, "dying", 8080, target_port=80)
    die()
    status = eventually(lambda: _state(api, "dying")["state"] == "degraded" and _state(api, "dying"), SOON)
    assert status["message"]
    gone = eventually(lambda: get(api, f"portmaps/{mapping['id']}")["status"]["state"] == "degraded", SOON)
    assert gone
    assert "dying" in get(api, f"portmaps/{mapping['id']}")["status"]["message"]
    eventually(lambda: dying["host_ifname"] not in sandbox.host.links(), SOON, "its link goes")
    # nobody holds the port, nobody forwards it
    with eventually(lambda: _server(sandbox), SOON, "its port is free"):
        assert sandbox.client.tcp(HOST, 8080) == b"host\n"
    held = [one["address"] for one in get(api, "ipam/allocations?network=web")]
    assert dying["address"] in held
    assert endpoint(api, "blue")["address"] != dying["address"]
    delete(api, "endpoints/dying?force=true")
    assert dying["address"] not in [one["address"] for one in get(api, "ipam/allocations?network=web")]


def _server(sandbox):
    """None while the port is held."""
    try:
        return sandbox.host.tcp_server(8080, HOST)
    except OSError:
        return None


@pytest.mark.parametrize("death", DEATHS)
def test_an_ephemeral_endpoint_goes_with_its_namespace(sandbox, daemon, api, firewall, death):
    network(api, "web")
    fields, die = DEATHS[death](sandbox)
    dying = made(api, "endpoints", network="web", name="dying", ephemeral=True, **fields)
    assert dying["ephemeral"] is True
    portmap(api, "dying", 8080)
    die()
    eventually(lambda: get(api, "endpoints") == [], SOON)
    assert get(api, "portmaps") == []
    assert dying["address"] not in [one["address"] for one in get(api, "ipam/allocations?network=web")]


def test_an_ephemeral_endpoint_goes_though_it_had_its_neighbour_s_default_route(sandbox, daemon, api, firewall):
    network(api, "web")
    stays = endpoint(api, "red")
    made(api, "endpoints", network="web", namespace="red", name="dying", ephemeral=True, default_route=True)
    assert sandbox.netns("red").default_route() == ("192.168.15.1", "eth1")
    sandbox.delete_netns("red")

    def is_back():
        assert [one["id"] for one in get(api, "endpoints")] == [stays["id"]]
        assert _state(api, "red")["state"] == "ready"
        return sandbox.netns("red").default_route() == ("192.168.15.1", "eth0")

    eventually(is_back, SOON)
    assert sandbox.netns("red").links().keys() == {"lo", "eth0"}
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("death", DEATHS)
def test_an_ephemeral_endpoint_goes_with_a_namespace_that_dies_while_no_daemon_runs(
    sandbox, daemon, api, firewall, death
):
    network(api, "web")
    endpoint(api, "blue")
    fields, die = DEATHS[death](sandbox)
    dying = made(api, "endpoints", network="web", name="dying", ephemeral=True, **fields)
    portmap(api, "dying", 8080)
    daemon.kill()
    die()
    daemon.start()
    eventually(lambda: [one["name"] for one in get(daemon.client, "endpoints")] == ["blue"], SOON)
    assert get(daemon.client, "portmaps") == []
    assert dying["host_ifname"] not in sandbox.host.links()
    assert "red" not in sandbox.netns_names()
    assert "cannot be deleted" not in daemon.log()


def test_a_name_that_comes_back_is_plugged_in_again(sandbox, daemon, api, firewall):
    network(api, "web")
    sandbox.add_netns("red")
    before = endpoint(api, "red")
    portmap(api, "red", 8080, target_port=80)
    sandbox.delete_netns("red")
    eventually(lambda: _state(api, "red")["state"] == "degraded", SOON)
    assert sandbox.netns_names() == []
    red = sandbox.add_netns("red")
    eventually(lambda: _state(api, "red")["state"] == "ready", SOON)
    after = get(api, "endpoints/red")
    assert {name: after[name] for name in before if name != "status"} == {
        name: before[name] for name in before if name != "status"
    }
    assert red.links()["eth0"].mac == before["mac"]
    eventually(lambda: get(api, "portmaps")[0]["status"]["state"] == "ready", SOON)
    with red.tcp_server(80) as web:
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert web.peers[0][0] == CLIENT
    delete(api, "endpoints/red?force=true")
    sandbox.delete_netns("red")


def test_a_namespace_of_ours_that_is_deleted_is_made_again(sandbox, daemon, api, firewall):
    network(api, "web")
    before = endpoint(api, "red")
    sandbox.delete_netns("red")
    eventually(lambda: "healed: namespace 'red' is missing" in daemon.log(), SOON)
    eventually(lambda: _state(api, "red")["state"] == "ready", SOON)
    assert sandbox.netns("red").links()["eth0"].mac == before["mac"]


# --- reboot


@contextmanager
def _fresh(directory, firewall):
    """Another machine, as after a reboot: an empty kernel, and the state directory's files."""
    policy = "DROP" if firewall == "iptables" else "ACCEPT"
    with Sandbox(forward=policy, ipv6=True, directory=directory) as sandbox:
        yield sandbox, sandbox.daemon(firewall=firewall)


@pytest.mark.parametrize("order", [("one", "two", "three"), ("three", "one", "two")])
def test_reboot_everything_is_built_again_whatever_the_order(tmp_path, firewall, order):
    names = ("one", "two", "three")
    with _fresh(tmp_path, firewall) as (sandbox, daemon), daemon:
        api = daemon.client
        network(api, "web", subnet6="fd00:15::/64")
        network(api, "lan", masquerade=False)
        for name in names:
            sandbox.add_netns(name)
            endpoint(api, name, create_namespace=False)
            endpoint(api, name, "lan", name=f"{name}-lan", create_namespace=False)
        endpoint(api, "made")
        for number, name in enumerate((*names, "made")):
            portmap(api, name, 8080 + number, target_port=80)
        before = everything(api)
        macs = {name: sandbox.netns(name).links()["eth0"].mac for name in (*names, "made")}
    with _fresh(tmp_path, firewall) as (sandbox, daemon), daemon:
        api = daemon.client
        assert get(api, "endpoints/made")["status"]["state"] == "ready"
        for count, name in enumerate(order, 1):
            sandbox.add_netns(name)
            eventually(lambda name=name: _state(api, name)["state"] == "ready", SOON)
            states = [_state(api, other)["state"] for other in names]
            assert states.count("ready") == count
        for path, objects in everything(api).items():
            assert objects == before[path]
        eventually(lambda: all(one["status"]["state"] == "ready" for one in get(api, "portmaps")), SOON)
        assert {name: sandbox.netns(name).links()["eth0"].mac for name in macs} == macs
        for number, name in enumerate((*names, "made")):
            with sandbox.netns(name).tcp_server(80):
                assert sandbox.client.tcp(HOST, 8080 + number) == f"{name}\n".encode()
            assert sandbox.netns(name).ping(SERVER)
        daemon.client.delete("/networks/web?force=true")
        daemon.client.delete("/networks/lan?force=true")
