"""The nftables backend against the kernel, without the daemon: what is in the tables, and how it gets there."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nftlab import ADDRESSES, NETS, Lab, address, policy, port

from app.firewall import libnftables, nft_tables
from app.firewall.guards import GuardedFirewall
from app.firewall.libnftables import Libnftables
from app.firewall.nfnetlink import Nfnetlink
from app.firewall.nftables import NftablesFirewall
from app.model.errors import KernelRefused, StartupError
from app.model.ops import Op
from app.model.spec import Protocol
from app.model.state import NetworkPolicy, SourceGuard

GUARD = SourceGuard("g1", "v-red", "02:00:00:00:00:01", frozenset(map(ip_address, ["192.168.15.2", "fd15::2"])))
ITEMS = [
    policy(4, "web"),
    policy(6, "web", isolated=False, masquerade=False),
    policy(4, "db", snat_address=ip_address("203.0.113.3")),
    policy(6, "db", routed=False, icc=False),
    port(4, "red", 8000, count=5),
    port(4, "red", 8080, host="host", protocol=Protocol.UDP),
    port(6, "red", 8080, host="host", protocol=Protocol.SCTP),
    GUARD,
]
FOREIGN = """
table ip foreign { set bridgehead { type ipv4_addr; elements = { 192.0.2.1 }; }
  chain forward { type filter hook forward priority 0; ip saddr @bridgehead drop; }
}
table inet bridgehead { chain mine { tcp dport 1 drop; }
}
"""


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def firewall(sandbox):
    return GuardedFirewall(NftablesFirewall())


def ruleset(ns):
    """All that a namespace's nf_tables holds, without handles and in an order of its own."""

    def read():
        with Libnftables() as nft:
            return sorted(map(plain, nft.list("list ruleset")))

    def plain(entry):
        (kind, fields), *_none = entry.items()
        kept = {key: value for key, value in fields.items() if key not in {"handle", "elem"}}
        return f"{kind} {fields.get('chain', '')} {kept} {sorted(map(str, fields.get('elem', [])))}"

    return ns.run(read)


def generation(ns):
    def ask():
        kernel = Nfnetlink()
        try:
            return kernel.generation()
        finally:
            kernel.close()

    return ns.run(ask)


def nft(ns, *commands):
    ns.exec(["nft", "-f", "-"], stdin="\n".join(commands) + "\n")


def make(ns, firewall, items):
    return ns.run(lambda: firewall.apply([Op(None, item) for item in items]))


def clear(ns, firewall, items):
    return ns.run(lambda: firewall.apply([Op(item, None) for item in reversed(items)]))


def test_everything_removed_leaves_nothing(sandbox, firewall):
    before = ruleset(sandbox.host)
    commands = make(sandbox.host, firewall, ITEMS)
    assert "nft add element ip bridgehead ports { udp . 203.0.113.2 . 8080 : 192.168.15.2 . 80 }" in commands
    clear(sandbox.host, firewall, ITEMS)
    assert ruleset(sandbox.host) == before == []


def test_what_is_typed_makes_the_same(sandbox, firewall):
    commands = make(sandbox.host, firewall, ITEMS)
    nft(sandbox.client, *(command.removeprefix("nft ") for command in commands))
    assert ruleset(sandbox.client) == ruleset(sandbox.host)


def test_a_restart_changes_nothing(sandbox, firewall):
    make(sandbox.host, firewall, ITEMS)
    before = generation(sandbox.host)
    again = GuardedFirewall(NftablesFirewall())
    assert sandbox.host.run(lambda: again.sync(ITEMS)) == []
    assert generation(sandbox.host) == before
    make(sandbox.host, again, [port(4, "red", 9000)])
    assert generation(sandbox.host) == before + 1


def test_nothing_wanted_and_nothing_there_loads_and_makes_nothing(sandbox, firewall, monkeypatch):
    monkeypatch.setattr(nft_tables, "Libnftables", None)
    before = generation(sandbox.host)
    assert sandbox.host.run(lambda: firewall.sync([])) == []
    assert generation(sandbox.host) == before


def test_leftovers_go(sandbox, firewall):
    make(sandbox.host, firewall, ITEMS)
    found = sandbox.host.run(lambda: GuardedFirewall(NftablesFirewall()).sync([]))
    assert [line.split(":")[0] for line in found] == [
        f"nftables table {family} bridgehead was left over" for family in ("bridge", "ip", "ip6")
    ]
    assert ruleset(sandbox.host) == []


