"""Sandboxes: a host, an internet and a client out there, for tests, the demo and the benchmarks."""

from app.sandbox.daemon import Daemon, DaemonFailed
from app.sandbox.launcher import LAUNCHER
from app.sandbox.machine import (
    CLIENT,
    CLIENT6,
    GATEWAY,
    GATEWAY6,
    HOST,
    HOST6,
    HOST6_SECOND,
    HOST_SECOND,
    SERVER,
    SERVER6,
    Sandbox,
)
from app.sandbox.ns import Ns
from app.sandbox.snapshots import Snapshot, machine_view, snapshot
from app.sandbox.waiting import eventually

__all__ = [
    "CLIENT",
    "CLIENT6",
    "GATEWAY",
    "GATEWAY6",
    "HOST",
    "HOST6",
    "HOST6_SECOND",
    "HOST_SECOND",
    "LAUNCHER",
    "SERVER",
    "SERVER6",
    "Daemon",
    "DaemonFailed",
    "Ns",
    "Sandbox",
    "Snapshot",
    "eventually",
    "machine_view",
    "snapshot",
]
