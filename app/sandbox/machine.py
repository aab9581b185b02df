"""The sandbox: three network namespaces and a mount namespace that exist by open descriptors only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Self

from app.kernel import libc, sysctl
from app.kernel.nsfiles import SELF_NETNS
from app.sandbox.daemon import Daemon
from app.sandbox.inside import CLONE_FS, in_thread
from app.sandbox.ns import Ns
from app.sandbox.rtnl import PlainRtnl

HOST, HOST_SECOND, GATEWAY, SERVER = "203.0.113.2", "203.0.113.3", "203.0.113.1", "203.0.113.10"
CLIENT, CLIENT_GATEWAY = "198.51.100.7", "198.51.100.1"
HOST6, HOST6_SECOND, GATEWAY6, SERVER6 = "2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::1", "2001:db8:1::10"
CLIENT6, CLIENT_GATEWAY6 = "2001:db8:2::7", "2001:db8:2::1"

_MS_NOSUID_NODEV = 0x2 | 0x4
_DEFAULTS = {
    # a new namespace takes some of these from the machine's (net.core.devconf_inherit_init_net)
    **{f"net/ipv4/conf/{scope}/{key}": "0" for scope in ("all", "default") for key in ("arp_ignore", "rp_filter")},
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/route_localnet": "0",
    "net/ipv4/conf/default/route_localnet": "0",
}
_IPV6_OFF = {f"net/ipv6/conf/{scope}/disable_ipv6": "1" for scope in ("all", "default")}
# addresses are usable at once, and nobody announces routes
_IPV6_ON = {f"net/ipv6/conf/{scope}/{key}": "0" for scope in ("all", "default") for key in ("accept_dad", "accept_ra")}


@dataclass(frozen=True, slots=True)
class _Built:
    """Descriptors, in the order they are to be closed, and a netlink socket in each network namespace."""

    host: int
    internet: int
    client: int
    mounts: int
    run: int
    rtnl: dict[str, PlainRtnl]


class Sandbox:
    """A context manager. Nothing in it has a name on the machine, and all goes with the last descriptor.

    forward: policy of iptables' FORWARD in `host`; ACCEPT leaves the tables unloaded. bridge_nf: whether bridged
    packets pass iptables there. rp_filter: net.ipv4.conf.{all,default} in `host`. ipv6: addresses of
    2001:db8::/32 everywhere; else IPv6 is off.
    """

    def __init__(
        self,
        *,
        forward: str = "ACCEPT",
        bridge_nf: bool | None = None,
        rp_filter: int = 0,
        ipv6: bool = False,
        directory: Path | None = None,
    ) -> None:
        self._ipv6 = ipv6
        self._host_settings: dict[str, str] = {
            f"net/ipv4/conf/{scope}/rp_filter": str(rp_filter) for scope in ("all", "default")
        }
        if bridge_nf is not None:
            for table in ("iptables", "ip6tables", "arptables"):
                self._host_settings[f"net/bridge/bridge-nf-call-{table}"] = str(int(bridge_nf))
        self._daemons: list[Daemon] = []
        with ExitStack() as stack:
            self.directory = directory or Path(tempfile.mkdtemp(prefix="bridgehead-"))
            if directory is None:
                stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            built = in_thread(partial(self._build, stack))
            self.mounts = built.mounts
            self._run_directory = built.run
            self.host = Ns("host", partial(os.dup, built.host), self.mounts)
            self.internet = Ns("internet", partial(os.dup, built.internet), self.mounts)
            self.client = Ns("client", partial(os.dup, built.client), self.mounts)
            self._connect(built)
            if forward != "ACCEPT":
                self.set_forward_policy(forward)
            self._stack = stack.pop_all()

    def _build(self, stack: ExitStack) -> _Built:
        """In a thread of its own: each unshare leaves the namespace before to the descriptor on it."""

        def kept(path: str, flags: int = os.O_RDONLY) -> int:
            descriptor = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return descriptor

        libc.unshare(CLONE_FS | libc.CLONE_NEWNS)
        libc.mount("none", "/", "none", libc.MS_REC | libc.MS_PRIVATE)
        libc.mount("tmpfs", "/run", "tmpfs", _MS_NOSUID_NODEV, "mode=755")
        mounts, run = kept("/proc/thread-self/ns/mnt"), kept("/run", os.O_PATH | os.O_DIRECTORY)
        made: dict[str, int] = {}
        rtnl: dict[str, PlainRtnl] = {}
        for name in ("host", "internet", "client"):
            libc.unshare(libc.CLONE_NEWNET)
            made[name] = kept(SELF_NETNS)
            for path, value in self._settings_of(name).items():
                if sysctl.read(path) not in (None, value):
                    sysctl.write(path, value)
            rtnl[name] = stack.enter_context(PlainRtnl(name))
        return _Built(**made, mounts=mounts, run=run, rtnl=rtnl)

    def _settings_of(self, name: str) -> dict[str, str]:
        settings = {**_DEFAULTS, **(_IPV6_ON if self._ipv6 else _IPV6_OFF)}
        if name == "host":
            return settings | self._host_settings
        if name == "internet":
            settings["net/ipv4/ip_forward"] = "1"
            if self._ipv6:
                settings["net/ipv6/conf/all/forwarding"] = "1"
        return settings

    def _connect(self, built: _Built) -> None:
        host, internet, client = built.rtnl["host"], built.rtnl["internet"], built.rtnl["client"]
        for rtnl in built.rtnl.values():
            rtnl.set_up(1)  # lo has this index in every namespace
        internet.add_plain_veth("wan0", "eth0", built.host)
        internet.add_plain_veth("lan0", "eth0", built.client)
        self._configure(
            host, "eth0", [(HOST, 24), (HOST_SECOND, 24)], [(HOST6, 64), (HOST6_SECOND, 64)], (GATEWAY, GATEWAY6)
        )
        self._configure(internet, "wan0", [(GATEWAY, 24), (SERVER, 24)], [(GATEWAY6, 64), (SERVER6, 64)], None)
        self._configure(internet, "lan0", [(CLIENT_GATEWAY, 24)], [(CLIENT_GATEWAY6, 64)], None)
        self._configure(client, "eth0", [(CLIENT, 24)], [(CLIENT6, 64)], (CLIENT_GATEWAY, CLIENT_GATEWAY6))
        for rtnl in built.rtnl.values():
            rtnl.close()

    def _configure(
        self,
        rtnl: PlainRtnl,
        ifname: str,
        addresses: list[tuple[str, int]],
        addresses6: list[tuple[str, int]],
        gateways: tuple[str, str] | None,
    ) -> None:
        index = rtnl.index_of(ifname)
        if self._ipv6:
            # the kernel would take up to a second to make it, and until then the host is not as it will be
            rtnl.no_link_local(index)
            own = addresses6[0][0].removeprefix("2001:db8:").replace("::", ":")
            addresses6 = [*addresses6, (f"fe80::{own}", 64)]
        rtnl.set_up(index)
        for address in addresses + (addresses6 if self._ipv6 else []):
            rtnl.add_address(index, ip_interface(address))
        for gateway in (gateways or ())[: 2 if self._ipv6 else 1]:
            rtnl.add_plain_route(None, index, ip_address(gateway))

    def set_forward_policy(self, policy: str) -> None:
        """Loads the filter table."""
        self.host.exec(["iptables-legacy", "-P", "FORWARD", policy])
        if self._ipv6:
            self.host.exec(["ip6tables-legacy", "-P", "FORWARD", policy])

    # --- named namespaces: those under /run/netns as the daemon sees it ---

    def netns(self, name: str) -> Ns:
        """A handle on a named namespace, there or not yet; always on the one that has the name now."""
        return Ns(name, partial(self._open_run, f"netns/{name}"), self.mounts)

    def _open_run(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._run_directory)

    def netns_names(self) -> list[str]:
        try:
            descriptor = self._open_run("netns")
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def add_netns(self, name: str) -> Ns:
        """What `ip netns add` makes: a namespace that is not the daemon's."""

        def make(target: Path) -> None:
            target.parent.mkdir(exist_ok=True)
            target.touch(0o444, exist_ok=False)
            libc.unshare(libc.CLONE_NEWNET)
            for path, value in self._settings_of(name).items():
                if sysctl.read(path) not in (None, value):
                    sysctl.write(path, value)
            with PlainRtnl(name) as rtnl:
                rtnl.set_up(1)
            libc.mount(SELF_NETNS, str(target), "none", libc.MS_BIND)

        self.host.run(partial(make, Path("/run/netns") / name))
        return self.netns(name)

    def delete_netns(self, name: str) -> None:
        def remove(target: Path) -> None:
            libc.umount(str(target))
            target.unlink()

        self.host.run(partial(remove, Path("/run/netns") / name))

    @contextmanager
    def process(self) -> Iterator[tuple[int, Ns]]:
        """A process in a network namespace without a name, like a container's: its pid, and a handle."""

        def start() -> subprocess.Popen[bytes]:
            libc.unshare(libc.CLONE_NEWNET)
            with PlainRtnl() as rtnl:
                rtnl.set_up(1)
            # it ends when its input does, so also when we are killed
            return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

        process = self.host.run(start)
        try:
            opened = partial(os.open, f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            yield process.pid, Ns(f"pid {process.pid}", opened, self.mounts)
        finally:
            process.kill()
            process.communicate()

    # --- the daemon ---

    def daemon(self, **options: Any) -> Daemon:
        """A daemon in `host`, not started; ended with the sandbox. Options: those of Daemon."""
        made = Daemon(self, **options)
        self._daemons.append(made)
        return made

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.close()
        self._daemons.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
