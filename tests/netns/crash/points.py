"""A daemon that counts what it does, and at a given point dies (SIGKILL) or is refused: in place of `app.main:run`.

Points: before and after each operation on the kernel, each change of the rules and each commit; after each send
of netlink messages, setting and system call in between.
"""

import errno
import mmap
import os
import signal
import struct
import threading
from functools import wraps
from pathlib import Path

from app.model.errors import KernelRefused

FILE = "points"
KILL, REFUSE, REFUSE_ALL = 1, 2, 3
_LAYOUT = struct.Struct("=qqqq")


class Board:
    """Beside the state directory, shared by daemon and test: how many points and operations there were, and what
    happens at which one.
    """

    def __init__(self, state_dir):
        path = Path(state_dir).with_name(FILE)
        if not path.exists():
            path.write_bytes(bytes(_LAYOUT.size))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)

    def read(self):
        """Points and operations so far, the point or operation that is aimed at, and what happens there."""
        return _LAYOUT.unpack(self._memory[:])

    def _write(self, *values):
        self._memory[:] = _LAYOUT.pack(*values)

    def aim(self, action, distance):
        """`distance` points (operations, to be refused) from now on."""
        points, operations, _target, _action = self.read()
        self._write(points, operations, (points if action == KILL else operations) + distance, action)

    def rest(self):
        points, operations, _target, _action = self.read()
        self._write(points, operations, 0, 0)

    def pass_by(self, asked, *, operation=False):
        points, operations, target, action = self.read()
        points, operations = points + 1, operations + operation
        self._write(points, operations, target, action)
        if action == KILL and points == target:
            os.kill(os.getpid(), signal.SIGKILL)
        if operation and (action == REFUSE_ALL or (action == REFUSE and operations == target)):
            raise KernelRefused(errno.ENOMEM, asked, "injected by a test")


def _wrap(board, owner, name, *, before=False, operation=False):
    original = getattr(owner, name)

    @wraps(original)
    def counted(*arguments, **options):
        if threading.current_thread().name == "removal":
            return original(*arguments, **options)  # it may go on after the answer
        asked = f"{getattr(owner, '__name__', owner)}.{name}"
        if before:
            board.pass_by(asked, operation=operation)
        result = original(*arguments, **options)
        board.pass_by(asked)
        return result

    setattr(owner, name, counted)


def install(board, *, iptables):
    """Puts the points into the daemon's own parts."""
    from app.firewall import libnftables, selection
    from app.kernel import libc, linux, ports, removal, sysctl, wire
    from app.reconcile.batch import Requests
    from app.store.repository import Repository

    _wrap(board, linux.LinuxKernel, "apply", before=True, operation=True)
    _wrap(board, linux.LinuxKernel, "remove", before=True, operation=True)
    _wrap(board, removal.Removal, "delete", before=True)
    _wrap(board, removal.Removal, "unlink", before=True)
    _wrap(board, selection.HostFirewall, "apply", before=True, operation=True)
    _wrap(board, Requests, "_commit", before=True)
    _wrap(board, Repository, "flush")
    _wrap(board, wire.Netlink, "request")
    _wrap(board, wire.Netlink, "ask_all")
    _wrap(board, sysctl, "write")
    _wrap(board, sysctl, "_write_whole")
    _wrap(board, libc, "_call")
    _wrap(board, ports.PortReservations, "change")
    _wrap(board, libnftables.Libnftables, "run")
    if iptables:
        import iptc

        for table in (iptc.Table, iptc.Table6):
            if "commit" in vars(table):
                _wrap(board, table, "commit")


def run(settings):
    from app import main

    install(Board(settings.state_dir), iptables=settings.firewall == "iptables")
    return main.run(settings)


def notices_late(settings):
    """It does not look for room before a change: so the kernel is changed, and then a write fails somewhere."""
    from app.reconcile import batch

    batch.require_room = lambda _engine: None
    return run(settings)


def checkpoints(settings):
    """The same, and each commit is followed by a checkpoint: the database's own file is written all the time."""
    from sqlalchemy import event

    from app import main

    open_database = main.open_database

    def opened(url):
        engine = open_database(url)
        event.listen(engine, "connect", lambda raw, _record: raw.execute("PRAGMA wal_autocheckpoint=1").close())
        engine.dispose()
        return engine

    main.open_database = opened
    return notices_late(settings)


def impatient(settings):
    """It tries again after 50 ms first, instead of 5 s, and logs how long it will wait each time."""
    import logging

    from app.reconcile import worker

    worker._HEAL_AGAIN = 0.05
    schedule = worker.Worker._schedule

    def told(self, lacking):
        schedule(self, lacking)
        if lacking:
            logging.getLogger("bridgehead.worker").info("tried again in %g s", self._patience)

    worker.Worker._schedule = told
    return run(settings)
