"""Giving up what the daemon does not need of root's rights (capabilities(7), no_new_privs in prctl(2))."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

NEEDED = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_BROADCAST": 11,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
"""By number (linux/capability.h). DAC_READ_SEARCH and SYS_PTRACE: endpoints by pid, and the name of a port's holder."""
REQUIRED = {name: NEEDED[name] for name in ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_NET_BROADCAST")}
"""Without one of these nothing works; without another, what it is for does not, and the answer says so."""
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAP_SETPCAP = 8
_VERSION_3 = 0x20080522
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop() -> None:
    """Keeps of the calling thread's capabilities those in NEEDED that it has; gains none by exec ever after.

    Threads that are started later inherit it: to be called before there are any. Raises OSError.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    had = _permitted()
    if had >> _CAP_SETPCAP & 1:  # without it, no_new_privs alone keeps exec from giving anything
        for number in range(int(_LAST_CAP.read_text()) + 1):
            if number not in NEEDED.values():
                _prctl(_PR_CAPBSET_DROP, number)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    kept = had & sum(1 << number for number in NEEDED.values())
    data = (_Data * 2)(_Data(kept & 0xFFFFFFFF, kept & 0xFFFFFFFF, 0), _Data(kept >> 32, kept >> 32, 0))
    _check(_libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), data))


def _permitted() -> int:
    data = (_Data * 2)()
    _check(_libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), data))
    return int(data[0].permitted) | int(data[1].permitted) << 32


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0) for _unused in range(3))))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
