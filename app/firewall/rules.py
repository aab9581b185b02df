"""Policies and port forwards as iptables rules, as data. The one builder serves adding and removing.

The chains, in the IPv4 and in the IPv6 tables (docs/dataplane.md tells the packets' outcomes, row by row):

    raw     PREROUTING  -> BRIDGEHEAD-PREROUTING   127.0.0.0/8 from the wire dies before any DNAT; IPv4 only
    filter  FORWARD     -> BRIDGEHEAD-FORWARD      -> INVALID what conntrack knows no TCP connection for
                                                   -> CLOSED  networks that are not forwarded for
                                                   -> TO      into a network, by bridge -> TO-<hash>
                                                   -> FROM    out of a network: what TO let through
    nat     PREROUTING  -> BRIDGEHEAD-PREROUTING   not from closed networks, not to ::1; local destinations -> PORTS
            OUTPUT      -> BRIDGEHEAD-OUTPUT       local destinations -> PORTS, for local processes
            POSTROUTING -> BRIDGEHEAD-POSTROUTING  -> INWARD  hairpin and local traffic to a port
                                                   -> OUTWARD masquerade or SNAT

PORTS jumps to a bucket by protocol and range of host ports: thousands of mappings cost a packet hundreds
of rules at most, and few of them cost one or two.
An item stands on shared rules too: a rule is in the kernel while any item yields it. No item's rules
depend on where another's stand, but that those with `first` come before the others of their chain.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from app.model.naming import short_hash
from app.model.spec import Version
from app.model.state import NetworkPolicy, PortForward, TrafficItem

PREFIX = "BRIDGEHEAD-"
FORWARD, INVALID, CLOSED = PREFIX + "FORWARD", PREFIX + "INVALID", PREFIX + "CLOSED"
TO, FROM, PEERS, FENCE = PREFIX + "TO", PREFIX + "FROM", PREFIX + "PEERS", PREFIX + "FENCE"
PREROUTING, OUTPUT, PORTS = PREFIX + "PREROUTING", PREFIX + "OUTPUT", PREFIX + "PORTS"
POSTROUTING, INWARD, OUTWARD = PREFIX + "POSTROUTING", PREFIX + "INWARD", PREFIX + "OUTWARD"
BUCKET = 64
"""Host ports that share a chain, from a multiple of this on."""


class Table(NamedTuple):
    """A table of one IP version."""

    version: Version
    name: str

    @property
    def program(self) -> str:
        """What one would change it with."""
        return "iptables" if self.version == 4 else "ip6tables"

    @property
    def family(self) -> str:
        """As nftables calls its IP version."""
        return "ip" if self.version == 4 else "ip6"


TABLES = (Table(4, "raw"), Table(4, "filter"), Table(6, "filter"), Table(4, "nat"), Table(6, "nat"))
"""In the order in which rules are added: protection before what needs it."""

_LOOPBACK, _LOOPBACK6 = "127.0.0.0/8", "::1/128"
_MULTICAST: dict[Version, str] = {4: "224.0.0.0/4", 6: "ff00::/8"}
Options = tuple[tuple[str, str], ...]


class Rule(NamedTuple):
    """One rule, made by keywords. A leading `!` negates; `matches` and `options` are extensions with their options."""

    target: str
    in_interface: str = ""
    out_interface: str = ""
    source: str = ""
    destination: str = ""
    protocol: str = ""
    matches: tuple[tuple[str, Options], ...] = ()
    options: Options = ()

    def arguments(self) -> str:
        """The rule as iptables(8) takes it."""
        plain = {
            "-i": self.in_interface,
            "-o": self.out_interface,
            "-s": self.source,
            "-d": self.destination,
            "-p": self.protocol,
        }
        words = [_option(flag, value) for flag, value in plain.items() if value]
        for name, options in self.matches:
            words += [f"-m {name}", *(_option(f"--{key}", value) for key, value in options)]
        words += [f"-j {self.target}", *(f"--{key} {value}" for key, value in self.options)]
        return " ".join(words)


def _option(flag: str, value: str) -> str:
    return f"! {flag} {value[1:]}" if value.startswith("!") else f"{flag} {value}"


class Placed(NamedTuple):
    """A rule and where it stands. In a built-in chain it stands first: it is our one jump from there.

    first: it stands before the chain's rules that are not.
    """

    table: Table
    chain: str
    rule: Rule
    first: bool = False

    @property
    def leads(self) -> bool:
        """Whether it is put in front of what is in its chain."""
        return self.first or not self.chain.startswith(PREFIX)


def is_ordered(chain: str) -> bool:
    """Whether the rules of a chain of ours work in one order only, but for those that stand `first` in it."""
    return chain.startswith((f"{TO}-", FORWARD, POSTROUTING))


def is_bucket(chain: str) -> bool:
    """Whether a chain holds the published ports of one bucket."""
    return chain.startswith(f"{PORTS}-")


def rules_of(item: TrafficItem) -> tuple[Placed, ...]:
    """An item's own rules, then those that it shares."""
    return (*own_rules(item), *shared_rules(item))


