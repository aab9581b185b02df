"""Export and import between two hosts, upgrades of earlier databases, and keys that outlive a kill."""

import json
import sys

import pytest
from former import EARLIER, HEAD, make_database
from world import endpoint, everything, get, network, portmap

from app.sandbox import CLIENT, HOST, Sandbox, eventually, snapshot


def command(sandbox, daemon, *arguments, check=True):
    """`bridgehead`, as somebody types it."""
    return sandbox.host.exec([sys.executable, "-m", "app.cli", *arguments, "--socket", str(daemon.socket)], check=check)


def furnish(api):
    network(api, "web", labels={"a": "b"}, spoof_protection=True)
    network(api, "lab", subnet="10.9.0.0/24", gateway=None)
    endpoint(api, "red", ephemeral=True)
    endpoint(api, "red", network="lab", ifname="lab0", host_ifname="lab-red")
    endpoint(api, "blue", address="192.168.15.77", mac="02:00:00:00:00:77")
    portmap(api, "red", 8080, target_port=80)
    portmap(api, "blue", "9000-9003", target_port=9000)
    assert api.post("/ipam/allocations", json={"network": "web", "note": "printer"}).status_code == 201


@pytest.fixture
def other():
    """Another host."""
    with Sandbox(forward="DROP") as made:
        yield made


def test_a_host_moves(sandbox, daemon, api, other, tmp_path):
    furnish(api)
    file = tmp_path / "state.json"
    command(sandbox, daemon, "export", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(command(sandbox, daemon, "export").stdout)["networks"]
    before = snapshot(other)
    with other.daemon(firewall="iptables") as twin:
        assert command(other, twin, "import", str(file)).stdout == (
            "2 networks, 3 endpoints, 2 portmaps, 1 reservations\n"
        )
        assert everything(twin.client) == everything(api)
        for name, place in (("red", other.netns("red")), ("blue", other.netns("blue"))):
            with place.tcp_server(80 if name == "red" else 9000) as server:
                port = 8080 if name == "red" else 9000
                assert other.client.tcp(HOST, port) == f"{name}\n".encode()
                assert server.last_peer == CLIENT
        again = command(other, twin, "import", str(file), check=False)
        assert (again.returncode, "[not_empty]" in again.stderr) == (1, True)
        for one in get(twin.client, "networks"):
            assert twin.client.delete(f"/networks/{one['id']}?force=true").status_code == 204
        eventually(lambda: snapshot(other) == before)


def test_an_import_that_fails_leaves_the_host_alone(sandbox, daemon, api, other, tmp_path):
    furnish(api)
    document = get(api, "export")
    other.host.exec(["ip", "link", "add", "lab-red", "type", "bridge"])
    taken = other.host.tcp_server(9001)
    with taken, other.daemon(firewall="iptables") as twin:
        refused = twin.client.post("/import", json=document)
        assert (refused.status_code, refused.json()["code"]) == (409, "interface_exists")
        other.host.exec(["ip", "link", "del", "lab-red"])
        before = snapshot(other)
        refused = twin.client.post("/import", json=document)
        assert (refused.status_code, refused.json()["code"]) == (409, "port_taken"), refused.text
        eventually(lambda: snapshot(other) == before)
        assert get(twin.client, "networks") == []


@pytest.mark.parametrize("schema", EARLIER)
def test_the_daemon_starts_on_an_earlier_database(sandbox, baseline, firewall, schema):
    daemon = sandbox.daemon(firewall=firewall)
    daemon.state_dir.mkdir(mode=0o700)
    make_database(daemon.state_dir / "bridgehead.db", schema)
    with daemon:
        states = {
            one["status"]["state"] for kind in ("networks", "endpoints", "portmaps") for one in get(daemon.client, kind)
        }
        assert states == {"ready"}
        with sandbox.netns("red").tcp_server(80):
            assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert (daemon.state_dir / f"bridgehead.db.before-{HEAD}").exists()
        assert daemon.client.delete("/networks/web?force=true").status_code == 204
        assert not baseline.difference()


def test_a_key_outlives_a_kill(sandbox, daemon, api):
    body, headers = {"network": "web", "namespace": "red"}, {"idempotency-key": "deploy-7"}
    network(api, "web")
    first = api.post("/endpoints", json=body, headers=headers)
    assert first.status_code == 201
    daemon.kill()
    daemon.start()
    again = daemon.client.post("/endpoints", json=body, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert len(get(daemon.client, "endpoints")) == 1


def test_tags_outlive_a_restart(daemon, api):
    made = api.post("/networks", json={"name": "web", "labels": {"b": "1", "a": "2"}})
    daemon.restart()
    assert daemon.client.get("/networks/web").headers["etag"] == made.headers["etag"]
    assert daemon.client.get("/networks/web", headers={"if-none-match": made.headers["etag"]}).status_code == 304
