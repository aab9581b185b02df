"""A Bridgehead daemon in a sandbox: start, stop, kill, start again, and its client."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import httpx

from app.sandbox.launcher import LAUNCHER, Running, run_command
from app.sandbox.ns import Ns

READY_WITHIN = 10.0
STOP_WITHIN = 15.0
_LOG_TAIL = 4000
_POLL = 0.005
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would load every CA certificate for each client


class Machine(Protocol):
    """Where a daemon runs: what it needs to know of a sandbox."""

    directory: Path
    mounts: int
    host: Ns


class DaemonFailed(AssertionError):
    """The daemon did not come up or go down; the message ends with its log's tail."""


class Daemon:
    """Its state directory and socket outlive it, so that the next start finds what the last one left.

    command: run `python -m app.cli serve` instead of forking a prepared process. values: further settings by
    field name. entry: dotted paths of the function to run and of the class of its one argument.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        name: str = "",
        firewall: str = "auto",
        listen: str = "",
        pool: Sequence[str] = (),
        command: bool = False,
        values: Mapping[str, Any] | None = None,
        entry: tuple[str, str] = ("app.main:run", "app.settings:Settings"),
    ) -> None:
        home = machine.directory / name if name else machine.directory
        home.mkdir(exist_ok=True)
        self.socket, self.state_dir, self.log_file = home / "api.sock", home / "state", home / "daemon.log"
        self.values: dict[str, Any] = {
            "socket": str(self.socket),
            "state_dir": str(self.state_dir),
            "listen": listen,
            "firewall": firewall,
            **({"pool": list(pool)} if pool else {}),
            **(values or {}),
        }
        """The settings of the next start; they may be changed in between."""
        self.command = command
        self._machine = machine
        self._target, self._settings = entry
        self._process: Running | None = None
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket), verify=_NO_TLS),
            base_url="http://bridgehead",
            timeout=60.0,
            trust_env=False,
        )

    @property
    def pid(self) -> int:
        if self._process is None:
            raise DaemonFailed("the daemon was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Everything that it wrote, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def launch(self) -> None:
        """Starts the process, and does not wait until it is ready."""
        if self.running:
            raise DaemonFailed(f"the daemon is running already, pid {self.pid}")
        log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with self._machine.host.opened() as netns:
                if self.command:
                    self._process = run_command(netns, self._machine.mounts, log, self.arguments())
                else:
                    self._process = LAUNCHER.fork(
                        netns,
                        self._machine.mounts,
                        log,
                        target=self._target,
                        settings=self._settings,
                        values=self.values,
                    )
        finally:
            os.close(log)

    def arguments(self) -> list[str]:
        """The settings as arguments of `bridgehead`."""
        arguments = ["serve"]
        for field, value in self.values.items():
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{field.replace('_', '-')}", str(one)]
        return arguments

    def start(self) -> Self:
        """Starts it and waits until it is ready. Raises DaemonFailed."""
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self, timeout: float = READY_WITHIN) -> None:
        deadline = time.monotonic() + timeout
        last = "no answer yet"
        while time.monotonic() < deadline:
            if not self.running:
                raise DaemonFailed(f"the daemon ended with {self.exit_code()}{self._tail()}")
            try:
                answer = self.client.get("/readyz", timeout=timeout)
                if answer.is_success:
                    return
                last = f"{answer.status_code}: {answer.text[:500]}"
            except httpx.TransportError as failure:
                last = str(failure)
            time.sleep(_POLL)
        raise DaemonFailed(f"the daemon was not ready within {timeout} s; last: {last}{self._tail()}")

    def exit_code(self, timeout: float = STOP_WITHIN) -> int:
        """Waits until it has ended. Negative: the number of the signal that ended it. Raises DaemonFailed."""
        if self._process is None:
            raise DaemonFailed("the daemon was not started")
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DaemonFailed(f"the daemon did not end within {timeout} s{self._tail()}") from None

    def stop(self) -> int:
        """SIGTERM; returns the exit code. Raises DaemonFailed, and kills it, where it does not end."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self.exit_code()
        except DaemonFailed:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self.exit_code()

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def close(self) -> None:
        """Ends it without ceremony."""
        self.client.close()
        self.kill()

    def _tail(self) -> str:
        return f"\n--- {self.log_file} ---\n{self.log()[-_LOG_TAIL:]}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()
