"""Which of the namespaces that are served come and go: by their mounts, and by the processes they are named for."""

from __future__ import annotations

import os
import select
from collections.abc import Collection

from app.kernel.nsfiles import Identity, path_of, start_time
from app.model.errors import NamespaceMissing
from app.model.spec import NetnsKind, NetnsRef


class NamespaceWatch:
    """Looks at files and processes and holds none of the namespaces. One thread.

    mounts: readable by poll(2) where the mount table has changed (proc(5), mounts).
    """

    def __init__(self) -> None:
        self.mounts = os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._seen: dict[NetnsKind, dict[NetnsRef, Identity | None]] = {kind: {} for kind in NetnsKind}
        self._processes: dict[NetnsRef, int] = {}

    def close(self) -> None:
        os.close(self.mounts)
        for ref in list(self._processes):
            self._drop_process(ref)

    def processes(self) -> Collection[int]:
        """Descriptors that are readable once a process has ended."""
        return self._processes.values()

    def keep(self, refs: Collection[NetnsRef]) -> dict[NetnsRef, bool]:
        """Watches these and no others; gives back the new ones, and whether they are there."""
        kept = set(refs)
        for seen in self._seen.values():
            for ref in seen.keys() - kept:
                del seen[ref]
                self._drop_process(ref)
        new = {ref: self._identity(ref) for ref in refs if ref not in self._seen[ref.kind]}
        for ref, found in new.items():
            self._seen[ref.kind][ref] = found
        return {ref: found is not None for ref, found in new.items()}

    def look(self, *kinds: NetnsKind) -> set[NetnsRef]:
        """Those of these kinds that are not what they were at the last look."""
        changed: set[NetnsRef] = set()
        for kind in kinds:
            for ref, before in self._seen[kind].items():
                now = self._identity(ref)
                if now != before:
                    self._seen[kind][ref] = now
                    changed.add(ref)
        return changed

    def _identity(self, ref: NetnsRef) -> Identity | None:
        """None where nothing is there; an ended process has no namespace, whoever has its number now."""
        if ref.kind is NetnsKind.PID and not self._lives(ref):
            return None
        try:
            status = os.stat(path_of(ref))
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _lives(self, ref: NetnsRef) -> bool:
        if ref not in self._processes:
            try:
                self._processes[ref] = os.pidfd_open(int(ref.value))
                if start_time(int(ref.value)) != ref.start_time:
                    self._drop_process(ref)
                    return False
            except (OSError, NamespaceMissing):
                self._drop_process(ref)
                return False
        ended = select.poll()
        ended.register(self._processes[ref], select.POLLIN)
        if ended.poll(0):
            self._drop_process(ref)
            return False
        return True

    def _drop_process(self, ref: NetnsRef) -> None:
        descriptor = self._processes.pop(ref, None)
        if descriptor is not None:
            os.close(descriptor)
