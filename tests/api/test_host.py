"""GET /host: looked at on the worker's thread, over a kernel in memory."""

from ipaddress import ip_network

from harness import UPLINK, checked_problem

from app.model.errors import KernelRefused


def test_the_host_is_described(api):
    found = api.get("/host")
    assert found["firewall"]["backend"] == "none"
    assert found["ip_forward"] == {"value": "0", "by": "as found"}
    assert [(one["ifname"], one["mtu"], one["addresses"]) for one in found["uplinks"]] == [
        ("uplink", 1400, [f"{UPLINK}/24"])
    ]
    assert found["overlapping_routes"] == found["foreign_chains"] == []


def test_what_bridgehead_set_and_what_overlaps_is_told(api):
    api.network()
    api.kernel.add_route(ip_network("192.168.0.0/16"), "tun0")
    found = api.get("/host")
    assert found["ip_forward"] == {"value": "1", "by": "set by Bridgehead, was 0"}
    assert found["overlapping_routes"] == [
        {"network": "web", "subnet": "192.168.15.0/24", "route": "192.168.0.0/16", "ifname": "tun0"}
    ]


def test_a_kernel_that_refuses_to_tell_is_said(api, monkeypatch):
    def refuse():
        raise KernelRefused(13, "nft list chains")

    monkeypatch.setattr(api.kernel, "describe", refuse)
    checked_problem(api.client.get("/host"), 502, "kernel_refused", ["nft list chains"])


def test_it_takes_no_parameters(api):
    checked_problem(api.client.get("/host?x=1"), 422, "invalid", ["x"])