def own_rules(item: TrafficItem) -> tuple[Placed, ...]:
    """The rules that come and go with this item alone."""
    if isinstance(item, NetworkPolicy):
        return _routed(item) if item.routed else _closed(item)
    return (Placed(Table(item.host_ip.version, "nat"), _port_chain(item), _dnat(item)),)


def shared_rules(item: TrafficItem) -> tuple[Placed, ...]:
    """What the item stands on: jumps from one chain to another, and the guard of the host's loopback."""
    if isinstance(item, NetworkPolicy):
        version = item.subnet.version
        return _policy_base(version) if item.routed else (*_policy_base(version), _prerouting_jump(version))
    return (*_bucket_jump(item), *_port_base(item.host_ip.version))


def _state(states: str) -> tuple[str, Options]:
    return ("conntrack", (("ctstate", states),))


_LOCAL_DESTINATION = ("addrtype", (("dst-type", "LOCAL"),))
_LOCAL_SOURCE = ("addrtype", (("src-type", "LOCAL"),))


@cache
def _policy_base(version: Version) -> tuple[Placed, ...]:
    raw, filtering, nat = (Table(version, name) for name in ("raw", "filter", "nat"))
    guard = (
        Placed(raw, PREROUTING, Rule(in_interface="!lo", destination=_LOOPBACK, target="DROP")),
        Placed(raw, "PREROUTING", Rule(target=PREROUTING)),
    )
    return (
        *(guard if version == 4 else ()),
        Placed(filtering, FORWARD, Rule(protocol="tcp", matches=(_state("INVALID"),), target=INVALID)),
        Placed(filtering, FORWARD, Rule(target=CLOSED)),
        Placed(filtering, FORWARD, Rule(target=TO)),
        Placed(filtering, FORWARD, Rule(target=FROM)),
        Placed(filtering, "FORWARD", Rule(target=FORWARD)),
        Placed(nat, POSTROUTING, Rule(target=INWARD)),
        Placed(nat, POSTROUTING, Rule(destination=_MULTICAST[version], target="RETURN")),
        Placed(nat, POSTROUTING, Rule(target=OUTWARD)),
        Placed(nat, "POSTROUTING", Rule(target=POSTROUTING)),
    )


@cache
def _port_base(version: Version) -> tuple[Placed, ...]:
    nat, local = Table(version, "nat"), Rule(matches=(_LOCAL_DESTINATION,), target=PORTS)
    # the kernel drops ::1 from the wire, but where br_netfilter is at work it is asked after DNAT only
    from_wire = Placed(nat, PREROUTING, Rule(destination=_LOOPBACK6, target="RETURN"), first=True)
    return (
        *((from_wire,) if version == 6 else ()),
        Placed(nat, PREROUTING, local),
        _prerouting_jump(version),
        Placed(nat, OUTPUT, local),
        Placed(nat, "OUTPUT", Rule(target=OUTPUT)),
    )


@cache
def _prerouting_jump(version: Version) -> Placed:
    return Placed(Table(version, "nat"), "PREROUTING", Rule(target=PREROUTING))


def _invalid(policy: NetworkPolicy) -> tuple[Placed, ...]:
    """Else an endpoint resets its peer for a segment that conntrack took for a stray (row 11)."""
    table, subnet = Table(policy.subnet.version, "filter"), str(policy.subnet)
    # of what is answered past the host, by a namespace that is on both networks, conntrack sees one half only
    halves = (Rule(source=str(one), destination=subnet, target="RETURN") for one in sorted(policy.beside, key=str))
    return (
        *(Placed(table, INVALID, rule, first=True) for rule in halves if policy.routed),
        Placed(table, INVALID, Rule(in_interface=policy.bridge, target="DROP")),
        Placed(table, INVALID, Rule(out_interface=policy.bridge, target="DROP")),
    )


def _neighbours(policy: NetworkPolicy) -> Rule:
    """What is bridged, where br_netfilter shows it, or goes by way of the gateway (row 1)."""
    bridge = policy.bridge
    return Rule(in_interface=bridge, out_interface=bridge, target="ACCEPT" if policy.icc else "DROP")


def _closed(policy: NetworkPolicy) -> tuple[Placed, ...]:
    """An internal or pure L2 network: neighbours reach one another and nothing is forwarded (row 12)."""
    bridge, version = policy.bridge, policy.subnet.version
    filtering = Table(version, "filter")
    return (
        *_invalid(policy),
        Placed(filtering, CLOSED, _neighbours(policy), first=True),
        Placed(filtering, CLOSED, Rule(in_interface=bridge, target="DROP")),
        Placed(filtering, CLOSED, Rule(out_interface=bridge, target="DROP")),
        Placed(filtering, PEERS, Rule(in_interface=bridge, target="DROP")),
        Placed(Table(version, "nat"), PREROUTING, Rule(in_interface=bridge, target="RETURN"), first=True),
    )


