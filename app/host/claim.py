"""What one daemon alone may hold: a state directory, a network namespace."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.host import unixdiag
from app.host.privileges import REQUIRED
from app.model.errors import StartupError

log = logging.getLogger("bridgehead")

_OURS = frozenset({"lock", "token", "bridgehead.db"})
"""Files by which a state directory is known, whatever its mode."""
_NAMESPACE_LOCK = "\0bridgehead"
"""An abstract unix socket belongs to its network namespace, and goes with its process."""


def require_capabilities() -> None:
    """Raises StartupError without the rights to change the network, naming those that are missing."""
    status = Path("/proc/self/status").read_text()
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    missing = [name for name, bit in REQUIRED.items() if not int(effective, 16) >> bit & 1]
    if missing:
        raise StartupError(f"must be started as root, with the capabilities {', '.join(missing)}")


@contextmanager
def state_dir(path: Path) -> Iterator[None]:
    """Makes the directory, mode 0700, and holds it. Raises StartupError, where it is somebody else's too."""
    try:
        _refuse_foreign(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as refusal:
        raise StartupError(f"state directory {path} cannot be used: {refusal.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise StartupError(
                f"state directory {path} is held by another daemon (pid {holder}): stop it, or use another --state-dir"
            ) from None
        _sign(path, descriptor)
        yield
    finally:
        os.close(descriptor)


def _sign(path: Path, descriptor: int) -> None:
    """Raises StartupError. On a full disk the lock does without the number, which only tells who holds it."""
    try:
        path.chmod(0o700)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as refusal:
        if refusal.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise StartupError(f"state directory {path} cannot be used: {refusal.strerror}") from None
        log.warning("state directory %s: %s", path, refusal.strerror)


def _refuse_foreign(path: Path) -> None:
    """Raises StartupError for a directory that others use: it would be closed to them. Raises OSError."""
    if not path.is_dir() or not path.stat().st_mode & 0o077:
        return
    there = {one.name for one in path.iterdir()}
    if there and there.isdisjoint(_OURS):
        raise StartupError(
            f"state directory {path} holds other files, such as '{min(there)}', and is open to other users, whom the "
            "daemon would lock out: give it a directory of its own"
        )


@contextmanager
def namespace() -> Iterator[None]:
    """Holds the network namespace that the daemon was started in. Raises StartupError.

    Any user can take the name of an abstract socket. One that is not root's, or ours, is no daemon: then
    the claim is a name that nobody can guess, beside it, which the next daemon finds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        mine = _NAMESPACE_LOCK
        try:
            lock.bind(mine)
        except OSError as refusal:
            if refusal.errno != errno.EADDRINUSE:
                raise
            _refuse_second(_claims(), mine="")
            mine = f"{_NAMESPACE_LOCK}/{secrets.token_hex(16)}"
            lock.bind(mine)
            log.warning("a process that is no daemon holds the name @%s; @%s is used", _NAMESPACE_LOCK[1:], mine[1:])
        _refuse_second(_claims(), mine)
        yield


def _claims() -> dict[str, int | None] | None:
    """The names that claim this network namespace, and who holds them; None where the kernel cannot say."""
    try:
        found = unixdiag.holders(_NAMESPACE_LOCK.encode())
    except OSError as refusal:
        log.debug("the holders of unix sockets cannot be read: %s", refusal)
        return None
    names = {name.decode(errors="replace"): owner for name, owner in found.items()}
    return {name: owner for name, owner in names.items() if name.split("/")[0] == _NAMESPACE_LOCK}


def _refuse_second(claims: dict[str, int | None] | None, mine: str) -> None:
    """Raises StartupError where a daemon holds another claim than `mine`; empty: there is one, whoever holds it."""
    if claims is None:
        held = not mine  # without it nobody can have found out that the usual name was an impostor's
    else:
        held = any(owner in (None, 0, os.geteuid()) for name, owner in claims.items() if name != mine)
    if held:
        raise StartupError(
            "another daemon manages this network namespace: stop it, or start this one in a namespace of its own"
        )
