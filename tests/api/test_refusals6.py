"""Bad input of what came with IPv6 and the policies: the value, why, and what would work; nothing changed."""

import pytest
from harness import UPLINK, UPLINK6

BODY = {"name": "x"}
SIX = {"name": "x", "subnet6": "fd00:15::/64"}
NETWORKS = [
    ({**BODY, "subnet6": "fd00::1/64"}, "invalid", ["fd00::1/64", "'fd00::/64'"]),
    ({**BODY, "subnet6": "10.0.0.0/24"}, "invalid", ["subnet6 10.0.0.0/24", "IPv4", "fd00:15::/64"]),
    ({**BODY, "subnet6": "AUTO"}, "invalid", ["AUTO"]),
    ({**BODY, "subnet6": True}, "invalid", ["subnet6"]),
    *[
        ({**BODY, "subnet6": text}, "invalid", [f"subnet6 {text}", "fd00:15::/64"])
        for text in ("fe80::/64", "fe80::/16", "fe00::/7", "ff02::/64", "::/64", "::1/128", "::ffff:0:0/96", "::/0")
    ],
    ({**BODY, "subnet6": "fe80::%eth0/64"}, "invalid", ["fe80::%eth0/64"]),
    ({**BODY, "gateway6": "fd00::1"}, "invalid", ["gateway6 fd00::1", "subnet6", "auto"]),
    ({**BODY, "ip_range6": "fd00::/64"}, "invalid", ["ip_range6 fd00::/64", "subnet6"]),
    ({**SIX, "gateway6": "fd00:16::1"}, "address_outside_subnet", ["gateway6 fd00:16::1", "fd00:15::/64"]),
    ({**SIX, "gateway6": "192.168.15.1"}, "address_outside_subnet", ["gateway6 192.168.15.1"]),
    ({**SIX, "gateway6": "fd00:15::"}, "invalid", ["gateway6 fd00:15::", "anycast"]),
    ({**SIX, "gateway6": "fd00:15::1/64"}, "invalid", ["fd00:15::1/64", "'fd00:15::1'"]),
    ({**SIX, "gateway6": "fd00:15::1%x"}, "invalid", ["fd00:15::1%x"]),
    ({**SIX, "ip_range6": "fd00:16::/80"}, "address_outside_subnet", ["ip_range6 fd00:16::/80", "fd00:15::/64"]),
    ({**SIX, "ip_range6": "fd00:15::/63"}, "address_outside_subnet", ["fd00:15::/63"]),
    ({**SIX, "ip_range6": "fd00:15::1/80"}, "invalid", ["fd00:15::1/80", "'fd00:15::/80'"]),
    ({**SIX, "ip_range6": "192.168.15.0/24"}, "address_outside_subnet", ["ip_range6 192.168.15.0/24"]),
    ({**SIX, "ip_range6": "fd00:15::/128"}, "invalid", ["ip_range6 fd00:15::/128"]),
    ({**BODY, "subnet6": "fd00::%eth0/64"}, "invalid", ["subnet6", "'fd00::%eth0/64'", "such as fd00:15::/64"]),
    ({**SIX, "ip_range6": "fd00:15::%eth0/64"}, "invalid", ["ip_range6", "'fd00:15::%eth0/64'"]),
    ({**BODY, "subnet6": "fd00::"}, "invalid", ["subnet6", "'fd00::'", "CIDR"]),
    ({**BODY, "subnet6": "fd00::/127"}, "invalid", ["subnet6 fd00::/127", '"gateway6": null']),
    ({**BODY, "subnet6": "fd00::1/128"}, "invalid", ["subnet6 fd00::1/128", '"gateway6": null']),
    ({**BODY, "subnet6": "fd00::/127", "gateway6": "fd00::1"}, "invalid", ["fd00::/127"]),
    ({**SIX, "mtu": 1279}, "invalid", ["mtu 1279", 1280]),
    ({**BODY, "snat_address": "198.51.100.1"}, "invalid", ["snat_address 198.51.100.1", "not an address of this host"]),
    ({**BODY, "snat_address": "127.0.0.1"}, "invalid", ["snat_address 127.0.0.1"]),
    ({**BODY, "snat_address": "0.0.0.0"}, "invalid", ["snat_address 0.0.0.0"]),
    ({**BODY, "snat_address": UPLINK6}, "invalid", [f"snat_address {UPLINK6}", "IPv6", "subnet6"]),
    ({**SIX, "snat_address": "::1"}, "invalid", ["snat_address ::1"]),
    ({**BODY, "snat_address": f"{UPLINK}/24"}, "invalid", [f"'{UPLINK}'"]),
    ({**BODY, "snat_address": UPLINK, "masquerade": False}, "invalid", [UPLINK, "masquerade", "null"]),
]


@pytest.mark.parametrize(("body", "code", "words"), NETWORKS)
def test_network_invalid(api, body, code, words):
    api.refused("POST", "/networks", body, 422, code, *words)


@pytest.fixture
def busy(api):
    api.network("six", subnet6="fd00:15::/64")
    api.network("web")
    api.endpoint("blue", network="six")
    api.endpoint("red", network="web")
    return api


OVERLAPS = [
    ("fd00:15::/64", ["fd00:15::/64", "network 'six'", '"auto"']),
    ("fd00::/16", ["fd00::/16", "fd00:15::/64", "network 'six'"]),
    ("fd00:15::8:0/112", ["fd00:15::8:0/112", "network 'six'"]),
    ("2001:db8::/32", ["2001:db8::/64", "uplink"]),
]


@pytest.mark.parametrize(("subnet", "words"), OVERLAPS)
def test_subnet6_overlaps(busy, subnet, words):
    busy.refused("POST", "/networks", {"name": "x", "subnet6": subnet}, 409, "subnet_overlap", *words)


