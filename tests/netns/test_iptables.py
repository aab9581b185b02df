"""The backend by itself against the kernel: what stands in the tables, for any history and after any damage."""

import re
import subprocess
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import iptc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.firewall import xtables
from app.firewall.iptables import IptablesFirewall
from app.firewall.rules import TABLES, Table, rules_of
from app.model.errors import KernelRefused, StartupError
from app.model.ops import Op
from app.model.spec import Protocol
from app.model.state import NetworkPolicy, PortForward, SourceGuard, state_of
from app.sandbox import Sandbox

PROGRAMS = {"iptables": "iptables-legacy", "ip6tables": "ip6tables-legacy"}
COUNTERS = re.compile(r" ?\[\d+:\d+\]")
BRIDGES = ("web", "bh-db", "ueb")  # the last one: `web` but for one bit
bounded = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

subnets = {(bridge, 4): ip_network(f"10.{number}.0.0/16") for number, bridge in enumerate(BRIDGES)}
subnets |= {(bridge, 6): ip_network(f"fd00:{number}::/64") for number, bridge in enumerate(BRIDGES)}
snat = {4: ip_address("203.0.113.2"), 6: ip_address("2001:db8::2")}


@st.composite
def policies(draw):
    bridge, version = draw(st.sampled_from(sorted(subnets)))
    flags = [draw(st.booleans()) for _ in range(4)]
    address = draw(st.sampled_from([None, snat[version]]))
    return NetworkPolicy(f"id-{bridge}", bridge, subnets[bridge, version], *flags, address)


@st.composite
def forwards(draw):
    number, (bridge, version) = draw(st.integers(0, 5)), draw(st.sampled_from(sorted(subnets)))
    host = {4: ["0.0.0.0", "203.0.113.2"], 6: ["::", "2001:db8::2", "::1"]}[version]
    return PortForward(
        f"id-port{number}",
        bridge,
        draw(st.sampled_from(Protocol)),
        ip_address(draw(st.sampled_from(host))),
        8000 + 16 * number,
        subnets[bridge, version][2],
        draw(st.sampled_from([80, 8000 + 16 * number])),
        draw(st.sampled_from([1, 1, 2, 100])),
    )


items = st.one_of(policies(), forwards())
states = st.lists(items, max_size=10).map(lambda made: state_of(*made))


@pytest.fixture(scope="module")
def place():
    with Sandbox(ipv6=True) as made:
        made.host.run(IptablesFirewall.require)  # a table that was loaded stays
        for program in PROGRAMS.values():  # foreign rules, before and behind ours
            for arguments in ("-A FORWARD -i other -j ACCEPT", "-t nat -N THEIRS", "-t nat -A OUTPUT -o x -j THEIRS"):
                made.host.exec([program, *arguments.split()])
        yield made.host


@pytest.fixture
def fresh(place):
    yield place
    place.run(lambda: IptablesFirewall().sync([]))


def saved(place, *, order=True):
    """The rules of both IP versions; without order, by chain as sets, but for the chains where it matters."""
    lines = []
    for program in PROGRAMS.values():
        for line in place.exec([f"{program}-save"]).stdout.splitlines():
            if not line.startswith("#"):
                lines.append(f"{program} {COUNTERS.sub('', line)}")
    return lines if order else canonical(lines)


def canonical(lines):
    chains, table = defaultdict(list), ""
    for line in lines:
        if " *" in line:
            table = line
        chains[table, line.split()[2] if " -A " in line else ""].append(line)
    return {
        key: rules if re.search(r"-TO-|-FORWARD|-POSTROUTING", key[1]) else sorted(rules)
        for key, rules in chains.items()
    }


def apply(place, firewall, before, after):
    keys = {*before, *after}
    ops = [Op(before.get(key), after.get(key)) for key in sorted(keys) if before.get(key) != after.get(key)]
    return place.run(lambda: firewall.apply(ops)) if ops else []


def sync(place, firewall, state):
    return place.run(lambda: firewall.sync(state.values()))


