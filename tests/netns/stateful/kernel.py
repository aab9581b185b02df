"""The kernel's side: what is there, as facts, read from the sandbox's host and its named namespaces."""

from collections import Counter
from functools import partial
from ipaddress import ip_address, ip_network

from stateful.facts import FORWARDING

from app.firewall.libnftables import Libnftables
from app.kernel import sysctl
from app.sandbox.rtnl import bound_sockets

FORWARDS = 3
"""The bridge port's STP state."""
_MARK = "bridgehead:"
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp"}
_UPLINK = {"lo", "eth0"}


def found(sandbox, firewall):
    """All facts."""
    host, names = sandbox.host, sandbox.netns_names()
    facts = _network_facts("", host)
    for name in names:
        facts |= _network_facts(name, sandbox.netns(name))
    facts |= host.run(partial(_settings, [one[2] for one in facts if one[:2] == ("link", "") and one[3] == "bridge"]))
    facts |= host.run(_bound)
    objects = host.run(_nftables)
    facts |= _elements(objects) | _standing(objects) if firewall == "nftables" else _guards(objects) | _legacy(host)
    return facts | _admins_rule(objects, host, firewall)


# --- links, addresses, routes


def _network_facts(place, ns):
    facts = set()
    with ns.rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        addresses, routes = list(rtnl.addresses()), list(rtnl.routes())
    names = {index: link.name for index, link in links.items()}
    skipped = _UPLINK if place == "" else {"lo"}
    for link in links.values():
        if link.name == "lo" and place:
            facts.add(("namespace", place, "marked" if _owner(link) != "-" else "not marked"))
        if link.name not in skipped:
            facts.add(_link(place, link, names))
    for index, address in addresses:
        if names[index] not in skipped and not address.is_link_local:
            facts.add(("address", place, names[index], str(address)))
    for route in routes:
        for via, oif in route.ways or ((route.via, route.oif),):
            name = names.get(oif, "?")
            linked = route.destination is not None and route.destination.is_link_local
            if name not in skipped and not linked:
                destination = f"default{route.version}" if route.destination is None else str(route.destination)
                facts.add(("route", place, destination, "-" if via is None else str(via), name))
    return facts


def _owner(link):
    alias = link.alias or ""
    return alias.removeprefix(_MARK) if alias.startswith(_MARK) else "-"


def _link(place, link, names):
    owner = _owner(link)
    # a bridge's MAC is fixed; the host's end of a veth has any
    mac = link.mac if owner != "-" and (place or link.kind == "bridge") else "-"
    master, port = "-", "-"
    if not place and link.master:
        master = names.get(link.master, "?")
        state = "forwarding" if link.port_state == FORWARDS else f"state {link.port_state}"
        port = f"{state} hairpin {link.hairpin} isolated {link.isolated} locked {link.locked}"
    up = "up" if link.up else "down"
    words = (f"mtu {link.mtu}", f"mac {mac}", f"master {master}", f"mark {owner}", port)
    return ("link", place, link.name, link.kind, up, *words)


def _settings(bridges):
    paths = [*FORWARDING.values(), *(f"net/ipv4/conf/{one}/route_localnet" for one in bridges if one != "admin0")]
    return {("setting", path, sysctl.read(path)) for path in paths}


def _bound():
    return {("bound", protocol, str(address), port) for protocol, address, port in bound_sockets()}


# --- rules


def _nftables():
    with Libnftables() as nft:
        return nft.list("list ruleset")


def _contents(objects, family):
    """Of our table of a family: the elements by set or map."""
    sets = [one.get("set") or one.get("map") for one in objects]
    own = [one for one in sets if one and (one["family"], one["table"]) == (family, "bridgehead")]
    return {one["name"]: [_words(element) for element in one.get("elem", ())] for one in own}


def _words(element):
    """An element as flat words: key, then value."""
    if isinstance(element, list):
        return tuple(word for part in element for word in _words(part))
    if isinstance(element, dict):
        ((kind, value),) = element.items()
        if kind in ("concat", "elem", "set"):
            return _words(value)
        if kind == "prefix":
            return (f"{value['addr']}/{value['len']}",)
        return (kind,) if value is None else _words(value)
    return (str(element),)


def _elements(objects):
    facts = _guards(objects)
    for version, family in ((4, "ip"), (6, "ip6")):
        held = _contents(objects, family)
        if not held:
            continue
        closed, icc = {one for (one,) in held["closed"]}, {one[0]: one[2] for one in held["neighbours"]}
        for (bridge,) in held["networks"]:
            kind = "closed" if bridge in closed else "routed"
            facts.add(("policy", version, bridge, kind, f"icc {icc.pop(bridge) == 'accept'}"))
        assert not icc, icc
        facts |= {(kind, version, bridge) for kind in ("isolated", "open") for (bridge,) in held[kind]}
        facts |= {("outward", one[0], "masquerade") for one in held["masqueraded"]}
        facts |= {("outward", one[0], one[-1]) for one in held["snat_to"]}
        every = "0.0.0.0" if version == 4 else "::"
        for protocol, port, target, target_port in held["ports_anywhere"]:
            facts.add(("forward", _protocol(protocol), every, int(port), target, int(target_port)))
        for protocol, address, port, target, target_port in held["ports"]:
            facts.add(("forward", _protocol(protocol), address, int(port), target, int(target_port)))
    return facts


