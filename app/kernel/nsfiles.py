"""The files that stand for network namespaces: finding, opening, telling one from another, and whose each is."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.kernel import libc
from app.model.errors import NamespaceMissing
from app.model.spec import NetnsKind, NetnsRef

RUN_NETNS = Path("/run/netns")
SELF_NETNS = "/proc/thread-self/ns/net"
_NS_GET_USERNS, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704

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
        return f"{RUN_NETNS}/{ref.value}"
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
