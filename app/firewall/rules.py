"""Policies and port forwards as iptables rules, as data. The one builder serves adding and removing.

The chains (docs/dataplane.md tells the packets' outcomes, row by row):

    raw     PREROUTING  -> BRIDGEHEAD-PREROUTING   127.0.0.0/8 from the wire dies before any DNAT
    filter  FORWARD     -> BRIDGEHEAD-FORWARD      -> CLOSED  networks that are not forwarded for
                                                   -> TO      into a network, by bridge -> TO-<hash>
                                                   -> FROM    out of a network: what TO let through
    nat     PREROUTING  -> BRIDGEHEAD-PREROUTING   local destinations -> PORTS, DNAT
            OUTPUT      -> BRIDGEHEAD-OUTPUT       the same for local processes
            POSTROUTING -> BRIDGEHEAD-POSTROUTING  -> INWARD  hairpin and local traffic to a port
                                                   -> OUTWARD masquerade
Rules of one item stand together, and no item's rules depend on where another's stand.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.model.naming import short_hash
from app.model.state import NetworkPolicy, PortForward, TrafficItem

PREFIX = "BRIDGEHEAD-"
FORWARD, CLOSED, TO, FROM = PREFIX + "FORWARD", PREFIX + "CLOSED", PREFIX + "TO", PREFIX + "FROM"
PEERS, FENCE = PREFIX + "PEERS", PREFIX + "FENCE"
PREROUTING, OUTPUT, PORTS = PREFIX + "PREROUTING", PREFIX + "OUTPUT", PREFIX + "PORTS"
POSTROUTING, INWARD, OUTWARD = PREFIX + "POSTROUTING", PREFIX + "INWARD", PREFIX + "OUTWARD"
TABLES = ("raw", "filter", "nat")
"""In the order in which rules are added: protection before what needs it."""

_LOOPBACK = "127.0.0.0/8"
_MULTICAST = "224.0.0.0/4"
Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. A leading `!` negates; `matches` and `options` are extensions with their options."""

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


@dataclass(frozen=True, slots=True)
class Placed:
    """A rule and where it stands. In a built-in chain it stands first: it is our one jump from there."""

    table: str
    chain: str
    rule: Rule


def _state(states: str) -> tuple[str, Options]:
    return ("conntrack", (("ctstate", states),))


_LOCAL_DESTINATION = ("addrtype", (("dst-type", "LOCAL"),))
_LOCAL_SOURCE = ("addrtype", (("src-type", "LOCAL"),))


def policy_base() -> tuple[Placed, ...]:
    """What stands as long as there is any network."""
    return (
        Placed("raw", PREROUTING, Rule(in_interface="!lo", destination=_LOOPBACK, target="DROP")),
        Placed("raw", "PREROUTING", Rule(target=PREROUTING)),
        Placed("filter", FORWARD, Rule(target=CLOSED)),
        Placed("filter", FORWARD, Rule(target=TO)),
        Placed("filter", FORWARD, Rule(target=FROM)),
        Placed("filter", "FORWARD", Rule(target=FORWARD)),
        Placed("nat", POSTROUTING, Rule(target=INWARD)),
        Placed("nat", POSTROUTING, Rule(destination=_MULTICAST, target="RETURN")),
        Placed("nat", POSTROUTING, Rule(target=OUTWARD)),
        Placed("nat", "POSTROUTING", Rule(target=POSTROUTING)),
    )


def port_base() -> tuple[Placed, ...]:
    """What stands as long as any port is published."""
    local = Rule(matches=(_LOCAL_DESTINATION,), target=PORTS)
    return (
        Placed("nat", PREROUTING, local),
        Placed("nat", "PREROUTING", Rule(target=PREROUTING)),
        Placed("nat", OUTPUT, local),
        Placed("nat", "OUTPUT", Rule(target=OUTPUT)),
    )


def rules_of(item: TrafficItem) -> tuple[Placed, ...]:
    """An item's own rules."""
    return _policy(item) if isinstance(item, NetworkPolicy) else _forward(item)


def _policy(policy: NetworkPolicy) -> tuple[Placed, ...]:
    return _routed(policy) if policy.routed else _closed(policy)


def _closed(policy: NetworkPolicy) -> tuple[Placed, ...]:
    """An internal or pure L2 network: neighbours reach one another and nothing is forwarded (row 12)."""
    bridge = policy.bridge
    rules = (
        Rule(in_interface=bridge, out_interface=bridge, target="ACCEPT"),
        Rule(in_interface=bridge, target="DROP"),
        Rule(out_interface=bridge, target="DROP"),
    )
    return (
        *(Placed("filter", CLOSED, rule) for rule in rules),
        Placed("filter", PEERS, Rule(in_interface=bridge, target="DROP")),
    )


def _routed(policy: NetworkPolicy) -> tuple[Placed, ...]:
    bridge = policy.bridge
    verdict = "DROP" if policy.isolated else "ACCEPT"
    return (
        *(Placed("filter", into_chain(policy), rule) for rule in _into(policy)),
        Placed("filter", TO, Rule(out_interface=bridge, target=into_chain(policy))),
        Placed("filter", FROM, Rule(in_interface=bridge, target="ACCEPT")),
        Placed("filter", PEERS, Rule(in_interface=bridge, target=verdict)),
        Placed("filter", FENCE, Rule(in_interface=bridge, target="DROP")),
        *(Placed("nat", INWARD, rule) for rule in _inward(policy)),
        *(Placed("nat", OUTWARD, rule) for rule in _outward(policy)),
    )


def into_chain(policy: NetworkPolicy) -> str:
    """The chain for packets that leave towards a network's bridge."""
    return f"{TO}-{short_hash(policy.owner)}"


def _into(policy: NetworkPolicy) -> tuple[Rule, ...]:
    """Neighbours, answers and published ports pass; then isolation decides (4), then routing (7)."""
    return (
        Rule(in_interface=policy.bridge, target="ACCEPT"),
        Rule(matches=(_state("RELATED,ESTABLISHED"),), target="ACCEPT"),
        Rule(matches=(_state("DNAT"),), target="ACCEPT"),
        Rule(target=FENCE if policy.isolated else PEERS),
        Rule(target="DROP" if policy.masquerade else "ACCEPT"),
    )


def _inward(policy: NetworkPolicy) -> tuple[Rule, ...]:
    """To a published port, from the target's own network or from the host: answers must return this way."""
    bridge, dnat = policy.bridge, _state("DNAT")
    return (
        Rule(out_interface=bridge, source=str(policy.subnet), matches=(dnat,), target="MASQUERADE"),
        Rule(out_interface=bridge, matches=(_LOCAL_SOURCE, dnat), target="MASQUERADE"),
        Rule(out_interface=bridge, target="ACCEPT"),
    )


def _outward(policy: NetworkPolicy) -> tuple[Rule, ...]:
    if not policy.masquerade:
        return ()
    subnet = str(policy.subnet)
    return (Rule(source=subnet, destination=f"!{subnet}", target="MASQUERADE"),)


def _forward(forward: PortForward) -> tuple[Placed, ...]:
    protocol = str(forward.protocol)
    anywhere = int(forward.host_ip) == 0
    rule = Rule(
        destination="" if anywhere else str(forward.host_ip),
        protocol=protocol,
        matches=((protocol, (("dport", str(forward.host_port)),)),),
        target="DNAT",
        options=(("to-destination", f"{forward.target_ip}:{forward.target_port}"),),
    )
    return (Placed("nat", PORTS, rule),)
