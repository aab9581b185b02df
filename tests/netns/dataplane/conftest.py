"""Each test on both backends and in both IP versions; `family` has the addresses, `cell` says what a part is about."""

import pytest
from cells import BACKENDS, PROTOCOLS, Recorder, cells_of
from lab import IPV4, IPV6, Lab

_RECORDER = pytest.StashKey[Recorder]()


@pytest.fixture(params=BACKENDS)
def firewall(request):
    return request.param


@pytest.fixture(params=[IPV4, IPV6], ids=str)
def family(request):
    """The IP version that a test is about; with IPv6, everything is dual stack."""
    return request.param


@pytest.fixture
def ipv6(family):
    return family.version == 6


@pytest.fixture
def forward_policy(firewall):
    """Legacy FORWARD's. An accept of nftables' rules overrules no drop of another's, by design."""
    return "DROP" if firewall == "iptables" else "ACCEPT"


@pytest.fixture
def lab(sandbox, family, api):
    return Lab(sandbox, family, api)


@pytest.fixture
def cell(request):
    """`with cell("udp"): ...` for each part of a test."""
    recorder = Recorder(request.node)
    request.node.stash[_RECORDER] = recorder
    return recorder


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    result = yield
    if _RECORDER in pyfuncitem.stash:
        pyfuncitem.stash[_RECORDER].raise_failures()
    return result


def pytest_runtest_setup(item):
    item.user_properties.append(("cells", [list(one) for one in cells_of(item, PROTOCOLS)]))
