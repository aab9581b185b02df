"""Network namespaces: finding, entering for a moment, making, removing. Nothing here stays in one."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.kernel import libc
from app.kernel.netlink import Rtnl
from app.kernel.wire import RTM_GETLINK, RTM_GETNSID, Netlink, Packed, attribute, attributes
from app.model.errors import KernelRefused, NamespaceMissing, StartupError
from app.model.naming import ALIAS_PREFIX, alias, owner_of
from app.model.spec import NetnsKind, NetnsRef

RUN_NETNS = Path("/run/netns")
SELF_NETNS = "/proc/thread-self/ns/net"
_NS_GET_USERNS, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NETNSA_NSID, _NETNSA_FD, _NETNSA_TARGET_NSID = 1, 3, 4  # linux/net_namespace.h
_IFLA_IFALIAS, _IFLA_TARGET_NETNSID, _LOOPBACK_INDEX = 20, 46, 1
_PROBE_MAC = "02:00:00:00:00:01"

Identity = tuple[int, int]
"""Device and inode of a namespace: what tells two of them apart while both live."""


def identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def start_time(pid: int) -> int:
    """A process's start in clock ticks since boot (proc(5), stat field 22). Raises NamespaceMissing."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise NamespaceMissing(f"there is no process {pid}") from None
    return int(line.rpartition(")")[2].split()[19])


def process_uids(pid: int) -> set[int]:
    """A process's real, effective, saved and filesystem uid; empty where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(uid) for line in lines if line.startswith("Uid:") for uid in line.split()[1:]}


def owner_uid(descriptor: int) -> int | None:
    """Whose the user namespace is that owns a network namespace (ioctl_ns(2)); None where that cannot be seen."""
    try:
        users = fcntl.ioctl(descriptor, _NS_GET_USERNS)
    except OSError as refusal:
        if refusal.errno == errno.EPERM:  # it is outside our own
            return None
        raise
    try:
        uid = bytearray(4)
        fcntl.ioctl(users, _NS_GET_OWNER_UID, uid)
        return int.from_bytes(uid, sys.byteorder)
    finally:
        os.close(users)


def path_of(ref: NetnsRef) -> str:
    """The file that stands for a namespace."""
    if ref.kind is NetnsKind.NAME:
        return str(RUN_NETNS / ref.value)
    return f"/proc/{ref.value}/ns/net" if ref.kind is NetnsKind.PID else ref.value


@contextmanager
def opened(ref: NetnsRef) -> Iterator[int]:
    """A descriptor of the namespace, closed again at the end. Raises NamespaceMissing with the reason."""
    descriptor = open_namespace(ref)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_namespace(ref: NetnsRef) -> int:
    """A descriptor of the namespace, which the caller closes. Raises NamespaceMissing with the reason."""
    if ref.kind is NetnsKind.PID and start_time(int(ref.value)) != ref.start_time:
        raise NamespaceMissing(f"process {ref.value} has ended, and another has its number now")
    path = path_of(ref)
    descriptor = _open_user_s(ref, path) if ref.kind is NetnsKind.PATH else _open_ours(ref, path)
    if _is_netns(descriptor):
        return descriptor
    os.close(descriptor)
    raise NamespaceMissing(f"{path} is there, but it is not a network namespace")


def _open_ours(ref: NetnsRef, path: str) -> int:
    """A descriptor of a regular file where nobody but root can put another in its place."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NamespaceMissing(f"{path} is there, but it is not a network namespace")
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as refusal:
        raise NamespaceMissing(f"{ref} cannot be opened at {path}: {refusal.strerror}") from None


