"""floor.c, compiled where a C compiler is installed, and its process in a sandbox's host."""

import atexit
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from app.sandbox import eventually
from bench.http import Client

_STARTS_WITHIN = 30.0
_SOURCE = Path(__file__).with_name("floor.c")
GROUP = 7777
"""Link group of what it makes."""
BRIDGE = "floor0"
PREFIX, GATEWAY, FIRST = 16, "10.30.0.1", "10.30.1.0"


class Missing(Exception):
    """What a row needs is not installed; the message says what."""


@cache
def binary():
    """The compiled program. Raises Missing."""
    return _compiled()


@cache
def static_binary():
    """The same without any library, for a container of its own. Raises Missing."""
    return _compiled("-static")


def _compiled(*flags):
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("no C compiler (cc): rows are without their floor")
    directory = tempfile.mkdtemp(prefix="bridgehead-floor-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = Path(directory) / "floor"
    done = subprocess.run([compiler, "-O2", *flags, "-o", made, _SOURCE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{compiler} does not compile floor.c (are the kernel's headers there?): {done.stderr[:300]}")
    return str(made)


class Floor:
    """Its process, in a sandbox without a daemon or with one. A context manager; answers are in seconds."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        arguments = [binary()]
        self._process = sandbox.host.run(
            lambda: subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self._answer("start")
        self._linked, self._made = False, set()

    def __call__(self, *words):
        """One command of floor.c. Raises RuntimeError."""
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return int(self._answer(words)) / 1e9

    def _answer(self, asked):
        line = self._process.stdout.readline()
        if not line or line.startswith("error"):
            raise RuntimeError(f"floor: {asked}: {line.strip()}")
        return line if line.strip() != "ready" else "0"

    def bridge(self):
        """Makes it, once."""
        if not self._linked:
            self("bridge", BRIDGE, GATEWAY, PREFIX)
            self._linked = True

    def netns(self, name):
        """A namespace, once."""
        if name not in self._made:
            self._made.add(name)
            self("netns", f"/run/netns/{name}")

    def attach(self, name, path, address="10.30.0.2"):
        return self("attach", BRIDGE, name, path, "eth0", address, PREFIX, GATEWAY, GROUP)

    def build(self, count, *, make, group=GROUP, first=FIRST):
        """Many endpoints f0, f1, ..., with their namespaces where `make`."""
        return self("build", BRIDGE, "/run/netns", first, PREFIX, GATEWAY, group, count, int(make))

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()


@contextmanager
def bare(sandbox, directory):
    """A client of `bench.bare`, which runs in a sandbox's host, beside the floor's bridge, until the end."""
    socket = directory / "bare.sock"
    arguments = [sys.executable, "-m", "bench.bare", socket, directory / "bare.db"]
    process = sandbox.host.run(lambda: subprocess.Popen(arguments))
    try:
        eventually(socket.exists, _STARTS_WITHIN)
        with closing(Client(socket)) as client:
            yield client
    finally:
        process.terminate()
        process.wait()