def _routed(policy: NetworkPolicy) -> tuple[Placed, ...]:
    bridge, version = policy.bridge, policy.subnet.version
    filtering, nat = Table(version, "filter"), Table(version, "nat")
    verdict = "DROP" if policy.isolated else "ACCEPT"
    return (
        *_invalid(policy),
        *(Placed(filtering, into_chain(policy), rule) for rule in _into(policy)),
        Placed(filtering, TO, Rule(out_interface=bridge, target=into_chain(policy))),
        Placed(filtering, FROM, Rule(in_interface=bridge, target="ACCEPT")),
        Placed(filtering, PEERS, Rule(in_interface=bridge, target=verdict)),
        Placed(filtering, FENCE, Rule(in_interface=bridge, target="DROP")),
        *(Placed(nat, INWARD, rule, first=True) for rule in _inward(policy)),
        Placed(nat, INWARD, Rule(out_interface=bridge, target="ACCEPT")),
        *(Placed(nat, OUTWARD, rule) for rule in _outward(policy)),
    )


def into_chain(policy: NetworkPolicy) -> str:
    """The chain for packets that leave towards a network's bridge."""
    return f"{TO}-{short_hash(policy.owner)}"


def _into(policy: NetworkPolicy) -> tuple[Rule, ...]:
    """Neighbours, answers and published ports pass; then isolation decides (4), then routing (7)."""
    return (
        _neighbours(policy),
        Rule(matches=(_state("RELATED,ESTABLISHED"),), target="ACCEPT"),
        Rule(matches=(_state("DNAT"),), target="ACCEPT"),
        Rule(target=FENCE if policy.isolated else PEERS),
        Rule(target="DROP" if policy.masquerade else "ACCEPT"),
    )


def _inward(policy: NetworkPolicy) -> tuple[Rule, ...]:
    """To a published port, from where the target is itself or from the host: answers must return this way."""
    bridge, dnat = policy.bridge, _state("DNAT")
    near = (policy.subnet, *sorted(policy.beside, key=str))
    return (
        *(Rule(out_interface=bridge, source=str(one), matches=(dnat,), target="MASQUERADE") for one in near),
        Rule(out_interface=bridge, matches=(_LOCAL_SOURCE, dnat), target="MASQUERADE"),
    )


def _outward(policy: NetworkPolicy) -> tuple[Rule, ...]:
    if not policy.masquerade:
        return ()
    subnet, address = str(policy.subnet), policy.snat_address
    target, options = ("SNAT", (("to-source", str(address)),)) if address else ("MASQUERADE", ())
    return (Rule(source=subnet, destination=f"!{subnet}", target=target, options=options),)


def _port_chain(forward: PortForward) -> str:
    """The bucket of its host ports, or PORTS itself for a range that no one bucket holds."""
    first, last = forward.host_port // BUCKET, (forward.host_port + forward.count - 1) // BUCKET
    return f"{PORTS}-{forward.protocol.upper()}-{first * BUCKET}" if first == last else PORTS


def _bucket_jump(forward: PortForward) -> tuple[Placed, ...]:
    chain, base = _port_chain(forward), forward.host_port // BUCKET * BUCKET
    if chain == PORTS:
        return ()
    protocol = str(forward.protocol)
    jump = Rule(protocol=protocol, matches=(_host_ports(protocol, base, BUCKET),), target=chain)
    return (Placed(Table(forward.host_ip.version, "nat"), PORTS, jump),)


def _host_ports(protocol: str, first: int, count: int) -> tuple[str, Options]:
    return (protocol, (("dport", str(first) if count == 1 else f"{first}:{first + count - 1}"),))


def _dnat(forward: PortForward) -> Rule:
    protocol = str(forward.protocol)
    anywhere = int(forward.host_ip) == 0
    return Rule(
        destination="" if anywhere else str(forward.host_ip),
        protocol=protocol,
        matches=(_host_ports(protocol, forward.host_port, forward.count),),
        target="DNAT",
        options=(("to-destination", _target(forward)),),
    )


def _target(forward: PortForward) -> str:
    """The target as DNAT takes it: a range that keeps its numbers needs none, another is shifted 1:1."""
    address, first, last = forward.target_ip, forward.target_port, forward.target_port + forward.count - 1
    host = f"[{address}]" if address.version == 6 else str(address)
    if forward.count == 1:
        return f"{host}:{first}"
    return str(address) if first == forward.host_port else f"{host}:{first}-{last}/{forward.host_port}"
