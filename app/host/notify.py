"""Telling the service manager how the daemon fares (sd_notify(3)); without one, nothing."""

from __future__ import annotations

import os
import socket


def notify(*words: str) -> None:
    """Sends assignments such as `READY=1` to the manager that started us. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.sendall("\n".join(words).encode())


def watchdog_seconds() -> float | None:
    """How often the manager wants to hear `WATCHDOG=1`, None where it does not (sd_watchdog_enabled(3))."""
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 1_000_000 or None