def test_automatic_subnet6_gives_up_where_all_is_taken(api):
    api.network("all", subnet6="fc00::/7")
    api.refused("POST", "/networks", {"name": "x", "subnet6": "auto"}, 409, "pool_exhausted", "name a subnet6")


PATCHES = [
    ("web", {"subnet6": "auto"}, 422, "invalid", ["subnet6"]),
    ("web", {"gateway6": "fd00::1"}, 422, "invalid", ["gateway6 fd00::1", "web", "subnet6"]),
    ("web", {"ip_range6": "fd00::/64"}, 422, "invalid", ["ip_range6 fd00::/64", "web"]),
    ("six", {"gateway6": "fd00:15::2"}, 409, "address_taken", ["gateway6 fd00:15::2", "blue"]),
    ("six", {"gateway6": "fd00:16::2"}, 422, "address_outside_subnet", ["gateway6 fd00:16::2"]),
    ("six", {"gateway": "192.168.15.9", "gateway6": "fd00:15::2"}, 409, "address_taken", ["blue"]),
    ("six", {"ip_range6": "fd00:16::/64"}, 422, "address_outside_subnet", ["ip_range6 fd00:16::/64"]),
    ("six", {"mtu": 1000}, 422, "invalid", ["mtu 1000", 1280]),
    *[("six", {name: None}, 422, "invalid", [name, "null"]) for name in ("icc", "spoof_protection")],
    ("web", {"snat_address": UPLINK6}, 422, "invalid", [UPLINK6, "subnet6"]),
    ("web", {"snat_address": "198.51.100.1"}, 422, "invalid", ["198.51.100.1"]),
    ("web", {"snat_address": UPLINK, "masquerade": False}, 422, "invalid", ["masquerade", "null"]),
]


@pytest.mark.parametrize(("network", "body", "status", "code", "words"), PATCHES)
def test_network_patch(busy, network, body, status, code, words):
    busy.refused("PATCH", f"/networks/{network}", body, status, code, *words)


def test_the_merged_network_is_checked(busy):
    busy.patch("/networks/web", snat_address=UPLINK)
    busy.refused("PATCH", "/networks/web", {"masquerade": False}, 422, "invalid", UPLINK, '"snat_address": null')
    busy.patch("/networks/web", masquerade=False, snat_address=None)
    busy.refused("PATCH", "/networks/web", {"snat_address": UPLINK}, 422, "invalid", UPLINK, '"masquerade": true')


GREEN = {"network": "six", "namespace": "green"}
ENDPOINTS = [
    ({**GREEN, "network": "web", "address6": "fd00::9"}, 422, "invalid", ["address6 fd00::9", "web", "subnet6"]),
    ({**GREEN, "address6": "fd00:15::2"}, 409, "address_taken", ["address6 fd00:15::2", "blue", "fd00:15::3 is free"]),
    ({**GREEN, "address6": "fd00:15::1"}, 409, "address_taken", ["address6 fd00:15::1", "gateway"]),
    ({**GREEN, "address6": "fd00:16::2"}, 422, "address_outside_subnet", ["address6 fd00:16::2", "fd00:15::/64"]),
    ({**GREEN, "address6": "192.168.15.9"}, 422, "address_outside_subnet", ["address6 192.168.15.9"]),
    ({**GREEN, "address": "fd00:15::9"}, 422, "address_outside_subnet", ["address fd00:15::9"]),
    ({**GREEN, "address6": "fd00:15::"}, 422, "invalid", ["address6 fd00:15::", "anycast"]),
    ({**GREEN, "address6": "fd00:15::9/64"}, 422, "invalid", ["'fd00:15::9'"]),
    ({**GREEN, "address6": "x"}, 422, "invalid", ["address6", "'x'"]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), ENDPOINTS)
def test_endpoint(busy, body, status, code, words):
    busy.refused("POST", "/endpoints", body, status, code, *words)


ALLOCATIONS = [
    ({"network": "web", "address": "fd00::9"}, 422, "address_outside_subnet", ["fd00::9", "web", "subnet6"]),
    ({"network": "six", "address": "fd00:16::9"}, 422, "address_outside_subnet", ["fd00:16::9"]),
    ({"network": "six", "address": "fd00:15::2"}, 409, "address_taken", ["fd00:15::2", "blue"]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), ALLOCATIONS)
def test_allocation(busy, body, status, code, words):
    busy.refused("POST", "/ipam/allocations", body, status, code, *words)


def test_a_mapping_of_ipv6_does_not_move_to_an_endpoint_without(busy):
    made = busy.portmap("blue", host_ip="::", host_port=80)
    path = f"/portmaps/{made['id']}"
    busy.refused("PATCH", path, {"endpoint": "red"}, 422, "invalid", "host_ip ::", "IPv6", "red", "web", "subnet6")
    assert busy.patch(path, endpoint="red", host_ip="0.0.0.0")["endpoint_name"] == "red"


def test_without_a_gateway6_nothing_of_ipv6_is_published(api):
    api.network("flat6", subnet6="fd00:15::/64", gateway6=None)
    api.endpoint("red", network="flat6")
    body = {"endpoint": "red", "host_ip": "::", "host_port": 80}
    api.refused("POST", "/portmaps", body, 409, "no_gateway", "flat6", "red", '"gateway6"')
    api.portmap(host_port=80)
    api.network("flat4", gateway=None, subnet6="fd00:16::/64")
    api.endpoint("blue", network="flat4")
    body = {"endpoint": "blue", "host_port": 81}
    api.refused("POST", "/portmaps", body, 409, "no_gateway", "flat4", "blue", '"gateway"')
    api.portmap("blue", host_ip="::", host_port=81)
