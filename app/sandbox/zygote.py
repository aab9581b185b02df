"""A process that has the daemon's libraries imported and forks a daemon wherever it is asked for.

Importing takes a second, a fork a few milliseconds. Unlike multiprocessing's fork server, this one ends with its
parent, however that ends, and its children with it.

Run as `python -m app.sandbox.zygote CONTROL_FD MODULE...`. A request is one packet: JSON, and the descriptors of
the network namespace, the mount namespace, the log and the pipe that the child's pid and exit code are written to.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import traceback
from typing import Any, NoReturn

from app.sandbox.inside import enter

NUMBER = struct.Struct("=i")
LARGEST_REQUEST = 65536
_DESCRIPTORS = 4
_PR_SET_PDEATHSIG = 1


class Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.PollSelector()  # unlike epoll it has no descriptor for children to inherit
        self._selector.register(control, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, int]] = {}
        """By pidfd: pid, and the pipe that waits for its exit code."""

    def serve(self) -> None:
        """Until the parent is gone; the children follow by PR_SET_PDEATHSIG."""
        while True:
            for key, _events in self._selector.select():
                if key.fd in self._children:
                    self._reap(key.fd)
                elif not self._fork():
                    return

    def _fork(self) -> bool:
        message, descriptors, _flags, _peer = socket.recv_fds(self._control, LARGEST_REQUEST, _DESCRIPTORS)
        if not message:
            return False
        netns, mounts, log, report = descriptors
        pid = os.fork()
        if pid == 0:
            self._forget_all(report)
            _become_daemon(json.loads(message), netns, mounts, log)
        os.write(report, NUMBER.pack(pid))
        for descriptor in (netns, mounts, log):
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid, report
        self._selector.register(pidfd, selectors.EVENT_READ)
        return True

    def _reap(self, pidfd: int) -> None:
        pid, report = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        _pid, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for this one any more
            os.write(report, NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os.close(report)
        os.close(pidfd)

    def _forget_all(self, report: int) -> None:
        """In the child: a pipe that stays open here would hide the end of its other holder."""
        self._control.close()
        os.close(report)
        for pidfd, (_pid, pipe) in self._children.items():
            os.close(pidfd)
            os.close(pipe)


def _become_daemon(request: dict[str, Any], netns: int, mounts: int, log: int) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        enter(netns, mounts)
        os.chdir(request["cwd"])
        os.dup2(log, 1)
        os.dup2(log, 2)
        for descriptor in (netns, mounts, log):
            os.close(descriptor)
        settings = _named(request["settings"])(**request["values"])
        code = int(_named(request["target"])(settings) or 0)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _named(path: str) -> Any:
    """What a path such as `app.main:run` names."""
    module, _colon, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        with contextlib.suppress(Exception):  # the child imports it again, and its log tells why it fails
            importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # collections in the children leave the shared pages shared
    Zygote(control).serve()


if __name__ == "__main__":
    main()
