"""Killed anywhere: what was acknowledged is there, the rest whole or not at all, and nothing is left over."""

import time
from contextlib import ExitStack

import httpx
import pytest
from crash.history import HISTORY, identities, view
from crash.points import KILL, Board

from app.sandbox import Sandbox, eventually, snapshot
from app.sandbox.daemon import Daemon

ENTRY = ("tests.netns.crash.points:run", "app.settings:Settings")
BACKENDS = ("nftables", "iptables")


class Victim:
    """A daemon on a host that is the same before and after each life."""

    def __init__(self, stack, firewall):
        self.sandbox = stack.enter_context(Sandbox(ipv6=True))
        self.daemon = self.sandbox.daemon(firewall=firewall, entry=ENTRY)
        self.board = Board(self.daemon.state_dir)
        self.before = snapshot(self.sandbox)
        self.daemon.start()
        self.api = self.daemon.client

    def reference(self):
        """Without any harm: the view after each step, and how many points each step took."""
        views, points = [view(self.api)], []
        for name, step in HISTORY.items():
            start = self.board.read()[0]
            answer = step(self.api)
            assert answer.is_success, f"{name}: {answer.text}"
            points.append(self.board.read()[0] - start)
            views.append(view(self.api))
        self.compare_host()
        return views, points

    def compare_host(self):
        eventually(lambda: not self.before.difference(snapshot(self.sandbox)), timeout=5.0, what="the host as before")

    def die(self, distance):
        """Plays the history and is killed on the way; the number of steps that were acknowledged, and the identities."""
        self.board.aim(KILL, distance)
        known = {}
        for number, step in enumerate(HISTORY.values()):
            try:
                answer = step(self.api)
            except httpx.TransportError:
                break
            assert answer.is_success, answer.text
            known = identities(self.api)
        else:
            number = len(HISTORY)
        self.board.rest()
        if number < len(HISTORY):
            self.daemon.exit_code()
        return number, known

    def live_again(self, views, number, known):
        """Starts it and compares with what was acknowledged; a second start finds nothing amiss."""
        if not self.daemon.running:
            self.daemon.start()
        found = view(self.api)
        assert found in views[number : number + 2], f"after {number} steps neither before nor after the next one"
        now = identities(self.api)
        if found == views[number]:
            assert now == known
        else:
            assert {key: value for key, value in now.items() if key in known}.items() <= known.items()
        told = len(self.daemon.log())
        self.daemon.restart()
        assert "healed" not in self.daemon.log()[told:], self.daemon.log()[told:]

    def clear(self):
        for one in self.api.get("/networks").json():
            answer = self.api.delete(f"/networks/{one['id']}?force=true")
            assert answer.status_code == 204, answer.text
        self.compare_host()


def kills(firewall, chosen):
    """Kills it at the chosen points of the history; how many there are, and how many were done."""
    with ExitStack() as stack:
        victim = Victim(stack, firewall)
        views, points = victim.reference()
        total = sum(points)
        done = 0
        for distance in chosen(total):
            number, known = victim.die(distance)
            try:
                victim.live_again(views, number, known)
                victim.clear()
            except AssertionError as failure:
                step = [*HISTORY, "the end"][number]
                failure.add_note(f"killed at point {distance} of {total}, in '{step}', with {firewall}")
                raise
            done += 1
    return total, done


@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_some_points(firewall):
    kills(firewall, lambda total: range(1, total + 1, max(1, total // 12)))


@pytest.mark.soak
@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_every_point(firewall):
    start = time.monotonic()
    total, done = kills(firewall, lambda total: range(1, total + 1))
    print(f"{firewall}: killed at each of {done} points of {len(HISTORY)} kinds of request, {total} points in all")
    print(f"{time.monotonic() - start:.0f} s")
