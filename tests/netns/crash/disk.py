"""A state directory on a file system of its own, which can be full: mounted in the sandbox alone, it goes with it."""

import fcntl
import os
import resource
import struct
from contextlib import contextmanager, suppress
from functools import partial

from crash.victim import Victim

from app.kernel import libc
from app.sandbox import eventually

PAGE = 4096
PLENTY = 16384
"""Pages: more than any test needs."""
_MS_RDONLY, _MS_REMOUNT = 1, 32
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


class Disk:
    """A tmpfs; from outside it is reached by a descriptor."""

    def __init__(self, stack, host, path):
        self._host, self._path = host, str(path)
        path.mkdir(mode=0o700)
        host.run(partial(libc.mount, "tmpfs", self._path, "tmpfs", 0, f"size={PLENTY * PAGE},mode=700"))
        self._root = host.run(partial(os.open, self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        stack.callback(os.close, self._root)

    def _remount(self, flags=0, data=None):
        self._host.run(partial(libc.mount, "none", self._path, "none", _MS_REMOUNT | flags, data))

    @property
    def room(self):
        """Pages."""
        return os.statvfs(self._root).f_bavail

    def leave(self, pages):
        """So much room, whatever there is."""

        def left():
            found = os.statvfs(self._root)
            # what is used may be less or more by the time that it is said
            with suppress(OSError):
                self._remount(data=f"size={(found.f_blocks - found.f_bfree + pages) * PAGE}")
            return self.room == pages

        eventually(left, what=f"{pages} pages of room")

    @contextmanager
    def read_only(self):
        """While nobody has a file there open to write."""
        self._remount(_MS_RDONLY)
        try:
            yield
        finally:
            self._remount()

    @contextmanager
    def immutable(self, name):
        """A file that nobody opens to write (chattr +i); whoever has it open may go on."""
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        try:
            former = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", struct.unpack("l", former)[0] | _IMMUTABLE))
            try:
                yield
            finally:
                fcntl.ioctl(descriptor, _SET_FLAGS, former)
        finally:
            os.close(descriptor)


@contextmanager
def writes_refused(pid):
    """The database cannot be written by whoever has it open either, as on a disk that the kernel took out of use.

    Done by a limit: what goes beyond a file's first page fails. Small files, as those of namespaces, can be written.
    """
    former = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (PAGE, former[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, former)


class OnDisk(Victim):
    """Its state directory is on a disk of its own."""

    def place(self, stack):
        self.disk = Disk(stack, self.sandbox.host, self.daemon.state_dir)
