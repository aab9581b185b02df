"""What somebody damages is put back within a moment, by the daemon alone; what is theirs stays as they left it."""

import time
from ipaddress import ip_interface
from pathlib import Path

import pytest
from world import endpoint, get, network, portmap

from app.reconcile.monitor import Monitor
from app.reconcile.watchlist import Watchlist
from app.sandbox import HOST, SERVER, eventually, snapshot

SOON = 2.0
"""Generous, for a busy machine: `make bench ARGS=healing` has the times."""


@pytest.fixture(params=["iptables", "nftables"])
def firewall(request):
    return request.param


@pytest.fixture
def ipv6():
    return True


@pytest.fixture
def forward_policy(firewall):
    # beside a policy of DROP in the legacy tables, nftables' accept would not be enough
    return "DROP" if firewall == "iptables" else "ACCEPT"


class Built:
    """Network web with red and blue, a way in to red; and what is somebody else's."""

    def __init__(self, sandbox, api, firewall):
        self.host, self.api, self.firewall = sandbox.host, api, firewall
        self.client, self.red = sandbox.client, None
        self.network = network(api, "web", subnet6="fd00:15::/64", spoof_protection=True, icc=True)
        self.red_endpoint = endpoint(api, "red")
        endpoint(api, "blue")
        portmap(api, "red", 8080, target_port=80)
        self.red = sandbox.netns("red")
        self.port = self.red_endpoint["host_ifname"]
        self._add_foreign()

    def _add_foreign(self):
        host = self.host
        host.exec(["ip", "address", "add", "10.77.0.1/24", "dev", "web"])
        host.exec(["ip", "route", "add", "10.78.0.0/24", "dev", "web"])
        host.exec(["ip", "route", "add", "10.79.0.0/24", "via", "10.77.0.9"])
        self.red.exec(["ip", "address", "add", "10.80.0.1/24", "dev", "eth0"])
        self.red.exec(["ip", "route", "add", "10.81.0.0/24", "via", "10.80.0.9"])
        if self.firewall == "iptables":
            host.exec(["iptables-legacy", "-A", "FORWARD", "-s", "10.99.0.0/16", "-j", "DROP"])
        host.exec(["nft", "add", "table", "inet", "admin"])
        host.exec(["nft", "add", "chain", "inet", "admin", "own"])

    def foreign(self):
        """Others' addresses, routes and rules, as they are now."""
        host = self.host
        found = [line for line in host.exec(["ip", "-4", "route"]).stdout.splitlines() if line.startswith("10.")]
        found += [str(one) for one in host.addresses().get("web", ()) if str(one).startswith("10.")]
        found += [str(one) for one in self.red.addresses().get("eth0", ()) if str(one).startswith("10.")]
        found += [line for line in self.red.exec(["ip", "-4", "route"]).stdout.splitlines() if line.startswith("10.8")]
        found += [line for line in host.exec(["nft", "list", "tables"]).stdout.splitlines() if "admin" in line]
        if self.firewall == "iptables":
            rules = host.exec(["iptables-legacy", "-S", "FORWARD"]).stdout.splitlines()
            found += [line for line in rules if "10.99" in line]
        return sorted(line.replace("linkdown", "").strip() for line in found)

    def works(self):
        with self.red.tcp_server(80):
            assert self.client.tcp(HOST, 8080, timeout=0.3) == b"red\n"
        assert self.red.ping(SERVER, timeout=0.3)
        return True

    def is_ready(self):
        return all(
            one["status"]["state"] == "ready"
            for path in ("networks", "endpoints", "portmaps")
            for one in get(self.api, path)
        )


@pytest.fixture
def built(sandbox, daemon, api, firewall, baseline):
    made = Built(sandbox, api, firewall)
    eventually(made.is_ready)
    yield made
    made.host.exec(["nft", "delete", "table", "inet", "admin"], check=False)
    if firewall == "iptables":
        made.host.exec(["iptables-legacy", "-D", "FORWARD", "-s", "10.99.0.0/16", "-j", "DROP"], check=False)


def _on_host(*command):
    return lambda built: built.host.exec([word.format(port=built.port) for word in command])


def _inside(*command):
    return lambda built: built.red.exec(list(command))


def _setting(path, value):
    return lambda built: built.host.write_sysctl(path, value)


