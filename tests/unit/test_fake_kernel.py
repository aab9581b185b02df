"""The fake kernel refuses and shows what the real one does, in what is easily forgotten."""

import errno
from dataclasses import replace
from ipaddress import ip_interface

import pytest

from app.kernel.fake import FakeKernel
from app.model.errors import KernelRefused
from app.model.ops import Op
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import Attachment, Bridge, Sysctl

FOUR, SIX = ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")
WEB = Bridge("7", "web", "02:00:00:00:00:01", 1500, frozenset({FOUR, SIX}), ipv6=True)
VETH = Attachment(
    owner="8",
    host_ifname="veth8",
    bridge="web",
    netns=NetnsRef(NetnsKind.NAME, "red"),
    namespace_key="name:red",
    ifname="eth0",
    mac="02:00:00:00:00:02",
    mtu=1500,
    addresses=frozenset({ip_interface("fd00::2/64")}),
    ipv6=True,
    hairpin=False,
    isolated=True,
    locked=True,
)
LOOSE = Sysctl("7", "net/ipv4/conf/web/rp_filter", "2")


@pytest.fixture
def kernel():
    made = FakeKernel()
    made.add_namespace("red")
    made.apply(Op(None, WEB))
    return made


def test_port_options_are_made_changed_and_shown(kernel):
    kernel.apply(Op(None, VETH))
    assert VETH in kernel.observe([WEB, VETH])
    plain = replace(VETH, isolated=False, locked=False)
    kernel.apply(Op(VETH, plain))
    assert VETH not in kernel.observe([WEB, VETH])
    assert plain in kernel.observe([WEB, plain])


def test_a_kernel_that_cannot_lock(kernel):
    kernel.can_lock_ports = False
    with pytest.raises(KernelRefused) as refusal:
        kernel.apply(Op(None, VETH))
    assert refusal.value.errno == errno.EOPNOTSUPP
    assert "veth8" not in kernel.host.links


def test_an_ipv6_address_wants_ipv6(kernel):
    with pytest.raises(KernelRefused) as refusal:
        kernel.apply(Op(None, replace(VETH, ipv6=False)))
    assert refusal.value.errno == errno.EACCES
    assert "veth8" not in kernel.host.links
    assert "eth0" not in kernel.names["red"].links


def test_somebody_s_address_is_not_ours(kernel):
    kernel.host.links["web"].addresses.add(ip_interface("10.0.0.9/24"))
    assert kernel.observe([WEB]) == [WEB]


@pytest.mark.parametrize(("everywhere", "own", "becomes"), [("0", "0", "0"), ("1", "0", "2"), ("0", "1", "2")])
def test_a_lax_filter_is_left(kernel, everywhere, own, becomes):
    kernel.sysctls |= {"net/ipv4/conf/all/rp_filter": everywhere, LOOSE.path: own}
    kernel.apply(Op(None, LOOSE))
    assert kernel.sysctls[LOOSE.path] == becomes
    assert LOOSE in kernel.observe([WEB, LOOSE])
    kernel.apply(Op(LOOSE, None))
    assert kernel.sysctls[LOOSE.path] == own


@pytest.mark.parametrize("path", ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"])
def test_forwarding_that_somebody_depends_on_stays(kernel, path):
    wanted = Sysctl("host", path, "1")
    kernel.apply(Op(None, wanted))
    kernel.depend_on(path)
    kernel.apply(Op(wanted, None))
    assert kernel.sysctls[path] == "1"
