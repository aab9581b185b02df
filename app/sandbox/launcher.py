"""Starting daemons: forked from a prepared process (fast), or as the real command."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from app.sandbox.inside import enter, in_thread

# what a start needs, also where the daemon itself imports it late to save memory
_PRELOAD: tuple[str, ...] = (
    "app.main",
    "app.settings",
    "app.firewall.iptables",
    "app.store.migrate",
    "alembic.command",
)
_NUMBER = struct.Struct("=i")
_PACKAGES = str(Path(__file__).resolve().parents[2])


class Running(Protocol):
    """A daemon's process."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """The exit code (negative: a signal's number), None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""


class Forked:
    """A child of the zygote: its pipe gives the pid, then the exit code."""

    def __init__(self, report: int) -> None:
        self._report = report
        self._code: int | None = None
        self.pid = self._number()
        if self.pid < 0:
            os.close(report)
            raise ChildProcessError("the process that forks daemons has died; its output says why")
        # a pidfd never names another process that got the number since
        self._pidfd: int | None = None
        with contextlib.suppress(ProcessLookupError):  # it has ended already: its exit code waits in the pipe
            self._pidfd = os.pidfd_open(self.pid)

    def _number(self) -> int:
        data = os.read(self._report, _NUMBER.size)
        return int(_NUMBER.unpack(data)[0]) if data else -signal.SIGKILL

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("daemon", timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self._code is None:
            poller = select.poll()
            poller.register(self._report, select.POLLIN)
            if poller.poll(None if timeout is None else timeout * 1000):
                self._code = self._number()
                os.close(self._report)
                if self._pidfd is not None:
                    os.close(self._pidfd)
        return self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None and self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


def environment() -> dict[str, str]:
    """Ours, without what would change a daemon's settings, and with the package findable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGEHEAD_")}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [_PACKAGES, kept.get("PYTHONPATH")]))
    return kept


class Launcher:
    """The one zygote of this process, started when it is first wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._preload = _PRELOAD

    def preload(self, *modules: str) -> None:
        """Which modules the zygote imports; to be called before it starts."""
        self._preload = modules

    def warm_up(self) -> None:
        """Starts the zygote and returns at once: it imports while others build sandboxes."""
        with self._lock:
            self._connected()

    def _connected(self) -> socket.socket:
        if self._control is None or self._zygote is None or self._zygote.poll() is not None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._zygote = subprocess.Popen(
                    [sys.executable, "-m", "app.sandbox.zygote", str(theirs.fileno()), *self._preload],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C is for the parent, which stops the daemons in order
                )
            if self._control is not None:
                self._control.close()
            self._control = ours
        return self._control

    def fork(
        self, netns: int, mounts: int, log: int, *, target: str, settings: str, values: Mapping[str, Any]
    ) -> Forked:
        """Calls `target(settings(**values))` in a new process inside the namespaces, its output in `log`."""
        request = {"target": target, "settings": settings, "values": dict(values), "cwd": os.getcwd()}
        reading, writing = os.pipe()
        try:
            with self._lock:
                control = self._connected()
                socket.send_fds(control, [json.dumps(request).encode()], [netns, mounts, log, writing])
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return Forked(reading)

    def shut_down(self) -> None:
        """Ends the zygote, and with it every daemon that it forked."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._zygote is not None:
                self._zygote.wait()
            self._control = self._zygote = None


LAUNCHER = Launcher()
atexit.register(LAUNCHER.shut_down)


def run_command(netns: int, mounts: int, log: int, args: Sequence[str]) -> subprocess.Popen[bytes]:
    """The real command, `python -m app.cli ...`, inside the namespaces: a child has its parent thread's."""
    cwd = os.getcwd()

    def inside() -> subprocess.Popen[bytes]:
        enter(netns, mounts)
        return subprocess.Popen(
            [sys.executable, "-m", "app.cli", *args],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    return in_thread(inside)
