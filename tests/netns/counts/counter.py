"""A daemon that counts what it asks of others, in memory that the test sees: in place of `app.main:run`.

Only requests are counted: nothing wakes its worker but them, neither the monitor nor a timer.
"""

import mmap
import socket
import struct
import threading
from functools import wraps
from pathlib import Path
from typing import NamedTuple

FILE = "counts"
_FIELDS = ("netlink", "statements", "commits", "firewall", "dumps", "submitted", "held", "idle", "worker")
HOLD, HELD = 1, 2
_NETFILTER, _CT_GET, _DUMP = 12, 0x101, 0x300
_HEADER = struct.Struct("=IHH")
_OTHERS = ("MainThread", "monitor")
"""Threads that no change waits for: who connects is asked on one, events are followed on the other."""


class Counts(NamedTuple):
    """netlink: messages by sockets of ours. statements: SQL, commits among them. firewall: transactions, listings.

    dumps: of conntrack, which are netlink messages too. calls: the worker's system calls; 0 where nobody counts.
    """

    netlink: int
    statements: int
    commits: int
    firewall: int
    dumps: int
    calls: int = 0


class Board:
    """Beside the state directory, shared by daemon and test.

    submitted: changes that the worker was given. held: HOLD has the worker stay in its next look at the host, HELD
    is its word that it does, 0 lets it go.
    idle: whether it waits for something to do. worker: its thread's id.
    """

    def __init__(self, state_dir):
        path = Path(state_dir).with_name(FILE)
        size = 8 * len(_FIELDS)
        if not path.exists():
            path.write_bytes(bytes(size))
        with open(path, "r+b") as file:
            self._values = memoryview(mmap.mmap(file.fileno(), size)).cast("q")
        self._lock = threading.Lock()

    def __getitem__(self, name):
        return self._values[_FIELDS.index(name)]

    def __setitem__(self, name, value):
        self._values[_FIELDS.index(name)] = value

    def add(self, name, number=1):
        with self._lock:
            self[name] += number

    def counts(self):
        return Counts(*self._values[:5])


def _before(owner, name, work):
    """Has work done before each call of a function, which gets what that is called with."""
    original = getattr(owner, name)

    @wraps(original)
    def counted(*arguments, **options):
        work(*arguments, **options)
        return original(*arguments, **options)

    setattr(owner, name, counted)


def _count_messages(board):
    send = socket.socket.send

    def counted(self, data, *flags):
        if self.family == socket.AF_NETLINK and threading.current_thread().name not in _OTHERS:
            start = 0
            while start < len(data):
                length, kind, given = _HEADER.unpack_from(data, start)
                board.add("netlink")
                if self.proto == _NETFILTER and kind == _CT_GET and given & _DUMP == _DUMP:
                    board.add("dumps")
                start += (length + 3) & ~3
        return send(self, data, *flags)

    socket.socket.send = counted


def _count_statements(board):
    from sqlalchemy import Engine, event

    def traced(statement):
        if threading.current_thread().name == "worker":
            board.add("statements")
            if statement.strip().upper().startswith("COMMIT"):
                board.add("commits")

    event.listen(Engine, "connect", lambda raw, _record: raw.set_trace_callback(traced))


def _count_transactions(board, *, iptables):
    from app.firewall.libnftables import Libnftables
    from app.firewall.nfnetlink import Nfnetlink

    owners = [(Libnftables, "run"), (Libnftables, "list"), (Nfnetlink, "change")]
    if iptables:
        from app.firewall.xtables import Handle

        owners.append((Handle, "commit"))
    for owner, name in owners:
        _before(owner, name, lambda *_arguments, **_options: board.add("firewall"))


def _tell_of_worker(board):
    from app.reconcile.worker import Worker

    next_batch, look = Worker._next_batch, Worker._look

    def watched(self):
        board["worker"], board["idle"] = threading.get_native_id(), 1
        try:
            return next_batch(self)
        finally:
            board["idle"] = 0

    def held(self, asked):
        look(self, asked)
        if board["held"]:
            board["held"], board["idle"] = HELD, 0
            while board["held"]:
                pause.wait(0.001)

    pause = threading.Event()
    Worker._next_batch, Worker._look = watched, held
    Worker.report = lambda _self, _found: None
    _before(Worker, "submit", lambda *_arguments: board.add("submitted"))


def run(settings):
    from app import main

    board = Board(settings.state_dir)
    _count_messages(board)
    _count_statements(board)
    _count_transactions(board, iptables=settings.firewall == "iptables")
    _tell_of_worker(board)
    return main.run(settings)
