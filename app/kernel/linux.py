"""The real kernel: every item made, changed, removed and read back. One thread, in the host's namespace."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from pathlib import Path

from app.kernel import conntrack, ports, report, sysctl
from app.kernel.announce import Announcer
from app.kernel.links import Links
from app.kernel.mirror import HostMirror
from app.kernel.namespaces import Namespaces
from app.kernel.netlink import Rtnl
from app.kernel.nsfiles import KnownNamespaces, opened, owner_uid, process_uids, start_time
from app.kernel.observe import Observer
from app.kernel.procfs import OwnProc
from app.kernel.removal import Removal
from app.kernel.settings import filters_strictly
from app.kernel.visits import Visits
from app.model.errors import BridgeheadError, Invalid, NamespaceMissing
from app.model.host import HostFacts
from app.model.ops import Op
from app.model.spec import IPAddress, IPNetwork, NetnsKind, NetnsRef, Protocol, Version
from app.model.state import (
    Attachment,
    Bridge,
    DefaultRoute,
    Departing,
    HostPort,
    Item,
    ItemKey,
    LoopbackRoute,
    Netns,
    PortForward,
    Sysctl,
)

log = logging.getLogger("bridgehead.kernel")

_DEFAULT_MTU = 1500
_FORWARDING: dict[str, Version] = {"net/ipv4/ip_forward": 4, "net/ipv6/conf/all/forwarding": 6}


class LinuxKernel:
    """See `app.model.contracts.Kernel`. Belongs to the thread that makes it."""

    def __init__(self, state_dir: Path) -> None:
        self._namespaces = Namespaces()
        self._namespaces.require_links()
        self._rtnl = Rtnl()
        self._mirror = HostMirror()
        self._ports = ports.PortReservations()
        self._flows = conntrack.Flows()
        with closing(OwnProc()) as proc:
            self._net = proc.open_net()
        self._ledger = sysctl.SysctlLedger(state_dir / "sysctl.json", self._net)
        self._known = KnownNamespaces()
        self._announcer = Announcer()
        self._visits = Visits(self._namespaces, self._announcer)
        self._links = Links(
            self._rtnl, self._mirror, self._namespaces, self._visits, self._known, self._announcer, self._net
        )
        self._removal = Removal(self._mirror, self._namespaces, self._links.default_route)
        self._handlers: dict[type, Callable[[Op], None]] = {
            Netns: self._netns,
            HostPort: self._host_port,
            Bridge: self._bridge,
            Attachment: self._links.attachment,
            DefaultRoute: self._links.default_route,
            Sysctl: self._sysctl,
            LoopbackRoute: self._links.loopback_route,
        }
        self._observer = Observer(self._rtnl, self._mirror, self._namespaces, self._known)
        ports.raise_descriptor_limit()

    def close(self) -> None:
        self.settle()
        self._visits.close()
        self._announcer.close()
        self._removal.close()
        self._ports.close()
        self._flows.close()
        self._mirror.close()
        self._rtnl.close()
        self._namespaces.close()
        os.close(self._net)

    # --- facts for checks

    def refresh(self) -> None:
        self._mirror.refresh()

    def link_exists(self, name: str) -> bool:
        return self._mirror.holds_name(name)

    def holds_address(self, address: IPAddress) -> bool:
        return self._mirror.holds_address(address)

    def route_in_the_way(self, subnet: IPNetwork) -> tuple[IPNetwork, str] | None:
        return self._mirror.route_in_the_way(subnet)

    def default_mtu(self) -> int:
        return self._mirror.default_mtu() or _DEFAULT_MTU

    def resolve(self, ref: NetnsRef) -> NetnsRef:
        if ref.kind is NetnsKind.PID:
            ref = replace(ref, start_time=start_time(int(ref.value)))
        with self._visits.at(ref) as place:
            if place.identity == self._namespaces.host_identity:
                raise Invalid(f"{ref} is the host's own network namespace; name another one")
        return ref

    def namespace_name_free(self, name: str) -> bool:
        return not self._namespaces.exists(name)

    def gone(self, ref: NetnsRef) -> str:
        try:
            with opened(ref):
                return ""
        except NamespaceMissing as missing:
            return missing.detail

    def permit_creation(self, name: str) -> None:
        self._namespaces.others.discard(name)

    def known_as(self, ref: NetnsRef) -> str | None:
        with self._visits.at(ref) as place:
            return self._known.key_of(ref, place.identity)

    def belongs_to(self, ref: NetnsRef, uid: int) -> bool:
        with self._visits.at(ref) as place:
            if owner_uid(place.descriptor) == uid:
                return True
            return ref.kind is NetnsKind.PID and process_uids(int(ref.value)) == {uid}

    def link_exists_in(self, ref: NetnsRef, name: str) -> bool:
        try:
            with self._visits.at(ref) as place:
                return place.index_of(name) is not None
        except NamespaceMissing:
            return False

    def probe_port(self, protocol: Protocol, address: IPAddress, port: int) -> None:
        ports.probe(protocol, address, port)

    def describe(self) -> HostFacts:
        self._mirror.refresh()
        return report.describe(self._mirror, self._ledger)

    # --- changes

    def visiting(self) -> AbstractContextManager[None]:
        return self._visits.visiting()

    def apply(self, op: Op) -> None:
        if op.after is None and isinstance(op.item, Departing):
            for _op, refusal in self._removal.remove([op]):
                raise refusal
        else:
            self._handlers[type(op.item)](op)

    def remove(self, ops: Sequence[Op]) -> list[tuple[Op, BridgeheadError]]:
        for op in ops:
            if isinstance(op.item, Netns):
                self._visits.leave(NetnsRef(NetnsKind.NAME, op.item.name))
        return self._removal.remove(ops)

    def _bridge(self, op: Op) -> None:
        self._links.bridge(op)
        if isinstance(op.after, Bridge):
            self._mirror.add_own_addresses(op.after.name, op.after.addresses)

    def flush(self, forwards: Collection[PortForward]) -> None:
        concerned = [forward for forward in forwards if conntrack.needs_flush(forward)]
        if concerned:
            self._mirror.refresh()
            self._flows.flush(concerned, self._mirror.holds_address)

    def flush_into(self, subnets: Collection[IPNetwork]) -> None:
        self._mirror.refresh()
        self._flows.flush_into(subnets, self._mirror.holds_address)

    def _netns(self, op: Op) -> None:
        match op.before, op.after:
            case Netns() as before, Netns() if not self._namespaces.exists(before.name):
                raise NamespaceMissing(f"namespace '{before.name}' was deleted")  # what was in it is gone too
            case _, Netns() as after if not self._namespaces.exists(after.name):
                if not after.create:
                    raise NamespaceMissing(f"namespace '{after.name}' is not there, and create_namespace is false")
                if after.name in self._namespaces.others:
                    raise NamespaceMissing(f"namespace '{after.name}' was deleted by whoever made it")
                self._namespaces.create(after.name, after.owner)
            case _, Netns() as after:
                self._note_maker(after.name)

    def _note_maker(self, name: str) -> None:
        """Takes note of whether a namespace that is there is ours or another's."""
        owner = None
        with suppress(NamespaceMissing), self._visits.at(NetnsRef(NetnsKind.NAME, name)) as place:
            owner = place.maker
        self._namespaces.note_maker(name, owner)

    def _host_port(self, op: Op) -> None:
        before = op.before if isinstance(op.before, HostPort) else None
        self._ports.change(before, op.after if isinstance(op.after, HostPort) else None)

    def _sysctl(self, op: Op) -> None:
        match op.before, op.after:
            case _, Sysctl() as after:
                self._set_sysctl(after)
            case Sysctl() as before, None:
                self._restore_sysctl(before.path)

    def _set_sysctl(self, item: Sysctl) -> None:
        version = _FORWARDING.get(item.path)
        if version is not None:
            self._mirror.refresh()
            present = [str(index) for index in self._mirror.foreign_forwarders(version)]
            first = self._accepting() if version == 6 else {}
            self._ledger.set(item.path, item.value, first, present)
        elif not _is_lax(item.path):
            self._ledger.set(item.path, item.value)

    def _accepting(self) -> dict[str, str]:
        """A host that forwards takes no router advertisement, unless told to on the interface it routes by."""
        paths = [f"net/ipv6/conf/{name}/accept_ra" for name in self._mirror.learning_links()]
        return {path: "2" for path in paths if sysctl.read(path) == "1"}

    def _learns_late(self, path: str) -> bool:
        """Whether a link came to learn its route since we turned IPv6 forwarding on."""
        ours = _FORWARDING.get(path) == 6 and path in self._ledger.held()
        return ours and not self._accepting().keys() <= self._ledger.preceded(path)

    def _restore_sysctl(self, path: str) -> None:
        version = _FORWARDING.get(path)
        before = self._ledger.present(path)
        if version is not None and before is not None:
            self._mirror.refresh()
            found = self._mirror.foreign_forwarders(version)
            dependent = [name for index, name in found.items() if str(index) not in before]
            if dependent:
                log.info("%s stays as it is: %s came since, and forwards by it", path, dependent[0])
                self._ledger.forget(path)
                return
        self._ledger.restore(path)

    def settle(self) -> None:
        self._ledger.settle()

    # --- reading back

    def observe(self, expected: Iterable[Item]) -> list[Item]:
        return self._observe(list(expected), only=False)

    def observe_items(self, expected: Iterable[Item]) -> list[Item]:
        return self._observe(list(expected), only=True)

    def _observe(self, wanted: list[Item], *, only: bool) -> list[Item]:
        if not only or not all(isinstance(item, Sysctl) for item in wanted):
            self._mirror.refresh()
        ports: list[ItemKey] = []
        others: list[Item] = []
        for item in wanted:  # most are ports, of which the other looks know nothing
            if isinstance(item, HostPort):
                ports.append(item.key)
            else:
                others.append(item)
        self._observer.begin(others)
        try:
            return [
                *self._observer.links(others, only=only),
                *self._observer.namespaces(others, only=only),
                *(self._ports.held_of(ports) if only else self._ports.held()),
                *self._observer.routes(others),
                *self._observed_settings(others, only=only),
                *self._observer.loopback_routes(others, only=only),
            ]
        finally:
            self._observer.end()

    def _observed_settings(self, wanted: list[Item], *, only: bool) -> Iterator[Sysctl]:
        settings = {item.path: item for item in wanted if isinstance(item, Sysctl)}
        for path, item in settings.items():
            current = sysctl.read(path)
            if current is not None and current == item.value and self._learns_late(path):
                yield replace(item, value=f"{current}, and accept_ra is not 2")
            elif current is not None:
                yield item if _is_lax(path) else replace(item, value=current)
        for path in self._ledger.held() if not only else ():
            if path not in settings:
                yield Sysctl("", path, sysctl.read(path) or "")


def _is_lax(path: str) -> bool:
    """Whether this is about a link's reverse path filter, which is wanted loose, and is not strict anyway."""
    *_parents, ifname, key = path.split("/")
    return key == "rp_filter" and not filters_strictly(ifname)