def _open_user_s(ref: NetnsRef, path: str) -> int:
    """A descriptor of a regular file, which a namespace's is; opening a user's device or FIFO would have effects."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise NamespaceMissing(f"{path} is there, but it is not a network namespace")
            return os.open(f"/proc/thread-self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError as refusal:
        raise NamespaceMissing(f"{ref} cannot be opened at {path}: {refusal.strerror}") from None


def _is_netns(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == libc.CLONE_NEWNET
    except OSError as refusal:
        if refusal.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise


@contextmanager
def _held_below(directory: Path) -> Iterator[list[int]]:
    """Descriptors of what is mounted in a directory, and would stay mounted twice once the directory is mounted anew.

    Then no such name could be deleted. None where mounts are shared, for there both go with either.
    """
    held: list[int] = []
    try:
        if not _is_shared(directory):
            device = directory.stat().st_dev
            for entry in directory.iterdir():
                descriptor = os.open(entry, os.O_PATH | os.O_CLOEXEC)
                held.append(descriptor)
                if os.fstat(descriptor).st_dev == device:
                    os.close(held.pop())
        yield held
    finally:
        for descriptor in held:
            os.close(descriptor)


def _mount_of(directory: Path) -> str | None:
    """What tells the mount apart that a directory is in (proc(5), fdinfo); None where it is missing."""
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/thread-self/fdinfo/{descriptor}", encoding="ascii") as lines:
            return next((line for line in lines if line.startswith("mnt_id:")), None)
    finally:
        os.close(descriptor)


def _is_shared(path: Path) -> bool:
    """Whether mounts below a path show in other mount namespaces too (proc(5), mountinfo)."""
    shared, longest = False, -1
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        fields = line.partition(" - ")[0].split()
        depth = len(Path(fields[4]).parts)
        # of those at one place the last one covers the others
        if path.is_relative_to(fields[4]) and depth >= longest:
            shared, longest = any(field.startswith("shared:") for field in fields[6:]), depth
    return shared


class KnownNamespaces:
    """Under which key we were last in which namespace, whatever it was called then."""

    def __init__(self) -> None:
        self._known: dict[Identity, tuple[NetnsRef, str]] = {}

    def remember(self, place: Identity, ref: NetnsRef, key: str) -> None:
        self._known[place] = (ref, key)

    def key_of(self, ref: NetnsRef, wanted: Identity) -> str | None:
        """None where we were not, as far as we know. ref: what leads there now."""
        known = self._known.get(wanted)
        if known is None or known[0] == ref:
            return known[1] if known else None
        try:
            with opened(known[0]) as descriptor:
                if identity(descriptor) == wanted:
                    return known[1]
        except NamespaceMissing:
            pass
        del self._known[wanted]  # it died, and another has its inode
        return None


class Namespaces:
    """Enters and leaves namespaces from the thread that made it; `host` is where that thread belongs.

    others: names of namespaces that were there and bore no mark of ours: who made them makes them again.
    """

    def __init__(self) -> None:
        self.others: set[str] = set()
        self.host = os.open(SELF_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        self._netlink = Netlink()
        self.host_identity = identity(self.host)
        self._shared: str | None = None

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
                return file.read(len(ALIAS_PREFIX)) == ALIAS_PREFIX.encode()
        except OSError:
            return False  # a namespace's file cannot be read

    def create(self, name: str, owner: str) -> None:
        """Makes a namespace under /run/netns, marks it, sets its lo up. Raises KernelRefused; half-made leaves nothing.

        The mark comes before the name: a namespace that is killed unmarked has no name either, and is gone.
        """
        target = RUN_NETNS / name
        try:
            self._share_directory()
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

    def _share_directory(self) -> None:
        """Like ip-netns(8): names are to be seen in every mount namespace, whoever makes them first.

        Once for each mount that is there: it takes as long as there are names.
        """
        if self._shared is not None and _mount_of(RUN_NETNS) == self._shared:
            return
        RUN_NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            libc.mount("", str(RUN_NETNS), "none", libc.MS_SHARED | libc.MS_REC)
        except OSError as refusal:
            if refusal.errno != errno.EINVAL:
                raise
            with _held_below(RUN_NETNS) as held:
                libc.mount(str(RUN_NETNS), str(RUN_NETNS), "none", libc.MS_BIND | libc.MS_REC)
                libc.mount("", str(RUN_NETNS), "none", libc.MS_SHARED | libc.MS_REC)
                for descriptor in held:
                    libc.umount(f"/proc/thread-self/fd/{descriptor}")
        self._shared = _mount_of(RUN_NETNS)

    def open_own(self, name: str) -> int | None:
        """A descriptor of a namespace that we made, for the caller to close; None where it is gone, or not ours.

        A placeholder of ours is removed.
        """
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
            return self.owner_at(identity(descriptor), rtnl)

    def owner_at(self, place: Identity, rtnl: Rtnl) -> str | None:
        """The same of a namespace that is open, by a socket in it."""
        if place == self.host_identity:
            return None
        mark, nsid = rtnl.mark(self.host)
        owner = owner_of(mark)
        if owner is None:
            return None
        foreign = nsid is None and bool(rtnl.nsids())
        return None if foreign else owner

    def _seen_from_here(self, descriptor: int) -> tuple[str, bool] | None:
        """The alias of a namespace's lo and whether it has an id for our host, by requests that need not enter it.

        None where that is not to be had: the host has no id for it, or may not ask; or before Linux 4.20.
        """
        nsid = self._nsid(descriptor)
        if nsid is None:
            return None
        target = struct.pack("=i", nsid)
        body = struct.pack("=BxHiII", 0, 0, _LOOPBACK_INDEX, 0, 0) + attribute(_IFLA_TARGET_NETNSID, target)
        try:
            raw = self._netlink.change(Packed(body), RTM_GETLINK, 0, lambda: f"ip link show lo target-nsid {nsid}")[0]
        except KernelRefused:
            return None
        found = attributes(raw, 32)
        if _IFLA_TARGET_NETNSID not in found:
            return None  # our own
        alias = found.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")
        return alias, self._nsid(self.host, target) is not None

    def _nsid(self, descriptor: int, target: bytes = b"") -> int | None:
        """The id of a namespace in ours, or in that of which ours has the id `target`; None for none."""
        body = bytes(4) + attribute(_NETNSA_FD, struct.pack("=I", descriptor))
        if target:
            body += attribute(_NETNSA_TARGET_NSID, target)
        raw = self._netlink.change(Packed(body), RTM_GETNSID, 0, lambda: "ip netns list-id")[0]
        number = int(struct.unpack("=i", attributes(raw, 20)[_NETNSA_NSID])[0])
        return number if number >= 0 else None

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
                yield name, owner
