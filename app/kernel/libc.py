"""The system calls that Python 3.11's os module lacks: setns, unshare, mount, umount2, fsopen and its kin."""

from __future__ import annotations

import ctypes
import errno
import os

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED, MNT_DETACH = 0x1000, 0x4000, 1 << 18, 1 << 20, 2

_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6  # linux/mount.h

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def setns(descriptor: int, kind: int = CLONE_NEWNET) -> None:
    """Moves the calling thread into a namespace. Raises OSError (setns(2))."""
    _call("setns", descriptor, kind)


def unshare(flags: int) -> None:
    """Gives the calling thread namespaces of its own. Raises OSError (unshare(2))."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    """Raises OSError (mount(2))."""
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags))
    _call("mount", *arguments, data.encode() if data else None)


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """Raises OSError (umount2(2))."""
    _call("umount2", target.encode(), flags)


def mount_apart(kind: str) -> int:
    """A new filesystem that is mounted nowhere: its root, which the caller closes, and it is gone.

    Raises OSError (fsopen(2), fsmount(2)); ENOSYS with a C library that lacks them, as glibc's did before 2.36.
    """
    if not hasattr(_libc, "fsopen"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "fsopen")
    context = _call("fsopen", kind.encode(), _FSOPEN_CLOEXEC)
    try:
        _call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call("fsmount", context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
