"""The legacy tables by python-iptables, rule by rule; nothing else imports iptc.

python-iptables takes no lock, and its tables are singletons of the process. So the lock of iptables(8)
is held from refresh to commit, and one thread only comes here. A table travels whole: a transaction
reads and writes it once.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import iptc

from app.firewall.rules import PREFIX, Rule, Table
from app.firewall.xt_values import NAT_REVISIONS, nat_target, sample_of, with_values
from app.model.errors import KernelRefused
from app.model.spec import Version

LOCK_FILE = Path("/run/xtables.lock")
_COMMIT_TRIES = 5
_VERDICTS = frozenset({"ACCEPT", "DROP", "RETURN"})
_NAME_END = 31  # xt_entry_match and xt_entry_target: u16 size, char name[29], u8 revision
_INTERFACE_NAME = 16


@dataclass(frozen=True, slots=True)
class _Entry:
    """A rule as libiptc takes it, with its mask for deleting; and what of it the kernel gives back, as numbers."""

    buffer: Any
    mask: Any
    match_bits: int
    match_mask: int


class Handle:
    """A table of the calling thread's namespace within a transaction."""

    def __init__(self, table: Table) -> None:
        kind = iptc.Table if table.version == 4 else iptc.Table6
        self._table = kind(table.name, autocommit=False)
        self._table.refresh()
        self._version = table.version

    def close(self) -> None:
        """Drops what was not committed, and the socket, which would hold the namespace."""
        self._table.close()

    def commit(self) -> None:
        self._table.commit()

    def chains(self) -> list[str]:
        return [chain.name for chain in self._table.chains]

    def has(self, chain: str) -> bool:
        return bool(self._table.is_chain(chain))

    def ensure_chain(self, chain: str) -> None:
        """Makes a chain of ours; other names are verdicts, extensions and built-in chains."""
        if chain.startswith(PREFIX) and not self.has(chain):
            self._table.create_chain(chain)

    def delete_chain(self, chain: str) -> None:
        self._table.delete_chain(chain)

    def flush(self, chain: str) -> None:
        self._table.flush_entries(chain)

    def drop_if_idle(self, chain: str) -> None:
        """Removes a chain of ours that is empty and that nothing jumps to."""
        if not chain.startswith(PREFIX) or not self.has(chain):
            return
        if not self._table.first_rule(chain) and not self.references(chain):
            self._table.delete_chain(chain)

    def references(self, chain: str) -> int:
        """How many rules jump to a chain."""
        count = ctypes.c_uint()
        self._table._iptc.iptc_get_references(ctypes.byref(count), chain.encode(), self._table._handle)
        return count.value

    def append(self, chain: str, rule: Rule) -> None:
        self._table.append_entry(chain, _entry(self._version, rule).buffer)

    def insert(self, chain: str, rule: Rule) -> None:
        """In front of all others."""
        self._table.insert_entry(chain, _entry(self._version, rule).buffer, 0)

    def delete(self, chain: str, rule: Rule) -> None:
        entry = _entry(self._version, rule)
        self._table.delete_entry(chain, entry.buffer, entry.mask)

    def delete_at(self, chain: str, position: int) -> None:
        table = self._table
        if table._iptc.iptc_delete_num_entry(chain.encode(), position, table._handle) != 1:
            raise iptc.IPTCError(f"can't delete entry {position} of chain {chain}: {table.strerror()}")

    def entries(self, chain: str) -> Iterator[Any]:
        """The kernel's entries, valid until the chain changes."""
        entry = self._table.first_rule(chain)
        while entry:
            yield entry
            entry = self._table.next_rule(entry)

    def target(self, entry: Any) -> str:
        """An entry's verdict, chain or extension."""
        target = self._table.get_target(entry)
        return target.decode() if target else ""

    def same(self, entry: Any, rule: Rule) -> bool:
        """Whether an entry is this rule: compared as libiptc does, all but counters and pointers."""
        wanted = _entry(self._version, rule)
        if self.target(entry) != rule.target or entry.next_offset != len(wanted.buffer):
            return False
        return (_bits(entry) ^ wanted.match_bits) & wanted.match_mask == 0

    def same_in_order(self, entries: Sequence[Any], rules: Sequence[Rule]) -> bool:
        """Whether both are the same rules one by one."""
        return len(entries) == len(rules) and all(map(self.same, entries, rules))

    def same_in_any_order(self, entries: Sequence[Any], rules: Sequence[Rule]) -> bool:
        """Whether both are the same rules, each as often."""
        if len(entries) != len(rules):
            return False
        left: Counter[tuple[str, int, int, int]] = Counter()
        masks: dict[tuple[str, int], set[int]] = {}
        for rule in rules:
            wanted = _entry(self._version, rule)
            size = len(wanted.buffer)
            left[rule.target, size, wanted.match_mask, wanted.match_bits & wanted.match_mask] += 1
            masks.setdefault((rule.target, size), set()).add(wanted.match_mask)
        for entry in entries:
            shape, bits = (self.target(entry), entry.next_offset), _bits(entry)
            keys = ((*shape, mask, bits & mask) for mask in masks.get(shape, ()))
            key = next((key for key in keys if left[key]), None)
            if key is None:
                return False
            left[key] -= 1
        return True


def transaction(table: Table, change: Callable[[Handle], bool]) -> None:
    """Refresh, change, commit where it says so, under the lock; again where the table changed in between."""
    asked = f"{table.program}-restore --noflush (table {table.name})"
    for attempt in range(_COMMIT_TRIES):
        with _xtables_lock():
            handle = _opened(table, asked)
            try:
                if change(handle):
                    handle.commit()
                return
            except iptc.IPTCError as refusal:
                code = iptc.ip4tc._get_errno_loc()[0]
                if code != errno.EAGAIN or attempt == _COMMIT_TRIES - 1:
                    raise KernelRefused(code, asked, str(refusal)) from refusal
            finally:
                handle.close()