@bounded
@given(history=st.lists(states, min_size=1, max_size=5))
def test_any_history_of_changes_equals_a_fresh_start(place, history):
    firewall, before = IptablesFirewall(), {}
    sync(place, firewall, {})
    empty = saved(place)
    for after in history:
        apply(place, firewall, before, after)
        before = after
    changed = saved(place, order=False)
    assert sync(place, IptablesFirewall(), before) == []
    assert saved(place, order=False) == changed
    sync(place, IptablesFirewall(), {})
    sync(place, IptablesFirewall(), before)
    assert saved(place, order=False) == changed
    apply(place, firewall, before, {})
    assert saved(place) == empty


@bounded
@given(state=states, then=states, data=st.data())
def test_any_damage_is_repaired_and_what_is_not_ours_is_left(place, state, then, data):
    firewall = IptablesFirewall()
    sync(place, firewall, {})
    sync(place, firewall, state)
    right = saved(place, order=False)
    ours = [line for line in table_lines(saved(place)) if "BRIDGEHEAD" in line[2]]
    damages = data.draw(st.lists(st.sampled_from(ours), max_size=4)) if ours else []
    for line in damages:
        damage(place, *line, data.draw(st.sampled_from(["delete", "double", "front", "flush"])))
    damaged = saved(place, order=False) != right
    found = sync(place, firewall, state)
    assert found or not damaged
    assert saved(place, order=False) == right
    assert sync(place, firewall, state) == []
    apply(place, firewall, state, then)
    assert sync(place, IptablesFirewall(), then) == []
    sync(place, firewall, {})


def table_lines(lines):
    table = ""
    for line in lines:
        program, _, rest = line.partition(" ")
        if rest.startswith("*"):
            table = rest[1:]
        elif rest.startswith("-A"):
            yield program, table, rest


def damage(place, program, table, rule, how):
    chain = rule.split()[1]
    commands = {
        "delete": rule.replace("-A", "-D", 1),
        "double": rule,
        "front": f"-I {chain} 1 -s 192.0.2.1 -j DROP" if chain.startswith("BRIDGEHEAD") else rule,
        "flush": f"-F {chain}" if chain.startswith("BRIDGEHEAD") else rule,
    }
    with suppress(subprocess.CalledProcessError):  # a rule that is damaged twice may be gone
        place.exec([program, "-t", table, *commands[how].split()])


WEB = NetworkPolicy("id-web", "web", subnets["web", 4], True, True, True)
WEB6 = replace(WEB, subnet=subnets["web", 6])
PORT = PortForward("id-p", "web", Protocol.TCP, ip_address("0.0.0.0"), 8000, subnets["web", 4][2], 9000, 11)
PORT6 = replace(PORT, owner="id-p6", host_ip=ip_address("::"), target_ip=subnets["web", 6][2])
BOTH = state_of(WEB, WEB6, PORT, PORT6)


@pytest.mark.parametrize("protocol", Protocol)
def test_the_kernel_holds_what_the_commands_say(fresh, protocol):
    """Typed into iptables(8) in the same order, the commands make the same tables."""
    state = state_of(
        replace(WEB, icc=False, snat_address=snat[4]),
        replace(WEB6, snat_address=snat[6]),
        replace(WEB, owner="id-db", bridge="bh-db", subnet=subnets["bh-db", 4], routed=False),
        *(replace(port, protocol=protocol, owner=f"{port.owner}{count}", host_port=8000 + 200 * count, count=count)
          for port in (PORT, PORT6) for count in (1, 11, 100)),
        replace(PORT6, protocol=protocol, owner="id-same", host_ip=snat[6], host_port=9000),
    )  # fmt: skip
    firewall, empty = IptablesFirewall(), saved(fresh)
    made = apply(fresh, firewall, {}, state)
    ours = saved(fresh)
    removed = apply(fresh, firewall, state, {})
    assert saved(fresh) == empty
    typed(fresh, made)
    assert sync(fresh, IptablesFirewall(), state) == []
    assert canonical(saved(fresh)) == canonical(ours)
    typed(fresh, removed)
    assert saved(fresh) == empty


