"""A thread's system calls, counted by ptrace(2): no tool, and no layout of registers."""

import ctypes
import os
import platform
import signal
import struct
import threading
from collections import Counter
from contextlib import suppress

_SYSCALL, _SEIZE, _INTERRUPT, _SYSCALL_INFO = 24, 0x4206, 0x4207, 0x420E
_TELL_APART, _EVENT_STOP = 1, 128  # PTRACE_O_TRACESYSGOOD, PTRACE_EVENT_STOP
_ENTRY, _EXIT = 1, 2  # PTRACE_SYSCALL_INFO_*
_AGAIN = (-512, -513, -514, -516)
"""ERESTART*, linux/errno.h: the kernel starts it anew, as it does the write of a setting while others hold rtnl."""
_OF_A_CALL = signal.SIGTRAP | 0x80
_WALL = 0x40000000
_INFO = struct.Struct("=B3xIQQq")
_NUMBERS = {
    "x86_64": {
        "futex": 202, "poll": 7, "ppoll": 271, "select": 23, "pselect6": 270, "epoll_wait": 232, "epoll_pwait": 281,
        "sched_yield": 24, "restart_syscall": 219, "rt_sigprocmask": 14, "gettid": 186, "clone": 56, "clone3": 435,
        "recvfrom": 45, "recvmsg": 47, "brk": 12, "mmap": 9, "munmap": 11, "mremap": 25, "mprotect": 10, "madvise": 28,
    },
    "aarch64": {
        "futex": 98, "ppoll": 73, "pselect6": 72, "epoll_pwait": 22,
        "sched_yield": 124, "restart_syscall": 128, "rt_sigprocmask": 135, "gettid": 178, "clone": 220, "clone3": 435,
        "recvfrom": 207, "recvmsg": 212,
        "brk": 214, "mmap": 222, "munmap": 215, "mremap": 216, "mprotect": 226, "madvise": 233,
    },
}  # fmt: skip
"""By name and number: waits, the threads that are started where none is free, and the reads that answers and events
come in, all of which are the scheduler's affair; and memory, which the allocator asks for when it runs out."""
_UNCOUNTED = frozenset(_NUMBERS.get(platform.machine(), {}).values())


class Tracer:
    """Counts from its making until the thread, of another process, ends. denied: why it does not, empty if it does."""

    def __init__(self, thread):
        self.denied = "" if _UNCOUNTED else f"the numbers of system calls on {platform.machine()} are not known"
        self._thread = thread
        self._ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self._ptrace.restype = ctypes.c_long
        self._ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._info = ctypes.create_string_buffer(88)
        self._number = -1
        self._counts = Counter()
        self._begun = threading.Event()
        # one thread of ours asks for all, for the kernel takes it from no other
        self._follower = threading.Thread(target=self._follow, name="tracer", daemon=True)
        self._follower.start()
        self._begun.wait()

    def counts(self):
        """By number, of those that count: ausyscall(8) names them."""
        return Counter(self._counts)

    def close(self):
        """Once the traced process has ended."""
        self._follower.join()

    def _ask(self, request, address=None, data=None):
        ctypes.set_errno(0)
        answer = self._ptrace(request, self._thread, address, data)
        if answer == -1:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return answer

    def _follow(self):
        try:
            self._ask(_SEIZE, None, _TELL_APART)
            self._ask(_INTERRUPT)
            while self._goes_on():
                self._begun.set()
        except OSError as refusal:
            self.denied = f"ptrace: {refusal}"
        finally:
            self._begun.set()

    def _goes_on(self):
        """Waits until it stops, and has it go on; False where it has ended."""
        _thread, status = os.waitpid(self._thread, _WALL)
        if not os.WIFSTOPPED(status):
            return False
        given = os.WSTOPSIG(status)
        # killed while it stands, it is not there to be asked; its end is told next
        with suppress(ProcessLookupError):
            if given == _OF_A_CALL:
                self._count()
            ours = given == _OF_A_CALL or status >> 16 == _EVENT_STOP
            self._ask(_SYSCALL, None, 0 if ours else given)
        return True

    def _count(self):
        self._ask(_SYSCALL_INFO, len(self._info), self._info)
        operation, _arch, _ip, _sp, value = _INFO.unpack_from(self._info)
        if operation == _ENTRY:
            self._number = value
        elif operation == _EXIT and self._number not in _UNCOUNTED and value not in _AGAIN:
            self._counts[self._number] += 1
