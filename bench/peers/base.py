"""What the peers have in common: a sandbox of its own for each, and the same things asked of it."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.sandbox import Sandbox
from bench.floor import Floor
from bench.site import SETTLE

CLIENTS = 8


class Absent(Exception):
    """The peer is not installed, or does not run here; the message says what is missing."""


def need(*names):
    """The paths of these commands or files. Raises Absent."""
    found = [shutil.which(name) or (name if Path(name).is_file() else None) for name in names]
    if None in found:
        raise Absent(f"no {names[found.index(None)]}")
    return found


class Peer:
    """numbers name containers. Each call does one thing, once, and returns seconds by series."""

    name = ""
    together = 200
    """How many are made by eight clients."""

    def __init__(self, ground):
        self.sandbox = ground.kept(Sandbox())
        self.directory = ground.directory()

    def hold(self):
        """One container that stays, where a network goes with its last one."""

    def attach(self, number):
        raise NotImplementedError

    def detach(self, number):
        raise NotImplementedError

    def fill(self, ports):
        """Publishes so many ports of others."""
        raise NotImplementedError

    def attach_with_port(self, number):
        """And removes it again."""
        raise NotImplementedError

    def rate(self):
        """Containers a second, by eight clients; all are removed again."""
        raise NotImplementedError


class Commands(Peer):
    """One that is a command which is run for each container, by eight at a time at most."""

    def __init__(self, ground):
        super().__init__(ground)
        self.floors = [ground.kept(Floor(self.sandbox)) for _client in range(CLIENTS)]
        self._made = set()

    def netns(self, number):
        """The path of a container's namespace, made when it is first wanted."""
        path = f"/run/netns/c{number}"
        if number not in self._made:
            self.floors[0]("netns", path)
            self._made.add(number)
        return path

    def set_up(self, number, ports=(), client=0):
        """Seconds by step."""
        raise NotImplementedError

    def tear_down(self, number, ports=(), client=0):
        raise NotImplementedError

    def hold(self):
        self.set_up(self.together)

    def attach(self, number):
        return {f"{self.name}: {step}": took for step, took in self.set_up(number).items()}

    def detach(self, number):
        return {f"{self.name}: removed": self.tear_down(number)}

    def fill(self, ports):
        self.set_up(9999, tuple(range(20_000, 20_000 + ports)))

    def attach_with_port(self, number):
        steps = self.set_up(number, (8080,))
        time.sleep(SETTLE)
        self.tear_down(number, (8080,))
        return {f"{self.name}: with a port": list(steps.values())[-1]}

    def rate(self):
        for number in range(self.together):
            self.netns(number)

        def work(client):
            for number in range(client, self.together, CLIENTS):
                self.set_up(number, client=client)

        with ThreadPoolExecutor(CLIENTS) as pool:
            start = time.perf_counter()
            list(pool.map(work, range(CLIENTS)))
            took = time.perf_counter() - start
        for number in range(self.together):
            self.tear_down(number)
        return self.together / took
