"""A brake on a fight: where somebody undoes a repair each time, the next ones wait, longer and longer."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from app.services.context import Key

log = logging.getLogger("bridgehead.worker")

FAST_REPAIRS = 10
"""Repairs of one object's parts that are made at once, within `WINDOW`."""
WINDOW = 10.0
"""Seconds."""
_FIRST_WAIT = 1.0
"""Seconds after the last of the fast ones; doubled by each further one."""


@dataclass(slots=True)
class _Fight:
    """The repairs of what one object owns. until: when the next one may be, by `now`; wait: 0 while all is well."""

    name: str
    times: deque[float]
    wait: float = 0.0
    until: float = 0.0
    keys: set[Key] = field(default_factory=set)


class Brake:
    """Knows owners, the ids that items bear, and what looks to take once they may be repaired again. One thread.

    longest: seconds that a repair waits at most; fast: see `FAST_REPAIRS`.
    """

    def __init__(self, longest: float, fast: int = FAST_REPAIRS, now: Callable[[], float] = time.monotonic) -> None:
        self._longest, self._fast, self._now = longest, fast, now
        self._fights: dict[str, _Fight] = {}

    def repaired(self, owners: Iterable[tuple[str, str]]) -> None:
        """Takes note of one repair of each of these; beside each what to call it in the log."""
        now = self._now()
        for owner, name in dict(owners).items():
            fight = self._fights.setdefault(owner, _Fight(name, deque(maxlen=self._fast)))
            fight.times.append(now)
            if fight.wait:
                fight.wait = min(fight.wait * 2, self._longest)
            elif len(fight.times) == self._fast and now - fight.times[0] <= WINDOW:
                fight.wait = min(_FIRST_WAIT, self._longest)
                log.warning("%s: %s; the next ones wait, up to %g s", name, self._seen(fight), self._longest)
            fight.until = now + fight.wait

    def holds(self, owner: str) -> bool:
        """Whether a repair has to wait."""
        fight = self._fights.get(owner)
        return fight is not None and fight.wait > 0 and self._now() < fight.until

    def hold(self, owner: str, key: Key) -> str:
        """A repair is due, and waits: its key comes back from `ripe`. Why, for the status."""
        fight = self._fights[owner]
        fight.keys.add(key)
        return f"{self._seen(fight)}; the next one comes {fight.wait:g} s after the last"

    @staticmethod
    def _seen(fight: _Fight) -> str:
        return f"somebody undoes each repair ({len(fight.times)} in {fight.times[-1] - fight.times[0]:.1f} s)"

    def waits(self, owner: str) -> bool:
        """Whether a repair of it is due that waits."""
        fight = self._fights.get(owner)
        return fight is not None and bool(fight.keys)

    def ripe(self) -> set[Key]:
        """What has waited long enough; and forgets whom nobody fights any more."""
        now, found = self._now(), set[Key]()
        for owner, fight in list(self._fights.items()):
            if now < fight.until:
                continue
            found |= fight.keys
            if not fight.keys and now - fight.times[-1] > max(WINDOW, 2 * fight.wait):
                del self._fights[owner]
                if fight.wait:
                    log.info("%s: nobody undoes the repairs any more", fight.name)
            fight.keys = set()
        return found

    def release(self) -> None:
        """Everything was looked at: nothing waits any more."""
        for fight in self._fights.values():
            fight.keys = set()