def test_require_leaves_nothing(sandbox):
    sandbox.client.run(NftablesFirewall.require)
    assert ruleset(sandbox.client) == []


@pytest.mark.parametrize("others", [0, 1000])
def test_mappings_are_one_message_and_one_transaction_at_any_size(sandbox, firewall, monkeypatch, figure, others):
    make(sandbox.host, firewall, [policy(4, "web"), *(port(4, "red", 1 + number) for number in range(others))])
    sends, change = [], Nfnetlink.change
    monkeypatch.setattr(Nfnetlink, "change", lambda *given: (sends.append(given[1]), change(*given)))
    monkeypatch.setattr(Nfnetlink, "_ask", None)
    monkeypatch.setattr(Libnftables, "_run", None)
    for count in (1, 100):
        before = [port(4, "red", 20_000 + number) for number in range(count)]
        after = [port(4, "blue", 20_000 + number) for number in range(count)]
        for step in (
            [Op(None, one) for one in before],
            list(map(Op, before, after)),
            [Op(one, None) for one in after],
        ):
            sends.clear()
            assert len(sandbox.host.run(lambda step=step: firewall.apply(step))) <= 2
            figure(f"{others} others, {count} at once: {len(sends)} transactions, {len(sends[0])} messages in it")
            assert len(sends) == 1
            assert len(sends[0]) <= 2


def test_a_network_is_one_transaction_of_few_elements(sandbox, firewall, monkeypatch):
    make(sandbox.host, firewall, [policy(4, "web"), *(port(4, "red", 1 + number) for number in range(1000))])
    runs, run = [], Libnftables.run
    monkeypatch.setattr(Libnftables, "run", lambda self, text: (runs.append(text), run(self, text)))
    monkeypatch.setattr(Libnftables, "list", None)
    network = NetworkPolicy("id-new", "new", ip_network("10.9.0.0/24"), True, True, True)
    make(sandbox.host, firewall, [network])
    (text,) = runs
    assert text.count("add element") == len(text.splitlines()) == 5


MAPPINGS = [
    port(version, "red", number, host=host, protocol=protocol, count=count)
    for version in (4, 6)
    for protocol in Protocol
    for number, host, count in ((1, "any", 1), (80, "host", 3), (256, "loop", 1), (65535, "any", 1))
]


def test_what_is_packed_is_what_the_library_makes(sandbox, firewall, monkeypatch):
    networks = [policy(version, "web") for version in (4, 6)]
    commands = make(sandbox.host, firewall, networks)
    assert sandbox.host.run(lambda: firewall.sync([*networks, MAPPINGS[0], MAPPINGS[-1]]))
    moved = [replace(one, target_ip=one.target_ip + 1, target_port=0x1234) for one in MAPPINGS]
    with monkeypatch.context() as patch:
        patch.setattr(Libnftables, "_run", None)
        clear(sandbox.host, firewall, [MAPPINGS[0], MAPPINGS[-1]])
        commands += make(sandbox.host, firewall, MAPPINGS)
        commands += sandbox.host.run(lambda: firewall.apply(list(map(Op, MAPPINGS[::2], moved[::2]))))
        commands += clear(sandbox.host, firewall, [*moved[:6:2], *MAPPINGS[1:8:2]])
    left = [*networks, *moved[6::2], *MAPPINGS[9::2]]
    nft(sandbox.client, *(command.removeprefix("nft ") for command in commands))
    assert ruleset(sandbox.client) == ruleset(sandbox.host)
    assert sandbox.host.run(lambda: firewall.sync(left)) == []


def test_more_than_one_message_holds(sandbox, firewall):
    many = [policy(4, "web"), port(4, "red", 1000, count=2000)]
    make(sandbox.host, firewall, many[:1])
    make(sandbox.host, firewall, many[1:])
    assert sandbox.host.run(lambda: firewall.sync(many)) == []


@pytest.mark.parametrize(
    ("interference", "transactions"),
    [
        ("add table ip somebody", 1),
        # the kernel refuses ours; what is there is looked at, and mended as one more
        ("add element ip bridgehead ports_anywhere { tcp . 9000 : 10.0.0.2 . 1 }", 1),
        ("add rule ip bridgehead forward drop", 1),
        ("delete table ip bridgehead", 1),
    ],
)
def test_ports_are_published_beside_somebody_else(sandbox, firewall, interference, transactions):
    items = [policy(4, "web"), port(4, "red", 8000)]
    make(sandbox.host, firewall, items)
    nft(sandbox.host, interference)
    before = generation(sandbox.host)
    more = port(4, "blue", 9000)
    make(sandbox.host, firewall, [more])
    assert generation(sandbox.host) == before + transactions
    assert sandbox.host.run(lambda: firewall.sync([*items, more])) == []
    make(sandbox.host, firewall, [port(4, "blue", 9001)])
    assert generation(sandbox.host) == before + transactions + 1


