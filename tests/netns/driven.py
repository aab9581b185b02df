"""The real kernel driven directly, in a sandbox's host: for what no request reaches, or not yet."""

from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface

from app.kernel.linux import LinuxKernel
from app.model.ops import Op
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import Attachment, Bridge, DefaultRoute, Netns, Sysctl

BRIDGE_MAC = "02:00:00:00:01:01"


class Driven:
    """Each call is made in a thread of its own, inside the host's namespace."""

    def __init__(self, host, kernel):
        self._host = host
        self.kernel = kernel

    def do(self, method, *arguments):
        return self._host.run(lambda: getattr(self.kernel, method)(*arguments))

    def make(self, *items):
        for item in items:
            self.do("apply", Op(None, item))

    def change(self, before, after):
        self.do("apply", Op(before, after))

    def remove(self, *items):
        for item in items:
            self.do("apply", Op(item, None))

    def observe(self, *items):
        return {item.key: item for item in self.do("observe", items)}

    def repair(self, *items):
        """What the full pass does with what is there but not as wanted."""
        found = self.observe(*items)
        for item in items:
            if found.get(item.key) != item:
                self.do("apply", Op(found.get(item.key), item))

    def is_kept(self, *items):
        """Applying again would change nothing."""
        found = self.observe(*items)
        return [found.get(item.key) for item in items] == list(items)


@contextmanager
def driven(sandbox, state_dir):
    kernel = sandbox.host.run(lambda: LinuxKernel(state_dir))
    try:
        yield Driven(sandbox.host, kernel)
    finally:
        sandbox.host.run(kernel.close)


def bridge(name="web", *addresses, owner=None, number=1, mtu=1500):
    held = frozenset(ip_interface(one) for one in addresses)
    ipv6 = any(one.version == 6 for one in held)
    return Bridge(owner or f"net-{name}", name, f"02:00:00:00:01:{number:02x}", mtu, held, ipv6=ipv6)


def attachment(name, *addresses, number, bridge="web", **fields):
    held = frozenset(ip_interface(one) for one in addresses)
    made = Attachment(
        owner=f"ep-{name}",
        host_ifname=f"veth{number}",
        bridge=bridge,
        netns=NetnsRef(NetnsKind.NAME, name),
        namespace_key=f"name:{name}",
        ifname="eth0",
        mac=f"02:00:00:00:02:{number:02x}",
        mtu=1500,
        addresses=held,
        ipv6=any(one.version == 6 for one in held),
        hairpin=False,
    )
    return replace(made, **fields)


def netns(name):
    return Netns(name, f"ep-{name}")


def route(item, via):
    return DefaultRoute(item.owner, item.netns, item.namespace_key, ip_address(via), item.ifname)


def setting(path, value="1"):
    return Sysctl("host", path, value)


# a network with two endpoints
NET, NET6 = "10.5.0.1/24", "fd05::1/64"
WEB = bridge("web", NET, NET6)
RED = attachment("red", "10.5.0.2/24", "fd05::2/64", number=1)
BLUE = attachment("blue", "10.5.0.3/24", "fd05::3/64", number=2)
BOTH = (netns("red"), netns("blue"), RED, BLUE)
