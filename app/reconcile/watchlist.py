"""What the monitor compares events with: the worker writes it, each time as a whole entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from app.model.spec import NetnsRef
from app.model.state import Attachment, Bridge, Item, ItemKey, Sysctl
from app.services.context import Key

Watched = Bridge | Attachment


@dataclass(slots=True)
class Findings:
    """What may not be as it should be. keys: of these objects; missed: anything, for events were lost.

    rules, settings: somebody touched them; foreign: others' rules may have changed.
    due: it is time to look at what the kernel tells nothing of.
    """

    keys: set[Key] = field(default_factory=set)
    rules: bool = False
    foreign: bool = False
    settings: bool = False
    due: bool = False
    missed: bool = False

    def __bool__(self) -> bool:
        return bool(self.keys) or self.rules or self.foreign or self.settings or self.due or self.missed

    def add(self, other: Findings) -> None:
        """Takes in another's."""
        self.keys |= other.keys
        self.rules |= other.rules
        self.foreign |= other.foreign
        self.settings |= other.settings
        self.due |= other.due
        self.missed |= other.missed


class Watchlist:
    """The links by the id of their owner, and the settings. One thread writes; each dictionary operation is atomic."""

    def __init__(self) -> None:
        self._links: dict[str, tuple[Key, Watched]] = {}
        self._settings: dict[Key, tuple[Sysctl, ...]] = {}
        self.version = 0
        self.dead: frozenset[str] = frozenset()
        """Endpoints whose namespace was gone when the worker looked last."""

    def put(self, key: Key, items: Mapping[ItemKey, Item]) -> None:
        """What is wanted for a key from now on."""
        if key[0] in ("network", "endpoint"):
            link = next((item for item in items.values() if isinstance(item, Bridge | Attachment)), None)
            if link is None:
                self._links.pop(key[1], None)
            else:
                self._links[key[1]] = (key, link)
            self.version += 1
        if key[0] in ("network", "host"):
            settings = tuple(item for item in items.values() if isinstance(item, Sysctl))
            if settings:
                self._settings[key] = settings
            else:
                self._settings.pop(key, None)

    def keep_only(self, keys: Iterable[Key]) -> None:
        """Drops all others."""
        kept = set(keys)
        for owner, (key, _link) in list(self._links.items()):
            if key not in kept:
                self._links.pop(owner, None)
        for key in self._settings.keys() - kept:
            self._settings.pop(key, None)
        self.version += 1

    def link(self, owner: str) -> tuple[Key, Watched] | None:
        """The key of a link's owner and how the link shall be."""
        return self._links.get(owner)

    def settings(self) -> dict[Key, tuple[Sysctl, ...]]:
        return dict(self._settings)

    def namespaces(self) -> dict[NetnsRef, list[Key]]:
        """The endpoints of each."""
        found: dict[NetnsRef, list[Key]] = {}
        for key, link in list(self._links.values()):
            if isinstance(link, Attachment):
                found.setdefault(link.netns, []).append(key)
        return found