DAMAGE = {
    "element gone": ["delete element ip bridgehead networks { web }"],
    "element more": ["add element ip bridgehead ports { tcp . 10.0.0.1 . 1 : 10.0.0.2 . 1 }"],
    "element changed": [
        "delete element ip bridgehead ports_anywhere { tcp . 8000 }",
        "add element ip bridgehead ports_anywhere { tcp . 8000 : 10.0.0.2 . 1 }",
    ],
    "verdict changed": [
        'delete element ip6 bridgehead neighbours { "db" . "db" : drop }',
        'add element ip6 bridgehead neighbours { "db" . "db" : accept }',
    ],
    "subnet more": ["add element ip bridgehead masqueraded { 172.16.0.0/12 . 0.0.0.0/0 }"],
    "range more": ["add element ip bridgehead masqueraded { 172.16.0.1-172.16.0.6 . 0.0.0.0/0 }"],
    "element with a comment": [
        "delete element ip bridgehead ports_anywhere { tcp . 8000 }",
        'add element ip bridgehead ports_anywhere { tcp . 8000 comment "x" : 192.168.15.2 . 80 }',
        'add element ip bridgehead networks { "lan" comment "mine" }',
    ],
    "set flushed": ["flush set bridge bridgehead targets"],
    "rule more": ["insert rule ip bridgehead forward accept"],
    "rules gone": ["flush chain ip6 bridgehead into"],
    "table flushed": ["flush table ip bridgehead"],
    "chain more": ["add chain ip bridgehead mine", "add rule ip bridgehead mine drop"],
    "base chain more": ["add chain ip bridgehead mine { type filter hook input priority 0; policy accept; }"],
    "policy changed": ["add chain ip bridgehead forward { type filter hook forward priority -1; policy drop; }"],
    "set more": ["add set ip bridgehead mine { type ipv4_addr; }"],
    "table gone": ["delete table ip6 bridgehead"],
    "everything gone": ["flush ruleset"],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_sync_repairs(sandbox, firewall, damage):
    make(sandbox.host, firewall, ITEMS)
    before = ruleset(sandbox.host)
    nft(sandbox.host, *DAMAGE[damage])
    assert ruleset(sandbox.host) != before
    found = sandbox.host.run(lambda: firewall.sync(ITEMS))
    assert found
    assert all(line.startswith("nftables table ") for line in found), found
    assert ruleset(sandbox.host) == before
    assert sandbox.host.run(lambda: firewall.sync(ITEMS)) == []


@pytest.mark.parametrize(
    "damage", ["rule more", "rules gone", "table flushed", "table gone", "everything gone", "element gone"]
)
def test_apply_survives_somebody_else(sandbox, firewall, damage):
    traffic = [item for item in ITEMS if item is not GUARD]
    make(sandbox.host, firewall, traffic)
    more = [port(4, "blue", 9000), port(6, "blue", 9000), policy(4, "web", icc=False)]
    ops = [Op(ITEMS[0], more[2]), Op(None, more[0]), Op(None, more[1])]
    sandbox.host.run(lambda: firewall.apply(ops))
    wanted = ruleset(sandbox.host)
    sandbox.host.run(lambda: firewall.apply([op.inverse for op in ops]))
    nft(sandbox.host, *DAMAGE[damage])
    sandbox.host.run(lambda: firewall.apply(ops))
    if damage == "element gone":  # seen by sync only: apply reads no elements
        assert sandbox.host.run(lambda: firewall.sync([*traffic[1:], *more])) != []
    assert ruleset(sandbox.host) == wanted


def test_a_foreign_table_is_never_touched(sandbox, firewall):
    nft(sandbox.host, FOREIGN)
    before = ruleset(sandbox.host)
    make(sandbox.host, firewall, ITEMS)
    assert sandbox.host.run(lambda: firewall.sync(ITEMS)) == []
    nft(sandbox.host, "delete table ip bridgehead")
    sandbox.host.run(lambda: firewall.sync(ITEMS))
    assert set(before) <= set(ruleset(sandbox.host))
    sandbox.host.run(lambda: firewall.sync([]))
    assert ruleset(sandbox.host) == before


def test_refused_means_nothing_done(sandbox, firewall):
    make(sandbox.host, firewall, ITEMS)
    before = ruleset(sandbox.host)
    impossible = NetworkPolicy("bad", "a-name-far-too-long-for-linux", ip_network("10.8.0.0/24"), True, True, True)
    guard = SourceGuard("g2", "v-blue", "02:00:00:00:00:02", frozenset({ip_address("192.168.15.3")}))
    ops = [Op(GUARD, None), Op(None, guard), Op(None, port(4, "blue", 9000)), Op(None, impossible)]
    with pytest.raises(KernelRefused):
        sandbox.host.run(lambda: firewall.apply(ops))
    assert ruleset(sandbox.host) == before
    assert sandbox.host.run(lambda: firewall.sync(ITEMS)) == []


POLICIES = st.builds(
    lambda version, name, options: policy(version, name, **options),
    st.sampled_from([4, 6]),
    st.sampled_from(sorted(NETS[4])),
    st.fixed_dictionaries({name: st.booleans() for name in ("routed", "isolated", "masquerade", "icc")}),
)
FORWARDS = st.builds(
    lambda version, endpoint, number, host, protocol, count: port(
        version, endpoint, number, host=host, protocol=protocol, count=count
    ),
    st.sampled_from([4, 6]),
    st.sampled_from(["red", "blue"]),
    st.sampled_from([1000, 2000]),
    st.sampled_from(["any", "host"]),
    st.sampled_from(Protocol),
    st.integers(1, 3),
)
GUARDS = st.builds(
    SourceGuard,
    st.sampled_from(["g1", "g2"]),
    st.sampled_from(["v-red", "v-blue"]),
    st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02"]),
    st.frozensets(st.sampled_from([ip_address(ADDRESSES[4]["host"]), ip_address("fd15::2"), ip_address("fd15::3")])),
)
STATES = st.lists(st.one_of(POLICIES, FORWARDS, GUARDS), max_size=8).map(lambda items: {one.key: one for one in items})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=st.lists(STATES, min_size=1, max_size=5))
def test_any_changes_equal_a_fresh_sync(sandbox, states):
    host, fresh = GuardedFirewall(NftablesFirewall()), GuardedFirewall(NftablesFirewall())
    there = {}
    for wanted in states:
        keys = dict.fromkeys([*there, *wanted])
        ops = [Op(there.get(key), wanted.get(key)) for key in keys if there.get(key) != wanted.get(key)]
        sandbox.host.run(lambda ops=ops: host.apply(ops))
        there = wanted
    sandbox.client.run(lambda: fresh.sync(there.values()))
    assert ruleset(sandbox.host) == ruleset(sandbox.client)
    assert sandbox.host.run(lambda: host.sync(there.values())) == []
    for ns, firewall in ((sandbox.host, host), (sandbox.client, fresh)):
        clear(ns, firewall, list(there.values()))
        assert ruleset(ns) == []


