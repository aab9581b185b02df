"""The directory of the names of namespaces, whose mounts every mount namespace is to see."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.kernel import libc


class SharedDirectory:
    """A directory, and in which mount it was when its mounts were last made to be shared."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shared: str | None = None

    def share(self) -> None:
        """Like ip-netns(8): names are to be seen in every mount namespace, whoever makes them first.

        Once for each mount that is there: it takes as long as there are names.
        """
        if self._shared is not None and _mount_of(self._path) == self._shared:
            return
        self._path.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            libc.mount("", str(self._path), "none", libc.MS_SHARED | libc.MS_REC)
        except OSError as refusal:
            if refusal.errno != errno.EINVAL:
                raise
            with _held_below(self._path) as held:
                libc.mount(str(self._path), str(self._path), "none", libc.MS_BIND | libc.MS_REC)
                libc.mount("", str(self._path), "none", libc.MS_SHARED | libc.MS_REC)
                for descriptor in held:
                    libc.umount(f"/proc/thread-self/fd/{descriptor}")
        self._shared = _mount_of(self._path)


@contextmanager
def _held_below(directory: Path) -> Iterator[list[int]]:
    """Descriptors of what is mounted in a directory, and would stay mounted twice once the directory is mounted anew.

    Then no such name could be deleted. None where mounts are shared, for there both go with either.
    """
    held: list[int] = []
    try:
        if not _is_shared(directory):
            device = directory.stat().st_dev
            for entry in directory.iterdir():
                descriptor = os.open(entry, os.O_PATH | os.O_CLOEXEC)
                held.append(descriptor)
                if os.fstat(descriptor).st_dev == device:
                    os.close(held.pop())
        yield held
    finally:
        for descriptor in held:
            os.close(descriptor)


def _mount_of(directory: Path) -> str | None:
    """What tells the mount apart that a directory is in (proc(5), fdinfo); None where it is missing."""
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/thread-self/fdinfo/{descriptor}", encoding="ascii") as lines:
            return next((line for line in lines if line.startswith("mnt_id:")), None)
    finally:
        os.close(descriptor)


def _is_shared(path: Path) -> bool:
    """Whether mounts below a path show in other mount namespaces too (proc(5), mountinfo)."""
    shared, longest = False, -1
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        fields = line.partition(" - ")[0].split()
        depth = len(Path(fields[4]).parts)
        # of those at one place the last one covers the others
        if path.is_relative_to(fields[4]) and depth >= longest:
            shared, longest = any(field.startswith("shared:") for field in fields[6:]), depth
    return shared
