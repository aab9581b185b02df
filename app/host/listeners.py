"""Listening sockets: the unix socket that its file's mode guards, and TCP."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from app.model.errors import StartupError
from app.settings import split_listen

_GROUP = "bridgehead"
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Bound:
    """The listening sockets; None where it is not wanted."""

    unix: socket.socket | None
    tcp: socket.socket | None


@contextmanager
def unix(path: Path) -> Iterator[socket.socket]:
    """A unix socket, mode 0660, of group `bridgehead` where it exists; removed at the end. Raises StartupError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _clear(path)
            # made with no rights for others: whoever may open it is trusted
            former = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(former)
            if (group := _group()) is not None:
                os.chown(path, -1, group)
            path.chmod(0o660)
            listener.listen(_BACKLOG)
        except OSError as refusal:
            raise StartupError(f"socket {path} cannot be made: {refusal.strerror or refusal}") from None
        mine = path.stat().st_ino
        try:
            yield listener
        finally:
            if path.exists() and path.stat().st_ino == mine:
                path.unlink()


def _group() -> int | None:
    try:
        return grp.getgrnam(_GROUP).gr_gid
    except KeyError:
        return None


def _clear(path: Path) -> None:
    """Removes what a killed daemon left; raises StartupError where the path is somebody's."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"socket {path}: something that is no socket is there; remove it, or use another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as refusal:
            if refusal.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise
            path.unlink(missing_ok=True)
            return
    raise StartupError(f"socket {path} is served by another process: stop it, or use another --socket")


@contextmanager
def tcp(where: str, *, anywhere: bool) -> Iterator[socket.socket]:
    """A TCP socket on HOST:PORT; unless `anywhere`, a loopback address only. Raises StartupError."""
    split = split_listen(where)
    if split is None:
        raise StartupError(f"listen '{where}' is not HOST:PORT")
    try:
        family, kind, number, _name, address = socket.getaddrinfo(*split, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    except OSError as refusal:
        raise StartupError(f"listen {where}: {refusal.strerror or refusal}") from None
    with listener:
        if not anywhere and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise StartupError(
                f"listen {where}: beyond loopback the token would pass in plain text; give --tls-cert and --tls-key, "
                "or --insecure-listen where something else keeps it from being read"
            )
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as refusal:
            raise StartupError(
                f"listen {where}: {refusal.strerror}; use another --listen, or --listen '' for none"
            ) from None
        yield listener
