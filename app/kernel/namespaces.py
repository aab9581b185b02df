"""Network namespaces: entering for a moment, making, marking, removing. Nothing here stays in one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.kernel import libc, messages
from app.kernel.netlink import Rtnl
from app.kernel.nsfiles import RUN_NETNS, SELF_NETNS, identity, opened
from app.kernel.nsmounts import SharedDirectory
from app.kernel.parse import MARK, has_target, parse_alias, parse_nsid
from app.kernel.wire import Answer, Netlink, Request
from app.model.errors import KernelRefused, NamespaceMissing, StartupError
from app.model.naming import alias, owner_of
from app.model.spec import NetnsKind, NetnsRef

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LOOPBACK_INDEX = 1
_PROBE_MAC = "02:00:00:00:00:01"


class Namespaces:
    """Enters and leaves namespaces from the thread that made it; `host` is where that thread belongs.

    others: names of namespaces that were there and bore no mark of ours: who made them makes them again.
    """

    def __init__(self) -> None:
        self.others: set[str] = set()
        self.host = os.open(SELF_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        self._netlink = Netlink(command="ip")
        self.host_identity = identity(self.host)
        self._names = SharedDirectory(RUN_NETNS)

    def close(self) -> None:
        self._netlink.close()
        os.close(self.host)

    @contextmanager
    def inside(self, descriptor: int) -> Iterator[None]:
        """The calling thread is in the namespace within the block, and in the host's again after it."""
        libc.setns(descriptor)
        try:
            yield
        finally:
            libc.setns(self.host)

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """The calling thread is in an empty namespace within the block, which is gone after it. Raises StartupError."""
        try:
            libc.unshare(libc.CLONE_NEWNET)
        except OSError as refusal:
            raise StartupError(f"no network namespace can be made ({refusal.strerror}): start as root") from None
        try:
            yield
        finally:
            libc.setns(self.host)

    @contextmanager
    def rtnl(self, descriptor: int, where: str) -> Iterator[Rtnl]:
        """A netlink socket in a namespace; the thread itself leaves at once."""
        with self.inside(descriptor):
            connection = Rtnl(where)
        with connection:
            yield connection

    def require_links(self) -> None:
        """Tries a bridge and a veth pair where nobody sees it. Raises StartupError where the kernel lacks them."""
        with self.scratch(), Rtnl("scratch") as rtnl:
            own = os.open(SELF_NETNS, os.O_RDONLY | os.O_CLOEXEC)
            try:
                bridge = rtnl.add_bridge("bridge0", _PROBE_MAC, 1500, "probe")
                rtnl.add_veth(
                    "veth0",
                    master=bridge.index,
                    mtu=1500,
                    peer="veth1",
                    peer_mac=_PROBE_MAC,
                    peer_netns=own,
                )
            except KernelRefused as refusal:
                raise StartupError(f"this kernel lacks bridges or veth pairs: {refusal.detail}") from None
            finally:
                os.close(own)

    def exists(self, name: str) -> bool:
        """Whether anything but a placeholder of ours stands at the name."""
        try:
            status = os.lstat(f"{RUN_NETNS}/{name}")
        except FileNotFoundError:
            return False
        except OSError:
            return True
        # a link to nowhere, or to where we may not look, keeps a namespace from being mounted there too
        return status.st_dev == self.host_identity[0] or not self._is_placeholder(name)

    @staticmethod
    def _is_placeholder(name: str) -> bool:
        """Whether it is a file that we made to mount a namespace on, and none is mounted: we were killed, or it was."""
        path = RUN_NETNS / name
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return False  # somebody's FIFO would make us wait for its writer
            with open(path, "rb") as file:
                return file.read(len(MARK)) == MARK
        except OSError:
            return False  # a namespace's file cannot be read

    def create(self, name: str, owner: str) -> None:
        """Makes a namespace under /run/netns, marks it, sets its lo up. Raises KernelRefused; half-made leaves nothing.

        The mark comes before the name: a namespace that is killed unmarked has no name either, and is gone.
        """
        target = RUN_NETNS / name
        try:
            self._names.share()
            try:
                placeholder = os.open(target, _NEW_FILE, 0o444)
            except FileExistsError:
                if not self._is_placeholder(name):
                    raise
                target.unlink()
                placeholder = os.open(target, _NEW_FILE, 0o444)
            # the mark is for the case that we are killed before the mount hides it
            os.write(placeholder, alias(owner).encode())
            os.close(placeholder)
        except OSError as refusal:
            raise KernelRefused(refusal.errno or errno.EIO, f"ip netns add {name}") from refusal
        try:
            libc.unshare(libc.CLONE_NEWNET)
            try:
                self._mark(name, owner)
                libc.mount(SELF_NETNS, str(target), "none", libc.MS_BIND)
            finally:
                libc.setns(self.host)
        except BaseException as failure:
            target.unlink(missing_ok=True)
            if isinstance(failure, OSError):
                raise KernelRefused(failure.errno or errno.EIO, f"ip netns add {name}") from failure
            raise

    def _mark(self, name: str, owner: str) -> None:
        """`lo` carries the alias; the nsid of our host tells which daemon's namespace this is."""
        with Rtnl(name) as rtnl:
            rtnl.put_mark(self.host, alias(owner))

    def open_own(self, name: str) -> int | None:
        """A descriptor of a namespace that we made, for the caller to close; None where it is gone, or not ours.

        A placeholder of ours is removed.
        """
        if name in self.others and self.exists(name):
            return None  # what bears no mark need not be opened to be left alone
        if self._is_placeholder(name):
            (RUN_NETNS / name).unlink()
            return None
        try:
            with opened(NetnsRef(NetnsKind.NAME, name)) as descriptor:
                return os.dup(descriptor) if self._owner_of(descriptor, name) is not None else None
        except NamespaceMissing:
            return None

    def owner(self, name: str) -> str | None:
        """The id in the mark of a namespace that a daemon of this host made; None for any other."""
        try:
            with opened(NetnsRef(NetnsKind.NAME, name)) as descriptor:
                return self._owner_of(descriptor, name)
        except NamespaceMissing:
            return None

    def _owner_of(self, descriptor: int, name: str) -> str | None:
        if identity(descriptor) == self.host_identity:
            return None
        seen = self._seen_from_here(descriptor)
        if seen is not None and (owner_of(seen[0]) is None or seen[1]):
            return owner_of(seen[0])
        with self.rtnl(descriptor, name) as rtnl:
            return maker_of(rtnl, *rtnl.ask_all(self.asked_of_maker()))

    def asked_of_maker(self) -> list[Request]:
        """What `maker_of` is told by, asked by a socket in the namespace."""
        return [messages.get_link(index=_LOOPBACK_INDEX), messages.get_nsid(self.host)]

    def _seen_from_here(self, descriptor: int) -> tuple[str, bool] | None:
        """The alias of a namespace's lo and whether it has an id for our host, by requests that need not enter it.

        None where that is not to be had: the host has no id for it, or may not ask; or before Linux 4.20.
        """
        nsid = self._nsid(descriptor)
        if nsid is None:
            return None
        lo = self._netlink.ask_all([messages.get_link(index=_LOOPBACK_INDEX, target=nsid)])[0]
        if isinstance(lo, KernelRefused) or not has_target(lo[0]):
            return None  # without a target, it is our own
        return parse_alias(lo[0]) or "", self._nsid(self.host, nsid) is not None

    def _nsid(self, descriptor: int, target: int | None = None) -> int | None:
        """The id of a namespace in ours, or in that of which ours has the id `target`; None for none."""
        return parse_nsid(self._netlink.change_all([messages.get_nsid(descriptor, target)])[0][0])

    def note_maker(self, name: str, owner: str | None) -> None:
        """Takes note of whether a namespace that is there is ours or another's."""
        if owner is None:
            self.others.add(name)
        else:
            self.others.discard(name)

    def marked(self, known: Mapping[str, str | None] | None = None) -> Iterator[tuple[str, str]]:
        """Name and mark of every namespace that a daemon of this host made; clears what one left half-made.

        known: the marks that were read just now, by name.
        """
        seen = known or {}
        for name in sorted(os.listdir(RUN_NETNS)) if RUN_NETNS.is_dir() else ():
            if name not in seen and self._is_placeholder(name):
                (RUN_NETNS / name).unlink()
                continue
            owner = seen[name] if name in seen else self.owner(name)
            if owner is not None:
                self.others.discard(name)
                yield name, owner


def maker_of(inner: Rtnl, lo: Answer, nsid: Answer) -> str | None:
    """The id in the mark of a namespace that a daemon of this host made; None for any other.

    inner: a socket in it; lo, nsid: its answers to `Namespaces.asked_of_maker`. Raises KernelRefused where one is.
    """
    if isinstance(lo, KernelRefused):
        raise lo
    if isinstance(nsid, KernelRefused):
        raise nsid
    maker = owner_of(parse_alias(lo[0])) if MARK in lo[0] else None
    foreign = maker is not None and parse_nsid(nsid[0]) is None and bool(inner.nsids())
    return None if foreign else maker
