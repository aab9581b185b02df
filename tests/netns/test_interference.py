"""Requests that meet a kernel that somebody else changed: healed first, then answered; nothing foreign is touched."""

import pytest
from world import delete, endpoint, network, portmap, refused

from app.sandbox import HOST


def test_a_namespace_that_was_deleted_is_made_again(sandbox, api):
    network(api)
    first = endpoint(api, "red")
    sandbox.delete_netns("red")
    second = endpoint(api, "red")
    assert sandbox.netns("red").links().keys() >= {first["ifname"], second["ifname"]}


def test_a_bridge_that_was_deleted_is_made_again(sandbox, api):
    network(api)
    endpoint(api, "red")
    sandbox.host.delete_link("web")
    blue = endpoint(api, "blue")
    assert sandbox.netns("red").ping(blue["address"])
    assert sandbox.host.ping(blue["address"])


@pytest.mark.parametrize("bridge_nf", [False, True])
def test_a_port_is_published_though_the_rules_were_flushed(sandbox, api):
    network(api)
    endpoint(api, "red")
    portmap(api)
    sandbox.host.exec(["iptables-legacy", "-t", "nat", "-F"])
    portmap(api, host_port=8081, target_port=8080)
    with sandbox.netns("red").tcp_server(8080):
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert sandbox.client.tcp(HOST, 8081) == b"red\n"


def test_somebody_elses_bridge_of_the_same_name_is_not_taken(sandbox, api):
    network(api)
    sandbox.host.delete_link("web")
    sandbox.host.add_bridge("web")
    before = sandbox.host.links()["web"], sandbox.host.addresses().get("web")
    for answer in (
        api.post("/endpoints", json={"network": "web", "namespace": "red"}),
        api.patch("/networks/web", json={"gateway": "192.168.15.9"}),
        api.patch("/networks/web", json={"mtu": 1280}),
    ):
        refused(answer, 502, "kernel_refused", "web")
    assert (sandbox.host.links()["web"], sandbox.host.addresses().get("web")) == before
    assert not any(link.master == before[0].index for link in sandbox.host.links().values())
    assert api.get("/networks/web").json()["status"]["state"] == "failed"
    delete(api, "networks/web")
    assert sandbox.host.links()["web"] == before[0]
    sandbox.host.delete_link("web")


def test_what_the_kernel_rewrites_with_ip_forward_is_put_back(sandbox, api, baseline):
    paths = {"net/ipv4/conf/all/accept_redirects": "0", "net/ipv4/conf/eth0/forwarding": "1"}
    for path, value in paths.items():
        sandbox.host.write_sysctl(path, value)
    baseline.take()
    network(api)
    assert sandbox.host.sysctl("net/ipv4/ip_forward") == "1"
    delete(api, "networks/web")
    assert {path: sandbox.host.sysctl(path) for path in paths} == paths


def test_row_13_a_flow_that_began_without_its_rule_reaches_the_target_once_healed(sandbox, daemon, api):
    network(api)
    endpoint(api, "red")
    portmap(api, "red", 53, protocol="udp")
    daemon.kill()
    sandbox.host.exec(["iptables-legacy", "-t", "nat", "-F"])
    with sandbox.netns("red").udp_server(53):
        assert sandbox.client.udp(HOST, 53, sport=40000) is None
        daemon.start()
        assert sandbox.client.udp(HOST, 53, sport=40000) == b"red\nhello\n"
