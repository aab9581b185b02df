"""Address arithmetic against brute force."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.model import ipam
from app.model.errors import AddressOutsideSubnet, Invalid
from app.store.mapping import key_of, value_of

spans = st.tuples(st.integers(0, 40), st.integers(-2, 40)).map(lambda pair: (pair[0], pair[0] + pair[1]))
held = st.sets(st.integers(0, 90))


def taken_in(taken):
    return lambda first, last: iter(sorted(value for value in taken if first <= value <= last))


def brute(first, last, cursor, taken):
    span = list(range(first, last + 1))
    later = [value for value in span if cursor is not None and first <= cursor <= last and value > cursor]
    return next((value for value in later + span if value not in taken), None)


@given(spans, st.none() | st.integers(-5, 95), held)
def test_next_free_equals_brute_force(span, cursor, taken):
    first, last = span
    found = ipam.next_free(first, last, cursor, taken_in(taken))
    assert found == brute(first, last, cursor, taken)
    assert found is None or (found not in taken and first <= found <= last)


@given(spans, st.none() | st.integers(0, 90), held)
def test_next_free_exhausts_exactly(span, cursor, taken):
    first, last = span
    free = set(range(first, last + 1)) - taken
    taken, given_out = set(taken), []
    while (found := ipam.next_free(first, last, cursor, taken_in(taken))) is not None:
        given_out.append(found)
        taken.add(found)
        cursor = found
    assert len(given_out) == len(free)
    assert set(given_out) == free


@given(st.integers(2, 20), st.integers(3, 40))
def test_round_robin_gives_each_in_turn_though_all_are_freed(size, steps):
    cursor, seen = None, []
    for _step in range(steps):
        cursor = ipam.next_free(0, size - 1, cursor, taken_in(set()))
        seen.append(cursor)
    assert seen == [number % size for number in range(steps)]


def test_next_free_reads_no_further_than_the_gap():
    def endless(first, _last):
        yield first
        yield first + 2
        raise AssertionError("read on")

    assert ipam.next_free(0, 1000, None, endless) == 1


networks = st.builds(
    lambda value, prefix: ip_network((value >> (32 - prefix) << (32 - prefix), prefix)),
    st.integers(int(ip_address("10.0.0.0")), int(ip_address("10.0.3.255"))),
    st.integers(20, 32),
)
pools = st.lists(
    st.tuples(st.sampled_from(["10.0.0.0/24", "10.0.1.0/25", "10.0.2.0/23"]).map(ip_network), st.integers(25, 29)),
    min_size=1,
    max_size=2,
)


@given(pools, st.lists(networks, max_size=12))
def test_lowest_free_subnet_equals_brute_force(pools, used):
    def clash(candidate):
        return next((one for one in used if one.overlaps(candidate)), None)

    candidates = (one for pool, prefix in pools for one in pool.subnets(new_prefix=prefix))
    wanted = next((one for one in candidates if clash(one) is None), None)
    assert ipam.lowest_free_subnet(pools, clash) == wanted


def test_a_full_pool_costs_its_clashes():
    asked = []

    def clash(candidate):
        asked.append(candidate)
        return ip_network("10.0.0.0/8")

    assert ipam.lowest_free_subnet([(ip_network("10.0.0.0/8"), 30)], clash) is None
    assert len(asked) == 1


@given(networks)
def test_bounds_equal_the_library_s_hosts(network):
    hosts = list(network.hosts())
    assert ipam.bounds(network) == (int(hosts[0]), int(hosts[-1]))
    assert ipam.size(network) == len(hosts)
    assert ipam.first_usable(network) == hosts[0]


def test_bounds_of_ipv6():
    assert ipam.first_usable(ip_network("fd00::/64")) == ip_address("fd00::1")
    assert ipam.bounds(ip_network("fd00::/126"))[1] == int(ip_address("fd00::3"))
    assert ipam.size(ip_network("fd00::/127")) == 2


@given(networks, st.integers(1, 255))
def test_host_bits_name_the_network_that_was_meant(network, offset):
    if network.prefixlen == 32:
        return
    address = network.network_address + 1 + offset % (network.num_addresses - 1)
    with pytest.raises(Invalid) as refusal:
        ipam.parse_network(f"{address}/{network.prefixlen}", "subnet")
    assert f"'{network}'" in refusal.value.detail
    assert f"'{address}/{network.prefixlen}'" in refusal.value.detail


@pytest.mark.parametrize("text", ["", "x", "10.0.0.0/33", "10.0.0/24", "10.0.0.0/24/1", "10.0.0.0/-1", " 10.0.0.0/24"])
def test_no_network(text):
    with pytest.raises(Invalid, match="subnet '"):
        ipam.parse_network(text, "subnet")


def test_an_address_with_its_prefix_is_told_so():
    with pytest.raises(Invalid, match=r"without the prefix length: '10\.0\.0\.1'"):
        ipam.parse_address("10.0.0.1/24", "address")


@given(networks, networks)
def test_check_usable(network, other):
    address = other.network_address
    if address not in network:
        with pytest.raises(AddressOutsideSubnet, match=str(address)):
            ipam.check_usable(address, network, "address")
    elif address in set(network.hosts()):
        ipam.check_usable(address, network, "address")
    else:
        with pytest.raises(Invalid, match=r"network|broadcast"):
            ipam.check_usable(address, network, "address")


addresses = st.ip_addresses()


@given(st.lists(addresses, max_size=20))
def test_keys_sort_as_addresses_of_a_version_do(values):
    for version in (4, 6):
        ours = [value for value in values if value.version == version]
        assert sorted(ours, key=key_of) == sorted(ours)
        assert [value_of(key_of(value), version) for value in ours] == [int(value) for value in ours]


@given(addresses)
def test_keys_are_of_one_width(address):
    assert len(key_of(address)) == 32


networks6 = st.builds(
    lambda value, prefix: ip_network((value >> (128 - prefix) << (128 - prefix), prefix)),
    st.integers(int(ip_address("fd00::")), int(ip_address("fd00::ffff"))),
    st.integers(120, 128),
)


@given(networks6)
def test_bounds_of_ipv6_leave_out_the_anycast_address_alone(network):
    first, last = ipam.bounds(network)
    usable = [one for one in network if network.prefixlen >= 127 or one != network.network_address]
    assert (first, last) == (int(usable[0]), int(usable[-1]))
    assert ipam.size(network) == len(usable)


@given(networks6, st.sets(st.integers(0, 255)), st.none() | st.integers(0, 255))
def test_next_free_of_ipv6_equals_brute_force(network, offsets, cursor):
    base = int(network.network_address)
    taken = {base + offset for offset in offsets}
    at = base + cursor if cursor is not None else None
    first, last = ipam.automatic_span(network, network)
    assert ipam.next_free(first, last, at, taken_in(taken)) == brute(first, last, at, taken)


@given(st.integers(0, 2**64 - 2))
def test_a_full_64_is_no_dearer(offset):
    subnet = ip_network("fd00::/64")
    first, last = ipam.automatic_span(subnet, subnet)
    found = ipam.next_free(first, last, first + offset, taken_in({first + offset + 1}))
    assert found == (first + offset + 2 if first + offset + 2 <= last else first)


def test_unique_local_prefixes():
    drawn = {ipam.random_ula() for _number in range(64)}
    assert len(drawn) == 64
    for one in drawn:
        assert one.prefixlen == 64
        assert one.network_address in ip_network("fd00::/8")


def test_a_scoped_address_is_refused():
    with pytest.raises(Invalid, match="'fe80::1%eth0' names an interface"):
        ipam.parse_address("fe80::1%eth0", "host_ip")
