"""Bad input: a problem document that names the value, and nothing changed."""

import pytest
from harness import UPLINK

LONG = "sixteen-letters-"
NETWORKS = [
    ({}, "invalid", ["name"]),
    ({"name": "x", "colour": "red"}, "invalid", ["colour"]),
    ({"name": "x", "id": "1"}, "invalid", ["id"]),
    ({"name": 5}, "invalid", ["name", 5]),
    ({"name": None}, "invalid", ["name"]),
    ({"name": ""}, "invalid", ["name"]),
    ({"name": "a/b"}, "invalid", ["a/b"]),
    ({"name": ".."}, "invalid", [".."]),
    ({"name": "a b"}, "invalid", ["a b"]),
    ({"name": "a:b"}, "invalid", ["a:b"]),
    ({"name": "a\n"}, "invalid", ["name"]),
    ({"name": "-a"}, "invalid", ["-a"]),
    ({"name": "n" * 64}, "invalid", ["n" * 64]),
    ({"name": "x", "bridge": LONG}, "invalid", [LONG, "15"]),
    ({"name": "x", "bridge": "a/b"}, "invalid", ["a/b"]),
    ({"name": "x", "bridge": ".."}, "invalid", [".."]),
    ({"name": "x", "bridge": "a b"}, "invalid", ["a b"]),
    ({"name": "x", "bridge": "a:b"}, "invalid", ["a:b"]),
    ({"name": "x", "bridge": "lo"}, "invalid", ["lo"]),
    ({"name": "x", "bridge": ""}, "invalid", ["bridge"]),
    ({"name": "x", "subnet": "10.0.0.7/24"}, "invalid", ["10.0.0.7/24", "10.0.0.0/24"]),
    ({"name": "x", "subnet": "10.0.0.0/33"}, "invalid", ["10.0.0.0/33"]),
    ({"name": "x", "subnet": "nonsense"}, "invalid", ["nonsense"]),
    ({"name": "x", "subnet": "224.0.0.0/24"}, "invalid", ["224.0.0.0/24"]),
    ({"name": "x", "subnet": "127.0.0.0/8"}, "invalid", ["127.0.0.0/8"]),
    ({"name": "x", "subnet": "0.0.0.0/0"}, "invalid", ["0.0.0.0/0"]),
    ({"name": "x", "subnet": "169.254.0.0/16"}, "invalid", ["169.254.0.0/16"]),
    ({"name": "x", "subnet": "fd00::/64"}, "invalid", ["fd00::/64"]),
    ({"name": "x", "subnet": "fd00::/64", "gateway": None}, "invalid", ["fd00::/64"]),
    ({"name": "x", "subnet": 10}, "invalid", ["subnet", 10]),
    ({"name": "x", "subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}, "address_outside_subnet", ["10.0.1.1"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "gateway": "10.0.0.0"}, "invalid", ["10.0.0.0", "network address"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "gateway": "10.0.0.255"}, "invalid", ["10.0.0.255", "broadcast"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "gateway": "10.0.0.1/24"}, "invalid", ["10.0.0.1/24", "'10.0.0.1'"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "gateway": "fd00::1"}, "address_outside_subnet", ["fd00::1"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "ip_range": "10.0.1.0/24"}, "address_outside_subnet", ["10.0.1.0/24"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "ip_range": "10.0.0.0/23"}, "address_outside_subnet", ["10.0.0.0/23"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "ip_range": "10.0.0.3/30"}, "invalid", ["10.0.0.3/30", "10.0.0.0/30"]),
    ({"name": "x", "subnet": "10.0.0.0/24", "ip_range": "10.0.0.0/32"}, "invalid", ["10.0.0.0/32"]),
    ({"name": "x", "subnet": "10.0.0.0/31"}, "invalid", ["10.0.0.0/31", "null"]),
    ({"name": "x", "subnet": "10.0.0.1/32"}, "invalid", ["10.0.0.1/32", "null"]),
    ({"name": "x", "subnet": "10.0.0.0/31", "gateway": "10.0.0.1"}, "invalid", ["10.0.0.0/31"]),
    ({"name": "x", "mtu": 67}, "invalid", ["mtu", 67]),
    ({"name": "x", "mtu": 65536}, "invalid", ["mtu", 65536]),
    ({"name": "x", "mtu": "1500"}, "invalid", ["mtu", "'1500'"]),
    ({"name": "x", "mtu": 1500.0}, "invalid", ["mtu"]),
    ({"name": "x", "internal": "yes"}, "invalid", ["internal", "yes"]),
    ({"name": "x", "isolated": None}, "invalid", ["isolated"]),
    ({"name": "x", "labels": {"a": 1}}, "invalid", ["labels"]),
    ({"name": "x", "labels": {"a=b": "c"}}, "invalid", ["a=b"]),
    ({"name": "x", "labels": ["a"]}, "invalid", ["labels"]),
    ({"name": "x", "labels": {str(n): "" for n in range(65)}}, "invalid", [65]),
    ({"name": "x", "icc": None}, "invalid", ["icc"]),
    ({"name": "x", "spoof_protection": 1}, "invalid", ["spoof_protection"]),
    ({"name": "x", "subnet": "auto"}, "invalid", ["'auto'"]),
    ({"name": "x", "subnet": "10.0.0.0"}, "invalid", ["'10.0.0.0'", "CIDR"]),
    ({"name": "x", "subnet": "10.0.0.0/255.255.255.0"}, "invalid", ["'10.0.0.0/255.255.255.0'", "CIDR"]),
    ({"name": "x", "subnet": "10.0.0.0/0.0.0.255"}, "invalid", ["'10.0.0.0/0.0.0.255'", "CIDR"]),
    ({"name": "x", "subnet": "128.0.0.0/1"}, "invalid", ["128.0.0.0/1", "169.254.0.0/16"]),
    ([1], "invalid", []),
    ("text", "invalid", []),
    (None, "invalid", []),
]


@pytest.mark.parametrize(("body", "code", "words"), NETWORKS)
def test_network_invalid(api, body, code, words):
    api.refused("POST", "/networks", None, 422, code, *words, content=_json(body))


def _json(body):
    import json

    return json.dumps(body)


NETWORK_CONFLICTS = [
    ({"name": "web"}, "name_taken", ["web"]),
    ({"name": "x", "bridge": "uplink"}, "interface_exists", ["uplink", "somebody else"]),
    ({"name": "x", "bridge": "web"}, "interface_exists", ["web"]),
    ({"name": "x", "bridge": "out0"}, "interface_exists", ["out0", "red"]),
    ({"name": "x", "subnet": "192.168.15.128/25"}, "subnet_overlap", ["192.168.15.128/25", "192.168.15.0/24", "web"]),
    ({"name": "x", "subnet": "192.168.0.0/16"}, "subnet_overlap", ["192.168.0.0/16", "192.168.15.0/24", "web"]),
    ({"name": "x", "subnet": "203.0.113.128/25"}, "subnet_overlap", ["203.0.113.0/24", "uplink"]),
    ({"name": "x", "subnet": "203.0.0.0/16"}, "subnet_overlap", ["203.0.0.0/16", "203.0.113.0/24", "uplink"]),
]


@pytest.fixture
def busy(api):
    api.network()
    api.endpoint(host_ifname="out0")
    return api


@pytest.mark.parametrize(("body", "code", "words"), NETWORK_CONFLICTS)
def test_network_conflict(busy, body, code, words):
    busy.refused("POST", "/networks", body, 409, code, *words)


NETWORK_PATCHES = [
    ({"name": "x"}, 422, "invalid", ["name"]),
    ({"bridge": "x"}, 422, "invalid", ["bridge"]),
    ({"subnet": "10.0.0.0/24"}, 422, "invalid", ["subnet"]),
    ({"mtu": None}, 422, "invalid", ["mtu", "null"]),
    ({"internal": None}, 422, "invalid", ["internal", "null"]),
    ({"isolated": None}, 422, "invalid", ["isolated", "null"]),
    ({"masquerade": None}, 422, "invalid", ["masquerade", "null"]),
    ({"labels": None}, 422, "invalid", ["labels", "null"]),
    ({"gateway": "10.0.0.1"}, 422, "address_outside_subnet", ["10.0.0.1", "192.168.15.0/24"]),
    ({"gateway": "192.168.15.255"}, 422, "invalid", ["192.168.15.255"]),
    ({"gateway": "192.168.15.2"}, 409, "address_taken", ["192.168.15.2", "red"]),
    ({"ip_range": "10.0.0.0/24"}, 422, "address_outside_subnet", ["10.0.0.0/24"]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), NETWORK_PATCHES)
def test_network_patch(busy, body, status, code, words):
    busy.refused("PATCH", "/networks/web", body, status, code, *words)


RED = {"network": "web", "namespace": "red"}
ENDPOINTS = [
    ({}, 422, "invalid", ["network"]),
    ({"network": "web"}, 422, "invalid", ["exactly one"]),
    ({**RED, "pid": 4}, 422, "invalid", ["exactly one", "namespace and pid"]),
    ({**RED, "colour": 1}, 422, "invalid", ["colour"]),
    ({**RED, "network": "nope"}, 404, "not_found", ["nope"]),
    ({**RED, "network": ""}, 422, "invalid", ["network"]),
    ({**RED, "namespace": "a/b"}, 422, "invalid", ["a/b"]),
    ({**RED, "namespace": ".."}, 422, "invalid", [".."]),
    ({**RED, "namespace": "a b"}, 422, "invalid", ["a b"]),
    ({**RED, "namespace": "new", "create_namespace": False}, 404, "namespace_missing", ["new"]),
    ({"network": "web", "pid": 999}, 404, "namespace_missing", [999]),
    ({"network": "web", "pid": 0}, 422, "invalid", ["pid"]),
    ({"network": "web", "pid": -1}, 422, "invalid", ["pid"]),
    ({"network": "web", "pid": "1"}, 422, "invalid", ["pid"]),
    ({"network": "web", "pid": True}, 422, "invalid", ["pid"]),
    ({"network": "web", "pid": 1 << 70}, 422, "invalid", ["pid"]),
    ({"network": "web", "pid": 1}, 422, "invalid", ["'1'", "host's own"]),
    ({"network": "web", "netns": "/nope"}, 404, "namespace_missing", ["/nope"]),
    ({"network": "web", "netns": "relative"}, 422, "invalid", ["relative"]),
    ({"network": "web", "netns": "/a\0b"}, 422, "invalid", ["netns"]),
    ({"network": "web", "netns": ""}, 422, "invalid", ["netns"]),
    ({**RED, "namespace": "file"}, 422, "invalid", ["file"]),
    ({**RED, "name": "red"}, 409, "name_taken", ["red"]),
    ({**RED, "name": "a/b"}, 422, "invalid", ["a/b"]),
    ({**RED, "name": ""}, 422, "invalid", ["name"]),
    ({**RED, "address": "192.168.15.2"}, 409, "address_taken", ["192.168.15.2", "red"]),
    ({**RED, "address": "192.168.15.1"}, 409, "address_taken", ["192.168.15.1", "gateway"]),
    ({**RED, "address": "10.0.0.1"}, 422, "address_outside_subnet", ["10.0.0.1", "192.168.15.0/24"]),
    ({**RED, "address": "fd00::1"}, 422, "address_outside_subnet", ["fd00::1"]),
    ({**RED, "address": "192.168.15.0"}, 422, "invalid", ["192.168.15.0"]),
    ({**RED, "address": "192.168.15.255"}, 422, "invalid", ["192.168.15.255"]),
    ({**RED, "address": "192.168.15.9/24"}, 422, "invalid", ["192.168.15.9/24"]),
    ({**RED, "address": "192.168.015.9"}, 422, "invalid", ["192.168.015.9"]),
    ({**RED, "mac": "00:00:00:00:00:00"}, 422, "invalid", ["00:00:00:00:00:00"]),
    ({**RED, "mac": "01:00:00:00:00:01"}, 422, "invalid", ["01:00:00:00:00:01", "multicast"]),
    ({**RED, "mac": "02-00-00-00-00-01"}, 422, "invalid", ["02-00-00-00-00-01"]),
    ({**RED, "ifname": "eth0"}, 409, "interface_exists", ["eth0", "red"]),
    ({**RED, "ifname": "lo"}, 422, "invalid", ["lo"]),
    ({**RED, "ifname": LONG}, 422, "invalid", [LONG]),
    ({**RED, "ifname": "a/b"}, 422, "invalid", ["a/b"]),
    ({**RED, "ifname": ".."}, 422, "invalid", [".."]),
    ({**RED, "ifname": "a b"}, 422, "invalid", ["a b"]),
    ({**RED, "ifname": "a:b"}, 422, "invalid", ["a:b"]),
    ({"network": "web", "namespace": "theirs", "ifname": "own0"}, 409, "interface_exists", ["own0", "theirs"]),
    ({**RED, "host_ifname": "out0"}, 409, "interface_exists", ["out0", "red"]),
    ({**RED, "host_ifname": "web"}, 409, "interface_exists", ["web"]),
    ({**RED, "host_ifname": "uplink"}, 409, "interface_exists", ["uplink", "somebody else"]),
    ({**RED, "host_ifname": LONG}, 422, "invalid", [LONG]),
    ({**RED, "default_route": "yes"}, 422, "invalid", ["yes"]),
    ({**RED, "create_namespace": None}, 422, "invalid", ["create_namespace"]),
    ({**RED, "labels": None}, 422, "invalid", ["labels"]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), ENDPOINTS)
def test_endpoint(busy, body, status, code, words):
    busy.kernel.add_namespace("theirs", "own0")
    busy.kernel.add_process(1, busy.kernel.host)
    busy.kernel.files.add("file")
    busy.refused("POST", "/endpoints", body, status, code, *words)


ENDPOINT_PATCHES = [
    ({"name": None}, 422, "invalid", ["name", "null"]),
    ({"labels": None}, 422, "invalid", ["labels", "null"]),
    ({"address": "192.168.15.9"}, 422, "invalid", ["address"]),
    ({"name": "a:b"}, 422, "invalid", ["a:b"]),
    ({"name": "blue"}, 409, "name_taken", ["blue"]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), ENDPOINT_PATCHES)
def test_endpoint_patch(busy, body, status, code, words):
    busy.endpoint("blue")
    busy.refused("PATCH", "/endpoints/red", body, status, code, *words)


PORT = {"endpoint": "red", "host_port": 8080}
PORTMAPS = [
    ({}, 422, "invalid", ["endpoint"]),
    ({**PORT, "endpoint": "nope"}, 404, "not_found", ["nope"]),
    ({**PORT, "host_port": 0}, 422, "invalid", ["host_port", 0]),
    ({**PORT, "host_port": 65536}, 422, "invalid", ["host_port", 65536]),
    ({**PORT, "host_port": "8080"}, 422, "invalid", ["host_port", "'8080'"]),
    ({**PORT, "host_port": "8010-8000"}, 422, "invalid", ["'8010-8000'", "reversed", "'8000-8010'"]),
    ({**PORT, "host_port": "65530-65536"}, 422, "invalid", ["'65530-65536'", 65536, "1 to 65535"]),
    ({**PORT, "host_port": "0-3"}, 422, "invalid", ["'0-3'", "0 is not a port"]),
    *[
        ({**PORT, "host_port": text}, 422, "invalid", ["host_port", text, "8000-8010"])
        for text in ("", "-", "80-", "-80", "80-81-82", "80:81", "+80-81", "80-81\n", "٨٠-٨١", "http", "8000 - 8010")
    ],
    ({**PORT, "host_port": 80.0}, 422, "invalid", ["host_port", "80.0"]),
    ({**PORT, "host_port": [80]}, 422, "invalid", ["host_port", "[80]"]),
    ({**PORT, "host_port": "8000-8010", "target_port": 65530}, 422, "invalid", [65530, 65540, 65525]),
    ({**PORT, "host_port": "8000-8010", "target_port": "9000-9005"}, 422, "invalid", ["9000-9005", "first"]),
    ({**PORT, "target_port": "80"}, 422, "invalid", ["target_port", "'80'", "integer"]),
    ({**PORT, "host_port": True}, 422, "invalid", ["host_port"]),
    ({**PORT, "target_port": -1}, 422, "invalid", ["target_port", -1]),
    ({**PORT, "protocol": "icmp"}, 422, "invalid", ["icmp", "tcp, udp, sctp"]),
    ({**PORT, "protocol": "TCP"}, 422, "invalid", ["TCP"]),
    ({**PORT, "host_ip": "198.51.100.1"}, 422, "invalid", ["198.51.100.1"]),
    ({**PORT, "host_ip": "localhost"}, 422, "invalid", ["localhost"]),
    ({**PORT, "host_ip": "127.255.255.255"}, 422, "invalid", ["127.255.255.255", "127.0.0.1"]),
    *[
        ({**PORT, "host_ip": text}, 422, "invalid", [f"host_ip {text} is IPv6", "red", "web", "subnet6", "0.0.0.0"])
        for text in ("::", "::1")
    ],
    ({**PORT, "host_ip": "2001:db8::99"}, 422, "invalid", ["2001:db8::99", "not an address of this host", "::"]),
    ({**PORT, "host_ip": "::ffff:203.0.113.2"}, 422, "invalid", ["not an address of this host"]),
    ({**PORT, "host_ip": "fe80::1"}, 422, "invalid", ["fe80::1", "link-local"]),
    ({**PORT, "host_ip": "fe80::1%uplink"}, 422, "invalid", ["fe80::1%uplink", "'%'"]),
    ({**PORT, "host_ip": None}, 422, "invalid", ["host_ip"]),
    ({**PORT, "colour": 1}, 422, "invalid", ["colour"]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), PORTMAPS)
def test_portmap(busy, body, status, code, words):
    busy.refused("POST", "/portmaps", body, status, code, *words)


PORTMAP_PATCHES = [
    *[({name: None}, 422, "invalid", [name, "null"]) for name in ("endpoint", "host_ip", "host_port", "labels")],
    ({"protocol": "udp"}, 422, "invalid", ["protocol"]),
    ({"endpoint": "nope"}, 404, "not_found", ["nope"]),
    ({"host_ip": "198.51.100.1"}, 422, "invalid", ["198.51.100.1"]),
    ({"host_ip": "::"}, 422, "invalid", ["::", "red", "subnet6"]),
    ({"host_port": "9-8"}, 422, "invalid", ["9-8", "8-9"]),
    ({"target_port": "80-81"}, 422, "invalid", ["80-81"]),
    ({"host_port": "1-60000"}, 422, "invalid", ["target_port 8080", 68079, 5536]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), PORTMAP_PATCHES)
def test_portmap_patch(busy, body, status, code, words):
    made = busy.portmap(host_ip=UPLINK, host_port=8080)
    busy.refused("PATCH", f"/portmaps/{made['id']}", body, status, code, *words)


ALLOCATIONS = [
    ({"network": "nope"}, 404, "not_found", ["nope"]),
    ({"network": "web", "address": "192.168.15.2"}, 409, "address_taken", ["192.168.15.2", "red"]),
    ({"network": "web", "address": "10.0.0.1"}, 422, "address_outside_subnet", ["10.0.0.1"]),
    ({"network": "web", "address": "x"}, 422, "invalid", ["'x'"]),
    ({"network": "web", "note": 1}, 422, "invalid", ["note"]),
    ({"network": "web", "note": "n" * 4097}, 422, "invalid", ["note"]),
]


@pytest.mark.parametrize(("body", "status", "code", "words"), ALLOCATIONS)
def test_allocation(busy, body, status, code, words):
    busy.refused("POST", "/ipam/allocations", body, status, code, *words)


@pytest.mark.parametrize("path", ["networks", "endpoints", "portmaps"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_what_is_not_there(api, path, method):
    body = {} if method == "PATCH" else None
    api.refused(method, f"/{path}/nope", body, 404, "not_found", "nope")
