"""A daemon that is killed and started again, on a host whose every state is compared."""

import re
from dataclasses import replace

import httpx
from crash.history import HISTORY, identities, view
from crash.points import KILL, Board

from app.sandbox import Sandbox, eventually, snapshot

ENTRY, LATE, CHECKPOINTS, IMPATIENT = (
    (f"tests.netns.crash.points:{name}", "app.settings:Settings")
    for name in ("run", "notices_late", "checkpoints", "impatient")
)
_LINK_LOCAL = ("addresses", "routes")
_MAKER = re.compile(r"(?<=: lo - up mtu 65536 group 0 alias bridgehead:)\S+")
BACKENDS = ("nftables", "iptables")
WHOLE = range(len(HISTORY))
"""All steps of the history."""


def host_of(sandbox):
    """All of the host but what the kernel gives a bridge by itself when its first port comes up, and who made what."""
    found = snapshot(sandbox)
    kept = {field: tuple(line for line in getattr(found, field) if "fe80::" not in line) for field in _LINK_LOCAL}
    # a namespace that is made again has another of its endpoints for its maker
    links = tuple(_MAKER.sub("", line) for line in found.links)
    firewall = tuple(sorted(found.firewall))  # networks stand in any order in a chain
    return replace(found, **kept, links=links, firewall=firewall)


class Victim:
    """Its host is the same again whenever it has nothing."""

    def __init__(self, stack, firewall, entry=ENTRY):
        self.firewall = firewall
        self.sandbox = stack.enter_context(Sandbox(ipv6=True))
        self.daemon = self.sandbox.daemon(firewall=firewall, entry=entry)
        self.place(stack)
        self.board = Board(self.daemon.state_dir)
        self.untouched = host_of(self.sandbox)
        self.daemon.start()
        self.api = self.daemon.client
        self.kills = 0

    def place(self, _stack):
        """Where the state directory is to be."""

    def play(self, steps):
        """Without any harm."""
        for name, step in steps:
            answer = step(self.api)
            assert answer.is_success, f"{name}: {answer.text}"

    def state(self):
        return view(self.api), identities(self.api), host_of(self.sandbox)

    def host_becomes(self, wanted):
        """The kernel is a moment behind with what it removes."""

        def same():
            difference = wanted.difference(host_of(self.sandbox))
            assert difference == "", difference
            return True

        eventually(same, timeout=5.0, what="the host as it was")

    def clear(self):
        for one in self.api.get("/networks").json():
            answer = self.api.delete(f"/networks/{one['id']}?force=true")
            assert answer.status_code == 204, answer.text
        self.host_becomes(self.untouched)

    def killed_in(self, step, distance):
        """Whether it died of a step, at the given point; then it is up again."""
        self.board.aim(KILL, distance)
        try:
            answer = step(self.api)
        except httpx.TransportError:
            self.daemon.exit_code()
            self.board.rest()
            self.revive()
            self.kills += 1
            return True
        self.board.rest()
        if self.died_later():
            self.revive()
        self.survived(step, answer)
        return False

    def died_later(self):
        """Whether it died when it had answered already: threads of its go on for a moment with what goes."""
        try:
            self.api.get("/healthz")
        except httpx.TransportError:
            self.daemon.exit_code()
            self.kills += 1
            return True
        return False

    def revive(self):
        self.daemon.start()

    def survived(self, _step, answer):
        """What becomes of a step that nobody killed."""
        assert answer.is_success, answer.text

    def nothing_to_heal(self):
        """Another start changes nothing."""
        told = len(self.daemon.log())
        self.daemon.restart()
        assert "healed" not in self.daemon.log()[told:], self.daemon.log()[told:]


def kill_at_points(victim, stride, part=WHOLE):
    """In each step of a part, at every `stride`-th point: what was acknowledged stays, the rest is whole or not."""
    steps = list(HISTORY.items())
    victim.play(steps[: part.start])
    for number, (name, step) in list(enumerate(steps))[part.start : part.stop]:
        before = victim.state()
        distance = 1
        while True:
            try:
                if not victim.killed_in(step, distance):
                    break
                if not _as_before(victim, before):
                    _as_after(victim, before)
                    victim.clear()
                    victim.play(steps[:number])
                    before = victim.state()
            except AssertionError as failure:
                failure.add_note(f"{victim.firewall}: killed at point {distance} of '{name}'")
                raise
            distance += stride
        victim.nothing_to_heal()
    victim.clear()


def _as_before(victim, before):
    if view(victim.api) != before[0]:
        return False
    assert identities(victim.api) == before[1]
    victim.host_becomes(before[2])
    return True


def _as_after(victim, before):
    """The step was done whole: what was there and still is has kept its id, MAC and interface."""
    now = identities(victim.api)
    assert all(now[key] == value for key, value in before[1].items() if key in now)
    victim.nothing_to_heal()
