"""What the benchmarks share: sites and floors, made when first wanted, gone at the end."""

import shutil
import time
from contextlib import ExitStack

from app.sandbox import Sandbox
from bench import floor
from bench.floor import Floor, Missing
from bench.site import SETTLE, Site, disk


class Ground:
    """A context manager. peers: whether others' tools are measured where they are installed.

    small: a tenth of all sizes and rounds, to see that all runs.
    """

    def __init__(self, *, peers=True, small=False):
        self.peers = peers
        self._share = 10 if small else 1
        self.notes = []
        self._stack = ExitStack()
        self._sites, self._floors = {}, {}

    def sized(self, count):
        """A number of objects or rounds, or a tenth of it."""
        return max(1, count // self._share) if count else 0

    def site(self, firewall="nftables", endpoints=0, mappings=0):
        """The one with so many objects of others; who adds to it takes that away again."""
        key = firewall, self.sized(endpoints), self.sized(mappings)
        if key not in self._sites:
            self._sites[key] = self.own_site(*key)
        return self._sites[key]

    def own_site(self, firewall="nftables", endpoints=0, mappings=0, **options):
        """One more, shared with nobody."""
        return Site(self._stack, firewall, endpoints=endpoints, mappings=mappings, **options)

    def floor(self, ports=0):
        """A floor whose bridge has so many ports of others, beside no daemon; None, and a note, without a compiler."""
        ports = self.sized(ports)
        if ports not in self._floors:
            self._floors[ports] = self._made(ports)
        return self._floors[ports]

    def _made(self, ports):
        try:
            floor.binary()
        except Missing as missing:
            self.note(str(missing))
            return None
        made = self.kept(Floor(self.kept(Sandbox())))
        made.bridge()
        if ports:
            made.build(ports, make=True, group=floor.GROUP + 1)
        return made

    def kept(self, context):
        """Entered, and left at the end."""
        return self._stack.enter_context(context)

    def on_exit(self, work):
        self._stack.callback(work)

    def directory(self):
        """One on a disk, for files."""
        made = disk()
        self._stack.callback(shutil.rmtree, made, ignore_errors=True)
        return made

    def has(self, command):
        """Whether a command is there; a note says so where it is not."""
        if shutil.which(command):
            return True
        self.note(f"no {command}: rows are without it")
        return False

    def note(self, words):
        if words not in self.notes:
            self.notes.append(words)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self._stack.close()


def alternate(samples, rounds, *works):
    """Runs each work once a round, forth and back, so that what else the machine does meets all alike.

    A work does one thing and returns seconds by series; None stands for one that cannot be done here.
    """
    done = [work for work in works if work is not None]
    for number in range(rounds):
        for work in reversed(done) if number % 2 else done:
            for name, seconds in work().items():
                samples.time(name, seconds)
            time.sleep(SETTLE)
