"""The audit log's own file, beside what the daemon's log has of it."""

from __future__ import annotations

import io
import logging
import os
from logging.handlers import WatchedFileHandler

from app.model.errors import StartupError

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class _File(WatchedFileHandler):
    """Mode 0600, and made anew where somebody moved it away to rotate it."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, _FLAGS, 0o600)
        return io.TextIOWrapper(open(descriptor, "ab"), encoding="utf-8")


def open_file(path: str) -> None:
    """Writes the audit log there too, unless empty. Raises StartupError."""
    if not path:
        return
    try:
        handler = _File(path, mode="a")
    except OSError as refusal:
        raise StartupError(f"--audit-log {path} cannot be written: {refusal.strerror}") from None
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("bridgehead.audit").addHandler(handler)