@pytest.mark.parametrize("ipv6", [True])
@pytest.mark.parametrize("bridge_nf", [False, True])
@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_outlives_a_replaced_table(sandbox, version):
    lab = Lab(sandbox, NftablesFirewall())
    items = [policy(version, "web"), port(version, "red")]
    lab.want(*items)
    with lab.ns["red"].tcp_server(80, address(version, "any")):
        connection = sandbox.client.connect(address(version, "host"), 8080)
        with connection:
            assert connection.recv(100) == b"red\n"
            family = "ip" if version == 4 else "ip6"
            nft(sandbox.host, f"add chain {family} bridgehead mine")
            assert sandbox.host.run(lambda: lab.firewall.sync(items))
            connection.sendall(b"still here")
            assert connection.recv(100) == b"still here"
    lab.want()


def test_a_missing_library_is_said(sandbox, firewall, monkeypatch):
    libnftables._library.cache_clear()
    monkeypatch.setattr(libnftables, "LIBRARY", "libnftables-that-is-not-there.so.1")
    try:
        with pytest.raises(StartupError, match=r"libnftables-that-is-not-there\.so\.1.*Debian"):
            sandbox.client.run(NftablesFirewall.require)
        with pytest.raises(KernelRefused, match="ELIBACC"):
            make(sandbox.host, firewall, [GUARD])
    finally:
        monkeypatch.undo()
    assert ruleset(sandbox.host) == []
