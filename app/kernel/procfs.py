"""/proc/sys/net, looked up in a procfs of our own.

The kernel keeps what was looked up below /proc/sys/net, of all namespaces, in one chain of names
(fs/proc/proc_sysctl.c, proc_sys_compare): where thousands were, a setting takes a millisecond to find. A procfs of
one's own begins with none.
"""

from __future__ import annotations

import os

from app.kernel import libc, sysctl

_RENEWED = 64
"""Namespaces that are looked up in one procfs: making another takes less than finding the next one in a long chain."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class OwnProc:
    """Belongs to the thread that makes it. Where none is to be had (before Linux 5.8, or not allowed), it is /proc."""

    def __init__(self) -> None:
        self._root: int | None = None
        self._left = 0

    def close(self) -> None:
        """What `open_net` gave stays of use."""
        if self._root is not None:
            os.close(self._root)
            self._root = None

    def open_net(self) -> int:
        """As `sysctl.open_net` has it."""
        if self._left == 0:
            self._renew()
        self._left -= 1
        return sysctl.open_net() if self._root is None else os.open("sys/net", _DIRECTORY, dir_fd=self._root)

    def _renew(self) -> None:
        self.close()
        self._left = _RENEWED
        try:
            self._root = libc.mount_apart("proc")
        except OSError:
            self._root = None