SUBNET, SUBNET6 = "192.168.15.0/24", "fd00:15::/64"
DAMAGE = {
    "bridge down": _on_host("ip", "link", "set", "web", "down"),
    "bridge mtu": _on_host("ip", "link", "set", "web", "mtu", "1400"),
    "bridge mac": _on_host("ip", "link", "set", "web", "address", "02:00:00:00:99:99"),
    "address gone": _on_host("ip", "address", "del", "192.168.15.1/24", "dev", "web"),
    "IPv6 address gone": _on_host("ip", "address", "del", "fd00:15::1/64", "dev", "web"),
    "subnet route gone": _on_host("ip", "route", "del", SUBNET, "dev", "web"),
    "IPv6 subnet route gone": _on_host("ip", "-6", "route", "del", SUBNET6, "dev", "web"),
    "IPv6 off": _setting("net/ipv6/conf/web/disable_ipv6", 1),
    "port gone": _on_host("ip", "link", "del", "{port}"),
    "port down": _on_host("ip", "link", "set", "{port}", "down"),
    "port off its bridge": _on_host("ip", "link", "set", "{port}", "nomaster"),
    "port's hairpin": _on_host("bridge", "link", "set", "dev", "{port}", "hairpin", "off"),
    "port unlocked": _on_host("bridge", "link", "set", "dev", "{port}", "locked", "off"),
    "forwarding entry gone": lambda built: built.host.exec(
        ["bridge", "fdb", "del", built.red_endpoint["mac"], "dev", built.port, "master"]
    ),
    "inner link gone": _inside("ip", "link", "del", "eth0"),
    "inner link down": _inside("ip", "link", "set", "eth0", "down"),
    "inner link renamed": lambda built: built.red.exec(
        ["sh", "-c", "ip link set eth0 down && ip link set eth0 name other"]
    ),
    "inner address gone": lambda built: built.red.exec(
        ["ip", "address", "del", f"{built.red_endpoint['address']}/24", "dev", "eth0"]
    ),
    "inner subnet route gone": _inside("ip", "route", "del", SUBNET),
    "default route gone": _inside("ip", "route", "del", "default"),
    "IPv6 default route gone": _inside("ip", "-6", "route", "del", "default"),
    "forwarding off": _setting("net/ipv4/ip_forward", 0),
    "IPv6 forwarding off": _setting("net/ipv6/conf/all/forwarding", 0),
    "route_localnet off": _setting("net/ipv4/conf/web/route_localnet", 0),
}
GONE_WITH = {
    # what is somebody else's goes where the link under it goes, by the kernel's hand
    "bridge down": ("10.78.0.0/24", "10.79.0.0/24"),
    "IPv6 off": (),
    "port gone": ("10.80.", "10.81."),
    "inner link gone": ("10.80.", "10.81."),
    "inner link down": ("10.81.",),
    "inner link renamed": ("10.80.", "10.81."),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_put_back_and_what_is_foreign_stays(sandbox, daemon, built, damage):
    before, foreign, said = snapshot(sandbox), built.foreign(), daemon.log().count("healed: ")
    DAMAGE[damage](built)
    lost = GONE_WITH.get(damage, ())
    eventually(lambda: daemon.log().count("healed: ") > said, SOON, "the log says what was found and done")
    kept = [line for line in foreign if not line.startswith(lost)] if lost else foreign
    eventually(lambda: built.foreign() == kept, SOON, "what is foreign")
    eventually(lambda: _without(before, lost) == _without(snapshot(sandbox), lost), SOON, "all as it was")
    eventually(built.is_ready, SOON)
    built.works()


def _without(shown, lost):
    """A snapshot without the lines of what is lost with its link, and link-local addresses, which may be late."""
    return [
        line
        for field in shown.__slots__
        for line in getattr(shown, field)
        if not any(word in line for word in (*lost, "fe80:"))
    ]


def test_a_bridge_that_is_deleted_comes_back_with_its_ports(sandbox, daemon, built):
    built.host.delete_link("web")
    eventually(built.works, SOON)
    eventually(built.is_ready, SOON)
    assert "healed: bridge web is missing" in daemon.log()
    assert get(built.api, "networks/web")["id"] == built.network["id"]


def test_what_is_not_damaged_in_the_same_namespace_is_ready(sandbox, daemon, built):
    """Its default route is by the other endpoint's link, which is there all the while."""
    second = endpoint(built.api, "red")
    built.host.delete_link(second["host_ifname"])
    eventually(lambda: "healed: link" in daemon.log(), SOON)
    eventually(built.is_ready, SOON)
    assert "default route" not in "".join(line for line in daemon.log().splitlines() if "healed: " in line)


def test_endpoints_of_one_namespace_that_suffer_together_are_ready_together(sandbox, daemon, built):
    second = endpoint(built.api, "red")
    built.red.exec(["ip", "route", "del", "default"])
    built.host.delete_link(second["host_ifname"])
    eventually(lambda: "healed: link" in daemon.log(), SOON)
    eventually(built.is_ready, SOON)


def _flushes(firewall):
    if firewall == "iptables":
        legacy = "iptables-legacy"
        return {
            "nat": [[legacy, "-t", "nat", "-F"]],
            "filter": [[legacy, "-F"]],
            "everything": [[legacy, "-F"], [legacy, "-X"], [legacy, "-t", "nat", "-F"], [legacy, "-t", "nat", "-X"]],
            "one jump": [[legacy, "-t", "nat", "-D", "PREROUTING", "1"]],
            "jump replaced": [[legacy, "-R", "FORWARD", "1", "-j", "BRIDGEHEAD-PEERS"]],
            "IPv6": [["ip6tables-legacy", "-F"], ["ip6tables-legacy", "-t", "nat", "-F"]],
            "guards": [["nft", "delete", "table", "bridge", "bridgehead"]],
            "ruleset": [["nft", "flush", "ruleset"]],
        }
    return {
        "ruleset": [["nft", "flush", "ruleset"]],
        "table": [["nft", "flush", "table", "ip", "bridgehead"]],
        "tables": [["nft", "delete", "table", family, "bridgehead"] for family in ("ip", "ip6")],
        "guards": [["nft", "delete", "table", "bridge", "bridgehead"]],
    }


@pytest.mark.parametrize(
    "what", ["nat", "filter", "everything", "one jump", "jump replaced", "IPv6", "guards", "ruleset", "table", "tables"]
)
def test_rules_that_are_flushed_come_back(sandbox, daemon, built, firewall, what):
    commands = _flushes(firewall).get(what)
    if commands is None:
        pytest.skip(f"no such thing with {firewall}")
    foreign = [line for line in built.foreign() if "10.99" not in line and "admin" not in line]
    before = _ours(snapshot(sandbox))
    for command in commands:
        built.host.exec(command)
    eventually(lambda: _ours(snapshot(sandbox)) == before, SOON, "the rules as they were")
    eventually(built.works, SOON)
    eventually(built.is_ready, SOON)
    assert set(foreign) <= set(built.foreign())
    assert "healed: " in daemon.log()


def _ours(shown):
    return sorted(
        line.partition('"handle"')[0]
        for line in shown.firewall
        if ("BRIDGEHEAD" in line or "bridgehead" in line) and "metainfo" not in line
    )


def test_what_an_admin_does_beside_it_is_left_alone(sandbox, daemon, built):
    """Their addresses, routes and rules come and go, and nothing is healed."""
    said = daemon.log().count("healed: ")
    host = built.host
    host.add_address("web", ip_interface("10.66.0.1/24"))
    host.exec(["ip", "route", "add", "10.67.0.0/24", "dev", "web"])
    host.exec(["ip", "address", "del", "10.66.0.1/24", "dev", "web"])
    host.exec(["ip", "route", "del", "10.67.0.0/24", "dev", "web"])
    host.exec(["nft", "add", "table", "inet", "more"])
    host.exec(["nft", "delete", "table", "inet", "more"])
    built.red.exec(["ip", "route", "add", "10.68.0.0/24", "dev", "eth0"])
    host.exec(["ip", "address", "add", "192.168.15.77/24", "dev", "web"])
    built.red.exec(["ip", "route", "del", "10.68.0.0/24"])
    # a repair that comes after all these: whatever they led to was looked at by then
    built.host.exec(["ip", "link", "set", "web", "down"])
    eventually(lambda: built.host.links()["web"].up, SOON)
    eventually(built.works, SOON)
    assert ip_interface("192.168.15.77/24") in built.host.addresses()["web"]
    eventually(lambda: daemon.log().count("healed: ") > said, SOON)  # it says so once all is done
    log = daemon.log()
    assert log.count("healed: ") - said <= 3, log


# --- what is not ours costs nothing


def test_a_storm_of_foreign_links_starts_nothing(sandbox, daemon, built):
    """50 links a second, for three seconds: not one look is asked for, and the daemon hardly notices."""
    found = []
    watchlist = Watchlist()
    watchlist.put(("network", built.network["id"]), {})
    monitor = Monitor(watchlist, found.append, rules="bridgehead", nf_tables_loaded=lambda: True)
    sandbox.host.run(monitor.start)  # its thread is where it was started
    said, used, start = daemon.log(), _cpu(daemon.pid), time.perf_counter()
    with sandbox.host.rtnl() as rtnl:
        for number in range(150):
            rtnl.add_plain_bridge("storm")
            rtnl.delete_link(rtnl.index_of("storm"))
            time.sleep(max(0.0, start + (number + 1) / 50 - time.perf_counter()))
    share = (_cpu(daemon.pid) - used) / (time.perf_counter() - start)
    monitor.stop()
    print(f"50 foreign links/s: {share:.1%} of one CPU")
    assert not [one for one in found if one.keys or one.rules or one.missed]
    assert daemon.log()[len(said) :].count("healed: ") == 0
    assert share < 0.25


def _cpu(pid):
    """Seconds of CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