def _standing(objects):
    """How many rules each chain of ours holds."""
    versions = {"ip": 4, "ip6": 6}
    ours = [(kind, one[kind]) for one in objects for kind in ("chain", "rule") if kind in one]
    ours = [(kind, one) for kind, one in ours if one["family"] in versions and one["table"] == "bridgehead"]
    held = Counter({(one["family"], one["name"]): 0 for kind, one in ours if kind == "chain"})
    held.update((one["family"], one["chain"]) for kind, one in ours if kind == "rule")
    return {("rules", versions[family], "bridgehead", chain, number) for (family, chain), number in held.items()}


def _protocol(word):
    return _PROTOCOLS.get(word, word)


def _guards(objects):
    held = _contents(objects, "bridge")
    macs = dict(held.get("macs", ()))
    assert set(macs) == {one for (one,) in held.get("guarded", ())}
    addresses = [*held.get("addresses", ()), *held.get("addresses6", ())]
    return {
        ("guard", port, macs[port], address) for port, address in addresses if not ip_address(address).is_link_local
    }


def _admins_rule(objects, host, firewall):
    tables = {(one["table"]["family"], one["table"]["name"]) for one in objects if "table" in one}
    there = ("inet", "admin") in tables
    if firewall == "iptables":
        there = there and "-A FORWARD -s 10.99.0.0/16 -j DROP" in _saved(host, "iptables", "filter")
    return {("foreign", "rule")} if there else set()


# --- legacy iptables


def _saved(host, program, table):
    return host.exec([f"{program}-legacy-save", "-t", table]).stdout.splitlines()


def _legacy(host):
    facts = set()
    for version, program in ((4, "iptables"), (6, "ip6tables")):
        loaded = host.run(partial(_loaded, f"/proc/thread-self/net/{program.replace('tables', '_tables')}_names"))
        rules = {table: _rules(host, program, table) for table in ("raw", "filter", "nat") if table in loaded}
        for table, chains in rules.items():
            facts |= set(_skeleton(version, table, chains))
        facts |= _legacy_policies(version, rules.get("filter", {}))
        facts |= _legacy_nat(version, rules.get("nat", {}))
    return facts


def _loaded(path):
    try:
        with open(path) as names:
            return names.read().split()
    except FileNotFoundError:
        return []


def _rules(host, program, table):
    """Chain to its rules, each the option's name to its value; chains of ours, and jumps to them."""
    chains = {}
    for line in _saved(host, program, table):
        words = line.split()
        if words[0] == "-A" and any(word.startswith("BRIDGEHEAD-") for word in (words[1], words[-1])):
            rule, negated = {}, ""
            for flag, value in zip(words[2:], [*words[3:], ""], strict=True):
                if flag == "!":
                    negated = "!"
                elif flag.startswith("-") and not flag.startswith("-m"):
                    rule[flag], negated = negated + value, ""
            chain = words[1].removeprefix("BRIDGEHEAD-") if words[1].startswith("BRIDGEHEAD-") else f"@{words[1]}"
            chains.setdefault(chain, []).append(rule)
    return chains


def _skeleton(version, table, chains):
    """Jumps from built-in chains, and how many rules stand where they lead."""
    for chain in ("PREROUTING", "FORWARD", "OUTPUT", "POSTROUTING"):
        if any(one["-j"] == f"BRIDGEHEAD-{chain}" for one in chains.get(f"@{chain}", ())):
            yield ("jump", version, table, chain)
        if chain in chains:
            yield ("rules", version, table, f"BRIDGEHEAD-{chain}", len(chains[chain]))


def _legacy_policies(version, chains):
    facts = set()
    for rule in chains.get("TO", ()):
        bridge, into = rule["-o"], chains[rule["-j"].removeprefix("BRIDGEHEAD-")]
        neighbours, _answers, _published, others, outside = (one["-j"] for one in into)
        facts.add(("policy", version, bridge, "routed", f"icc {neighbours == 'ACCEPT'}"))
        facts |= {("isolated", version, bridge)} if others.endswith("FENCE") else set()
        facts |= {("open", version, bridge)} if outside == "ACCEPT" else set()
    for rule in chains.get("CLOSED", ()):
        if "-i" in rule and "-o" in rule:
            facts.add(("policy", version, rule["-i"], "closed", f"icc {rule['-j'] == 'ACCEPT'}"))
    return facts


def _legacy_nat(version, chains):
    facts = set()
    for rule in chains.get("OUTWARD", ()):
        facts.add(("outward", rule["-s"], rule.get("--to-source", "masquerade")))
    for chain, rules in chains.items():
        for rule in rules if chain.startswith("PORTS") else ():
            if rule["-j"] == "DNAT":
                facts |= set(_dnat(version, rule))
    return facts


def _dnat(version, rule):
    first, _colon, last = rule["--dport"].partition(":")
    target, port = rule["--to-destination"], int(first)
    address, bracket, rest = target.removeprefix("[").partition("]") if version == 6 else (*target.partition(":"),)
    rest = rest.removeprefix(":") if bracket else ""
    start = int(rest.partition("-")[0]) if rest else port
    every = "0.0.0.0" if version == 4 else "::"
    host_ip = str(ip_network(rule["-d"]).network_address) if "-d" in rule else every
    for offset in range(int(last or first) - port + 1):
        yield ("forward", rule["-p"], host_ip, port + offset, address, start + offset)