def probe(table: Table) -> None:
    """Looks at a table, which loads it into the calling thread's namespace for good. Raises KernelRefused."""
    _opened(table, f"{table.program} -t {table.name} -S").close()


def _opened(table: Table, asked: str) -> Handle:
    try:
        return Handle(table)
    except iptc.IPTCError as refusal:
        module = "ip_tables" if table.version == 4 else "ip6_tables"
        reason = f"{refusal}: this kernel has no legacy table '{table.name}' for IPv{table.version}, load {module}"
        raise KernelRefused(errno.EPROTONOSUPPORT, asked, reason) from refusal


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """The lock that iptables(8) itself takes."""
    descriptor = os.open(LOCK_FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bits(entry: Any) -> int:
    return int.from_bytes(ctypes.string_at(ctypes.addressof(entry), entry.next_offset), "little")


@lru_cache(maxsize=32768)
def _entry(version: Version, rule: Rule) -> _Entry:
    """As python-iptables makes it; a published port's from one like it, for the library takes a millisecond each."""
    sample = sample_of(version, rule)
    like = _like(version, sample) if sample is not None else None
    if like is None:
        return _by_library(version, rule)
    content = with_values(version, bytes(like.buffer), rule)
    return _Entry(_array(content), like.mask, int.from_bytes(content, "little"), like.match_mask)


@lru_cache(maxsize=64)
def _like(version: Version, sample: Rule) -> _Entry | None:
    """The sample by the library; None where that lays it out in another way than we do."""
    made = _by_library(version, sample)
    buffer = bytes(made.buffer)
    return made if with_values(version, buffer, sample) == buffer else None


def _by_library(version: Version, rule: Rule) -> _Entry:
    built = _built(version, rule)
    if version == 6 and rule.target in NAT_REVISIONS:
        buffer, mask = _with_target(built, nat_target(rule))
    else:
        buffer, mask = built.rule, built.mask
    ignored = bytearray(mask)
    header = type(built.entry)
    for field in ("nfcache", "comefrom", "counters"):
        place = getattr(header, field)
        ignored[place.offset : place.offset + place.size] = bytes(place.size)
    start = ctypes.sizeof(header)
    while start < len(ignored):
        size = int.from_bytes(bytes(buffer[start : start + 2]), "little")
        name_end = start + 2 + bytes(buffer[start + 2 : start + _NAME_END]).index(0) + 1
        # behind a name's end the kernel leaves what happened to be there
        ignored[name_end : start + _NAME_END] = bytes(start + _NAME_END - name_end)
        start += size
    if _is_jump(rule.target):  # the kernel keeps verdicts and jumps as numbers; their name is compared instead
        start = built.entry.target_offset
        ignored[start:] = bytes(len(ignored) - start)
    return _Entry(buffer, _shared(bytes(mask)), int.from_bytes(bytes(buffer), "little"), _number(bytes(ignored)))


@lru_cache(maxsize=256)
def _shared(mask: bytes) -> Any:
    """Rules of one shape have one mask."""
    return _array(mask)


@lru_cache(maxsize=256)
def _number(mask: bytes) -> int:
    return int.from_bytes(mask, "little")


def _array(content: bytes) -> Any:
    return (ctypes.c_ubyte * len(content)).from_buffer_copy(content)


def _is_jump(target: str) -> bool:
    return target in _VERDICTS or target.startswith(PREFIX)


def _built(version: Version, rule: Rule) -> Any:
    """The rule in python-iptables; an IPv6 one with a NAT target accepts instead."""
    built = iptc.Rule() if version == 4 else iptc.Rule6()
    for name, value in (
        ("in_interface", rule.in_interface),
        ("out_interface", rule.out_interface),
        ("src", rule.source),
        ("dst", rule.destination),
        ("protocol", rule.protocol),
    ):
        if value:
            setattr(built, name, value)
    if version == 6:
        _compare_whole_names(built.entry.ipv6, rule)
    for name, options in rule.matches:
        _set(built.create_match(name), options)
    if version == 4 or _is_jump(rule.target):
        built.target = _target(built, rule.target)
        _set(built.target, rule.options)
    else:
        built.target = _target(built, "ACCEPT")
    built.final_check()
    return built


def _set(extension: Any, options: Iterable[tuple[str, str]]) -> None:
    for key, value in options:
        extension.set_parameter(key.replace("-", "_"), value)


def _compare_whole_names(header: Any, rule: Rule) -> None:
    """python-iptables has the kernel compare one bit of each byte of a name in IPv6: `web` would be `ueb` too."""
    for field, name in (("iniface_mask", rule.in_interface), ("outiface_mask", rule.out_interface)):
        if plain := name.removeprefix("!"):
            setattr(header, field, (b"\xff" * (len(plain) + 1)).ljust(_INTERFACE_NAME, b"\0"))


def _target(built: Any, name: str) -> Any:
    """A verdict or jump is the nameless standard target; naming it at once would load every table there is."""
    if not _is_jump(name):
        return iptc.Target(built, name)
    target = iptc.Target(built, "")
    target.standard_target = name
    return target


def _with_target(built: Any, target: bytes) -> tuple[Any, Any]:
    """A rule's buffer and mask with another target in its place."""
    buffer, mask, end = bytearray(built.rule), bytes(built.mask), built.entry.target_offset
    buffer[end:] = target
    place = type(built.entry).next_offset
    buffer[place.offset : place.offset + place.size] = len(buffer).to_bytes(place.size, "little")
    return _array(bytes(buffer)), mask[:end] + b"\xff" * len(target)
