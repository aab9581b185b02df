"""Two networks of plain devices on a sandbox's host, for tests of rules without the daemon."""

from ipaddress import ip_address, ip_interface, ip_network

from app.model.ops import Op
from app.model.spec import Protocol
from app.model.state import NetworkPolicy, PortForward
from app.sandbox import CLIENT, CLIENT6, HOST, HOST6, SERVER, SERVER6

NETS = {
    4: {"web": "192.168.15.0/24", "db": "10.7.0.0/24"},
    6: {"web": "fd15::/64", "db": "fd07::/64"},
}
ADDRESSES = {
    4: {"host": HOST, "client": CLIENT, "server": SERVER, "any": "0.0.0.0", "loop": "127.0.0.1"},
    6: {"host": HOST6, "client": CLIENT6, "server": SERVER6, "any": "::", "loop": "::1"},
}
ENDPOINTS = {"red": ("web", 2), "blue": ("web", 3), "green": ("db", 2)}


def address(version, name):
    """Of an endpoint; of a network: its gateway; of the outside's names."""
    if name in ADDRESSES[version]:
        return ADDRESSES[version][name]
    net, number = ENDPOINTS.get(name, (name, 1))
    return str(ip_network(NETS[version][net])[number])


def policy(version, name, **options):
    values = {"routed": True, "isolated": True, "masquerade": True, **options}
    return NetworkPolicy(f"id-{name}", name, ip_network(NETS[version][name]), **values)


def port(version, endpoint, host_port=8080, *, host="any", protocol=Protocol.TCP, target_port=80, count=1):
    host_ip, target = ip_address(address(version, host)), ip_address(address(version, endpoint))
    owner = f"id-{version}-{protocol}-{host}-{host_port}"
    return PortForward(owner, ENDPOINTS[endpoint][0], protocol, host_ip, host_port, target, target_port, count)


class Lab:
    """web with red and blue, db with green; rules come by `want`."""

    def __init__(self, sandbox, firewall):
        self.sandbox, self.host, self.firewall = sandbox, sandbox.host, firewall
        self.items = {}
        for path in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.host.write_sysctl(path, 1)
        for net in ("web", "db"):
            self.host.add_bridge(net)
            for version in (4, 6):
                prefix = ip_network(NETS[version][net]).prefixlen
                self.host.add_address(net, ip_interface(f"{address(version, net)}/{prefix}"))
        self.ns = {}
        for name, (net, _number) in ENDPOINTS.items():
            self.ns[name] = peer = sandbox.add_netns(name)
            self.host.add_veth(f"v-{name}", "eth0", peer, master=net)
            self.host.exec(["ip", "link", "set", f"v-{name}", "type", "bridge_slave", "hairpin", "on"])
            for version in (4, 6):
                prefix = ip_network(NETS[version][net]).prefixlen
                peer.add_address("eth0", ip_interface(f"{address(version, name)}/{prefix}"))
                peer.add_default_route(ip_address(address(version, net)), "eth0")
        self.ns |= {"host": self.host, "client": sandbox.client, "server": sandbox.internet}

    def want(self, *items):
        """Brings the rules to these items by one apply."""
        new = {item.key: item for item in items}
        ops = [Op(self.items[key], new.get(key)) for key in self.items if self.items[key] != new.get(key)]
        ops += [Op(None, item) for key, item in new.items() if key not in self.items]
        if ops:
            self.host.run(lambda: self.firewall.apply(ops))
        self.items = new
        # only then, as the daemon does
        for net in ("web", "db"):
            self.host.write_sysctl(f"net/ipv4/conf/{net}/route_localnet", 1)