def typed(place, commands):
    for command in commands:
        program, *arguments = command.split()
        place.exec([PROGRAMS[program], *arguments])


@bounded
@given(forward=forwards(), port=st.integers(1, 65000))
def test_a_port_s_rules_are_packed_as_the_library_packs_them(fresh, forward, port):
    shown = ("buffer", "mask")
    for table, _chain, rule, *_rest in rules_of(replace(forward, host_port=port, target_port=port)):
        packed, wanted = (made(table.version, rule) for made in (xtables._entry, xtables._by_library))
        assert [bytes(getattr(packed, name)) for name in shown] == [bytes(getattr(wanted, name)) for name in shown]
        assert packed.match_mask == wanted.match_mask
        assert packed.match_bits & packed.match_mask == wanted.match_bits & wanted.match_mask


@pytest.mark.parametrize("port", [PORT, PORT6])
def test_the_library_is_not_asked_for_one_more_port(fresh, monkeypatch, port):
    """It takes a millisecond for a rule."""
    rules = [rules_of(replace(port, host_port=number, count=1)) for number in (9000, 9001, 9100)]
    for placed in rules[0]:
        xtables._entry(placed.table.version, placed.rule)
    monkeypatch.setattr(xtables, "_by_library", None)
    for placed in rules[1] + rules[2]:
        xtables._entry(placed.table.version, placed.rule)


def test_an_ipv6_name_is_compared_as_a_whole(fresh):
    """`ueb` differs from `web` in one bit of one byte."""
    sync(fresh, IptablesFirewall(), state_of(WEB6))
    buffer = bytes(xtables._entry(6, rules_of(WEB6)[0].rule).buffer)
    assert b"web\0".ljust(16, b"\0") + bytes(16) + b"\xff" * 4 in buffer


@pytest.mark.parametrize(("program", "port"), [("iptables", PORT), ("ip6tables", PORT6)])
@pytest.mark.parametrize("flushed", ["-F", "-F BRIDGEHEAD-PORTS", "-F PREROUTING", "-D OUTPUT 1"])
def test_a_port_is_published_though_its_shared_rules_are_gone(fresh, program, port, flushed):
    firewall = IptablesFirewall()
    apply(fresh, firewall, {}, BOTH)
    fresh.exec([PROGRAMS[program], "-t", "nat", *flushed.split()])
    second = replace(port, owner="id-second", host_port=8020, count=1)
    apply(fresh, firewall, {}, state_of(second))
    assert sync(fresh, IptablesFirewall(), BOTH | state_of(second)) == []


def test_a_refused_change_leaves_everything_as_it_was(fresh, monkeypatch):
    firewall = IptablesFirewall()
    apply(fresh, firewall, {}, state_of(WEB))
    before = saved(fresh, order=False)
    real = xtables.transaction

    def refusing(table, change):
        if table == TABLES[-1]:
            raise KernelRefused(1, "nat of IPv6")
        real(table, change)

    monkeypatch.setattr(xtables, "transaction", refusing)
    with pytest.raises(KernelRefused, match="nat of IPv6"):
        apply(fresh, firewall, state_of(WEB), BOTH)
    monkeypatch.undo()
    assert saved(fresh, order=False) == before
    apply(fresh, firewall, state_of(WEB), BOTH)
    assert sync(fresh, IptablesFirewall(), BOTH) == []


def test_what_somebody_changed_before_a_change_of_ours_is_still_seen(fresh):
    firewall = IptablesFirewall()
    sync(fresh, firewall, {})
    apply(fresh, firewall, {}, state_of(WEB))
    assert not fresh.run(lambda: firewall.changed(touched=False))
    fresh.exec([PROGRAMS["iptables"], "-D", "BRIDGEHEAD-FROM", "1"])
    apply(fresh, firewall, {}, state_of(PORT))
    assert fresh.run(lambda: firewall.changed(touched=False))


