"""The system calls that Python 3.11's os module lacks: setns, unshare, mount, umount2."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED, MNT_DETACH = 0x1000, 0x4000, 1 << 18, 1 << 20, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


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
