"""Kernel settings below /proc/sys, and what they were before we changed them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from app.kernel.netlink import netns_cookie
from app.model.errors import KernelRefused, StoreFailed

log = logging.getLogger("bridgehead.kernel")

ROOT = Path("/proc/sys")
_LONGEST = 4096
_MORE = 1 << 16
"""Bytes by which the ledger's file grows until it is written anew."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_net() -> int:
    """A descriptor of /proc/sys/net as the calling thread's namespace has it, which keeps no namespace alive.

    By name it is found among those of all namespaces, one after the other, and again for each setting.
    """
    return os.open(f"{ROOT}/net", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _open(path: str, flags: int, net: int | None) -> int:
    if net is None:
        return os.open(f"{ROOT}/{path}", flags | os.O_CLOEXEC)
    return os.open(path.removeprefix("net/"), flags | os.O_CLOEXEC, dir_fd=net)


def read(path: str, net: int | None = None) -> str | None:
    """The setting's value in the calling thread's namespace, None where the kernel has no such setting.

    net: what `open_net` gave in this namespace, for a path below net/.
    """
    try:
        descriptor = _open(path, os.O_RDONLY, net)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, _LONGEST).decode().strip()
    finally:
        os.close(descriptor)


def write(path: str, value: str, net: int | None = None) -> None:
    """Raises KernelRefused."""
    try:
        descriptor = _open(path, os.O_WRONLY, net)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as refusal:
        asked = f"sysctl -w {path.replace('/', '.')}={value}"
        raise KernelRefused(refusal.errno or errno.EIO, asked) from refusal


@dataclass(frozen=True, slots=True)
class _Kept:
    """A setting's former value, ours, and what goes back with it.

    beside: what the kernel rewrites with it; first: settings changed before it, former value and ours;
    present: who was there when it was set, as the caller names them; None where that is not known.
    """

    former: str
    ours: str
    beside: dict[str, str]
    first: dict[str, tuple[str, str]] = field(default_factory=dict)
    present: tuple[str, ...] | None = None