@pytest.mark.parametrize("others", [0, 1000])
def test_mappings_are_one_read_and_one_commit_at_any_size(fresh, monkeypatch, figure, others):
    def ports(first, count, target=80):
        made = (replace(PORT, owner=f"id-{first + n}", host_port=first + n, count=1) for n in range(count))
        return state_of(*(replace(one, target_port=target) for one in made))

    firewall, calls = IptablesFirewall(), Counter()
    apply(fresh, firewall, {}, BOTH | ports(20_000, others))
    for kind in (iptc.Table, iptc.Table6):
        for name in ("refresh", "commit", "append_entry", "insert_entry", "delete_entry"):
            real = getattr(kind, name)
            counted = lambda *given, name=name, real=real: calls.update([name]) or real(*given)  # noqa: E731
            monkeypatch.setattr(kind, name, counted)
    for count in (1, 100):
        made, moved = ports(100, count), ports(100, count, 81)
        for before, after in (({}, made), (made, moved), (moved, {})):
            calls.clear()
            apply(fresh, firewall, before, after)
            figure(f"{others} others, {count} at once: {dict(calls)}")
            assert (calls["refresh"], calls["commit"]) == (1, 1)
            # buckets come and go with a jump each
            assert calls["append_entry"] + calls["insert_entry"] + calls["delete_entry"] <= 2 * count + 2
    monkeypatch.undo()
    assert sync(fresh, IptablesFirewall(), BOTH | ports(20_000, others)) == []


def test_tables_that_nothing_needs_are_not_loaded():
    def names(version):
        return (place.run(lambda: open(f"/proc/thread-self/net/{version}_tables_names").read())).split()

    with Sandbox() as made:
        place, firewall = made.host, IptablesFirewall()
        sync(place, firewall, {})
        assert (names("ip"), names("ip6")) == ([], [])
        apply(place, firewall, {}, state_of(WEB))
        assert (sorted(names("ip")), names("ip6")) == (["filter", "nat", "raw"], [])
        apply(place, firewall, {}, state_of(WEB6))
        assert sorted(names("ip6")) == ["filter", "nat"]


def test_only_ipv4_tables_are_required(monkeypatch, caplog):
    def probe(table):
        if table.version in missing:
            raise KernelRefused(93, f"{table.program} -t {table.name} -S", f"load module {table.version}")

    monkeypatch.setattr(xtables, "probe", probe)
    missing = {6}
    IptablesFirewall.require()
    assert "networks with IPv6 will fail: load module 6" in caplog.text
    missing = {4}
    with pytest.raises(StartupError, match="load module 4, or start with --firewall none"):
        IptablesFirewall.require()


def test_a_table_that_the_kernel_has_not_is_named(fresh):
    with pytest.raises(KernelRefused, match=r"ip6tables -t none -S.*EPROTONOSUPPORT.*load ip6_tables"):
        fresh.run(lambda: xtables.probe(Table(6, "none")))


def test_a_source_guard_is_somebody_elses(fresh):
    guard = SourceGuard("id", "bhv0", "02:00:00:00:00:01", frozenset())
    with pytest.raises(TypeError):
        apply(fresh, IptablesFirewall(), {}, state_of(guard))
    assert sync(fresh, IptablesFirewall(), state_of(guard)) == []


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_rule_that_is_replaced_before_the_first_look_is_seen(fresh, program):
    """Its table is as large as before, and its chains begin where they did."""
    subnet = subnets["web", 4 if program == "iptables" else 6]
    firewall = IptablesFirewall()
    apply(fresh, firewall, {}, state_of(NetworkPolicy("id-web", "web", subnet, False, True, True)))
    fresh.exec([PROGRAMS[program], "-R", "FORWARD", "1", "-j", "BRIDGEHEAD-PEERS"])
    assert fresh.run(lambda: firewall.changed(touched=False))
    sync(fresh, firewall, state_of(NetworkPolicy("id-web", "web", subnet, False, True, True)))
    assert not fresh.run(lambda: firewall.changed(touched=False))
