"""Which names and MACs are legal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.model import naming
from app.model.errors import Invalid


@pytest.mark.parametrize("name", ["a", "A9", "a.b-c_d", "9", "n" * 63])
def test_names(name):
    assert naming.check_name(name, "name") == name


ILLEGAL = ["", ".", "..", "-a", "_a", ".a", "a/b", "a b", "a:b", "a\n", "\na", "a\0", "n" * 64, "ä", "\u0661", "a%"]


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_names(name):
    with pytest.raises(Invalid, match="name '"):
        naming.check_name(name, "name")


@pytest.mark.parametrize("name", ["eth0", "_a", "a.b", "n" * 15, "veth-red-br"])
def test_ifnames(name):
    assert naming.check_ifname(name, "ifname") == name


@pytest.mark.parametrize("name", [*sorted(set(ILLEGAL) - {"_a"}), "n" * 16, "lo", "all", "default", "a+", "a,b"])
def test_illegal_ifnames(name):
    with pytest.raises(Invalid, match="ifname '"):
        naming.check_ifname(name, "ifname")
    assert not naming.is_ifname(name)


@given(st.text(max_size=20))
def test_what_passes_the_kernel_and_iptables_would_take(name):
    if naming.is_ifname(name):
        assert name.isascii()
        assert 0 < len(name) <= 15
        assert not set(name) & set("/: \t\n+!%")
        assert name not in (".", "..")


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "02-00-00-00-00-01", "0g:00:00:00:00:00", "02:00:00:00:00:01\n"])
def test_no_mac(mac):
    with pytest.raises(Invalid, match="is not a MAC"):
        naming.check_mac(mac, "mac")


@pytest.mark.parametrize(("mac", "words"), [("00:00:00:00:00:00", "zero"), ("FF:00:00:00:00:00", "multicast")])
def test_bad_macs(mac, words):
    with pytest.raises(Invalid, match=words):
        naming.check_mac(mac, "mac")


@given(st.text())
def test_made_macs_are_legal_and_local(text):
    for mac in (naming.bridge_mac(text), naming.random_mac()):
        assert naming.check_mac(mac, "mac") == mac
        assert int(mac[:2], 16) & 2
    assert naming.bridge_mac(text) == naming.bridge_mac(text)


@pytest.mark.parametrize(("alias", "owner"), [(None, None), ("", None), ("other", None), ("bridgehead:7", "7")])
def test_marks(alias, owner):
    assert naming.owner_of(alias) == owner
    assert naming.owner_of(naming.alias("x")) == "x"
