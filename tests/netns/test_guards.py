"""Frames from a guarded bridge port: which of them a neighbour hears."""

from ipaddress import ip_address

import pytest
from frames import IPV4, ether, forged, hear, honest, udp4
from nftlab import Lab, address

from app.firewall.guards import GuardedFirewall
from app.firewall.null import NullFirewall
from app.model.state import SourceGuard

pytestmark = pytest.mark.parametrize("ipv6", [True])

MAC = "02:00:00:00:00:aa"
OWN, OWN6 = "192.168.15.2", "fd15::2"
PASS = honest(MAC, OWN, OWN6)
DROP = forged(MAC, OWN, OWN6, "192.168.15.3", "fd15::3", "192.168.15.1", "fd15::1")


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def lab(sandbox):
    made = Lab(sandbox, GuardedFirewall(NullFirewall()))
    made.ns["red"].exec(["ip", "link", "set", "eth0", "address", MAC])
    return made


def guard(port="v-red", mac=MAC, addresses=(OWN, OWN6)):
    return SourceGuard(f"id-{port}", port, mac, frozenset(map(ip_address, addresses)))


def heard(lab, frames, last):
    return hear(lab.ns["red"], [(lab.ns["blue"], "eth0")], frames, last)[0]


@pytest.mark.parametrize("bridge_nf", [False, True])
def test_only_own_frames_come_out(lab):
    last = ether(IPV4, udp4(OWN, dport=9), MAC)
    everything = [*DROP.values(), *PASS.values()]
    bare = heard(lab, everything, last)
    assert set(bare) >= {frame for name, frame in [*DROP.items(), *PASS.items()] if name != "VLAN"}
    lab.want(guard())
    assert heard(lab, everything, last) == list(PASS.values())
    assert lab.ns["red"].ping(address(4, "blue"))
    assert lab.ns["red"].ping(address(6, "blue"))
    assert lab.ns["green"].ping(address(4, "db"))
    lab.want()
    assert heard(lab, everything, last) == bare


def test_the_host_is_guarded_too(lab):
    lab.want(guard())
    for version in (4, 6):
        assert lab.ns["red"].ping(address(version, "web"))
    lab.want(guard(addresses=("192.168.15.9",)))
    lab.ns["red"].exec(["ip", "neigh", "flush", "all"])
    for version in (4, 6):
        assert not lab.ns["red"].ping(address(version, "web"), timeout=0.3)
    lab.want(guard(), guard("v-blue", "02:00:00:00:00:cc", ("192.168.15.3",)))
    for version in (4, 6):
        assert lab.ns["red"].ping(address(version, "web"))
        assert not lab.ns["blue"].ping(address(version, "web"), timeout=0.3)
    lab.want()