class SysctlLedger:
    """Sets values and remembers the former ones in a file that a reboot, or another namespace, makes void.

    So it has to outlive the process, not the machine: it is not synced. Its first line is all that was known at a
    time, the others are what changed since, by setting, None for one that is kept no more: to write one costs what
    it holds, and needs no new file. A row leaves the file by `settle` only: whoever takes a change back on a full
    disk finds it there.

    net: what `open_net` gave, in the namespace of the thread that uses it.
    """

    def __init__(self, file: Path, net: int | None = None) -> None:
        self._file = file
        self._net = net
        self._epoch = f"{_BOOT_ID.read_text().strip()}/{netns_cookie()}"
        self._stored = self._load()
        self._changed = dict(self._stored)
        self._size = self._longest = 0
        """Of the file: as we left it, 0 where it is not there, or not ours to continue; and when to write it anew."""

    def _load(self) -> dict[str, _Kept]:
        found: dict[str, _Kept] = {}
        try:
            lines = self._file.read_text().splitlines(keepends=True)
            for number, line in enumerate(lines):
                if number and not line.endswith("\n"):
                    break  # whoever wrote it ended meanwhile, and had changed nothing yet
                kept = json.loads(line)
                if kept["epoch"] != self._epoch:
                    return {}
                for path, values in kept["changed"].items():
                    _put(found, str(path), None if values is None else _kept(*values))
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as failure:
            log.warning("%s cannot be read, former sysctl values are lost: %s", self._file, failure)
            return {}
        return found

    def _save(self) -> None:
        """Whole or not at all, and without a rest that keeps room. Raises StoreFailed."""
        try:
            if not self._changed:
                self._file.unlink(missing_ok=True)
                self._size = 0
            elif not self._continued():
                self._write_anew()
        except OSError as refusal:
            reason = f"{self._file}, with former settings, cannot be written ({refusal.strerror})"
            raise StoreFailed(f"{reason}; nothing was changed") from refusal
        self._stored = dict(self._changed)

    def _line(self, rows: Mapping[str, _Kept | None]) -> bytes:
        changed = {path: None if kept is None else astuple(kept) for path, kept in rows.items()}
        return json.dumps({"epoch": self._epoch, "changed": changed}).encode() + b"\n"

    def _continued(self) -> bool:
        """One line more, where the file is as we left it and has room for it. Raises OSError."""
        if not 0 < self._size < self._longest:
            return False
        both = self._changed.keys() | self._stored.keys()
        new = {path: self._changed.get(path) for path in both if self._changed.get(path) != self._stored.get(path)}
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if os.fstat(descriptor).st_size != self._size:
                return False
            self._size += _write_whole(descriptor, self._line(new), self._size)
        finally:
            os.close(descriptor)
        return True

    def _write_anew(self) -> None:
        """Raises OSError."""
        beside = self._file.with_suffix(".new")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                size = _write_whole(descriptor, self._line(self._changed), 0)
            finally:
                os.close(descriptor)
            beside.replace(self._file)
        except OSError:
            with contextlib.suppress(OSError):  # what it said first counts
                beside.unlink(missing_ok=True)
            raise
        self._size, self._longest = size, size + _MORE

    def settle(self) -> None:
        """What was restored stays so: it leaves the file. Where that has no room, a row too many does no harm."""
        if self._changed == self._stored:
            return
        try:
            self._save()
        except StoreFailed as failure:
            log.warning("%s", failure.detail)

    def set(self, path: str, value: str, first: Mapping[str, str] | None = None, present: Iterable[str] = ()) -> None:
        """Sets a value; its former one is on disk before. Raises KernelRefused, StoreFailed.

        first: settings that must have their values before this one, and go back after it; where ours stands
        already, those of them that are new.
        """
        current, kept = read(path, self._net), self._changed.get(path)
        if current == value and (kept is None or first is None or first.keys() <= kept.first.keys()):
            return
        if current is None:
            write(path, value, self._net)  # refused with the kernel's own words
            return
        kept = kept or self._unsettled(path, current, value)
        kept = kept or _Kept(current, value, _beside(path), present=tuple(present))
        new = {other: wanted for other, wanted in (first or {}).items() if current != value or other not in kept.first}
        before = {other: (former, wanted) for other, wanted in new.items() if (former := read(other))}
        self._keep(path, replace(kept, ours=value, first=before | kept.first))
        for other, (_former, wanted) in before.items():
            write(other, wanted)
        write(path, value, self._net)

    def _unsettled(self, path: str, current: str, value: str) -> _Kept | None:
        """The row of a setting that was restored and is set again, for the change is taken back."""
        kept = self._stored.get(path)
        return kept if kept is not None and (kept.former, kept.ours) == (current, value) else None

    def _keep(self, path: str, kept: _Kept) -> None:
        """On disk too. Raises StoreFailed."""
        former = self._changed.get(path)
        self._changed[path] = kept
        if self._stored.get(path) == kept:
            return
        try:
            self._save()
        except StoreFailed:
            self._changed.pop(path)
            if former is not None:
                self._changed[path] = former
            raise

    def restore(self, path: str) -> None:
        """Puts the former value back, unless it was as wanted from the first or somebody changed it since."""
        kept = self._changed.get(path)
        if kept is None:
            return
        current = read(path, self._net)
        if current == kept.ours:
            write(path, kept.former, self._net)
            for other, value in kept.beside.items():
                if read(other) not in (None, value):
                    write(other, value)
        elif current not in (None, kept.former):
            log.info("%s stays %s: somebody changed it since it was set to %s", path, current, kept.ours)
        if kept.first and read(path, self._net) == kept.former:
            for other, (former, ours) in kept.first.items():
                if read(other) == ours:
                    write(other, former)
        self.forget(path)

    def forget(self, path: str) -> None:
        """Leaves a setting as it is for good."""
        self._changed.pop(path, None)

    def preceded(self, path: str) -> frozenset[str]:
        """The settings that go back with this one, which we changed."""
        kept = self._changed.get(path)
        return frozenset(kept.first) if kept is not None else frozenset()

    def present(self, path: str) -> tuple[str, ...] | None:
        """Who was there when we changed the setting; None where we did not, or an older daemon did."""
        kept = self._changed.get(path)
        return kept.present if kept is not None else None

    def former(self, path: str, current: str) -> str | None:
        """What a setting was before we set it to `current`; None where we did not."""
        kept = self._changed.get(path)
        return kept.former if kept is not None and kept.ours == current else None

    def held(self) -> list[str]:
        """The settings that we changed."""
        return list(self._changed)


def _put(rows: dict[str, _Kept], path: str, kept: _Kept | None) -> None:
    if kept is None:
        rows.pop(path, None)
    else:
        rows[path] = kept


def _write_whole(descriptor: int, data: bytes, size: int) -> int:
    """Appends it to a file of this size, and returns its length; as it was, where it does not fit. Raises OSError."""
    try:
        written = os.write(descriptor, data)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
    if written < len(data):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return written


def _kept(
    former: str,
    ours: str,
    beside: dict[str, str],
    first: dict[str, list[str]] | None = None,
    present: Iterable[str] | None = None,
) -> _Kept:
    """What stands in the file; the first daemons wrote three values only."""
    pairs = {str(path): (str(pair[0]), str(pair[1])) for path, pair in (first or {}).items()}
    values = {str(path): str(value) for path, value in beside.items()}
    known = None if present is None else tuple(str(one) for one in present)
    return _Kept(str(former), str(ours), values, pairs, known)


def _beside(path: str) -> dict[str, str]:
    """What the kernel itself rewrites with the host's forwarding: every link's, and whether redirects are taken.

    Documentation/networking/ip-sysctl: "this variable is special, its change resets all configuration".
    """
    more = {"net/ipv4/ip_forward": ["net/ipv4/conf/all/accept_redirects"], "net/ipv6/conf/all/forwarding": []}
    if path not in more:
        return {}
    family = "/".join(path.split("/")[:2])
    links = (link.name for link in (ROOT / family / "conf").iterdir() if link.name != "all")
    values = {path: read(path) for path in (*more[path], *(f"{family}/conf/{name}/forwarding" for name in links))}
    return {path: value for path, value in values.items() if value is not None}
