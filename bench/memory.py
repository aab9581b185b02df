"""Resident memory of a daemon, idle and with much to do, beside a process that has only imported its libraries."""

import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.sandbox import Sandbox
from bench.endpoints import MAPPINGS, OTHERS
from bench.registry import Samples, Target, bench

LIBRARIES = (
    "fastapi",
    "uvicorn",
    "uvicorn.protocols.http.httptools_impl",
    "starlette.middleware.cors",
    "uvloop",
    "httptools",
    "sqlalchemy",
    "pydantic_settings",
    "typer",
    "iptc",
    "pydantic.v1",  # FastAPI imports it with its first route
)
"""What the daemon imports of others, as it imports it; Alembic and SQLModel are for upgrades, pyroute2 for repairs."""
ALLOWED_MB, LOADED_MB = 15.0, 60.0


@dataclass(frozen=True)
class Size:
    """In MB of 2**20 bytes."""

    rss: float
    anonymous: float
    pss: float

    @classmethod
    def of(cls, pid):
        status = Path(f"/proc/{pid}/status").read_text()
        shared = Path(f"/proc/{pid}/smaps_rollup").read_text()

        def megabytes(name, text):
            return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024

        return cls(megabytes("VmRSS", status), megabytes("RssAnon", status), megabytes("Pss", shared))


@dataclass(frozen=True)
class Memory:
    bare: Size
    first: Size
    """The daemon after its first start, which made the database."""
    later: Size
    """The daemon after its next start."""

    @property
    def over(self):
        """MB of resident memory above the bare imports."""
        return self.later.rss - self.bare.rss

    @property
    def first_over(self):
        return self.first.rss - self.bare.rss


@contextmanager
def importing(*modules):
    """The pid of a process that has imported these and waits."""
    code = f"import {', '.join(modules)}\nprint(flush=True)\ninput()" if modules else "print(flush=True)\ninput()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"\n", "the imports failed"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def measure(sandbox):
    """Of the real command: a forked daemon shares its pages with the process that it was forked from."""
    daemon = sandbox.daemon(command=True)
    with importing(*LIBRARIES) as pid:
        with daemon:
            first = Size.of(daemon.pid)
        with daemon:
            return Memory(Size.of(pid), first, Size.of(daemon.pid))


@bench(
    "memory",
    "Resident memory",
    Target("memory, idle, above the bare imports", "idle", ALLOWED_MB, "bare imports", "plus"),
    Target("1,000 endpoints and 10,000 mappings, above idle", "loaded", LOADED_MB, "idle", "plus"),
)
def memory(ground):
    samples = Samples()
    with Sandbox() as sandbox:
        idle = measure(sandbox)
    site = ground.site(endpoints=OTHERS, mappings=MAPPINGS)
    samples.add("bare imports", idle.bare.rss, "MB")
    samples.add("idle, first start", idle.first.rss, "MB")
    samples.add("idle", idle.later.rss, "MB")
    samples.add("loaded, since the import that made it all", Size.of(site.daemon.pid).rss, "MB")
    site.daemon.stop()
    site.start()
    samples.add("loaded", Size.of(site.daemon.pid).rss, "MB")
    return samples
