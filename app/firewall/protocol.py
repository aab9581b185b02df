"""What a firewall backend does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from app.model.host import FirewallReport
from app.model.ops import Op
from app.model.state import FirewallItem

NONE = "none"
"""The name of the backend that keeps no rules."""


class Firewall(Protocol):
    """Keeps the kernel's rules equal to a set of network policies and port forwards.

    Every call is all or nothing, and raises KernelRefused where the kernel says no. One thread only.
    """

    name: str

    def apply(self, ops: Sequence[Op]) -> list[str]:
        """Changes the rules by these operations, all of them on firewall items; the cost is theirs.

        Returns the commands that one would have typed.
        """

    def sync(self, items: Iterable[FirewallItem]) -> list[str]:
        """Brings the rules to exactly these items, whatever is there; says what differed, one line each."""

    def changed(self, *, touched: bool) -> bool:
        """Whether the rules may differ from what was left, as far as that is cheap to see; `sync` tells then.

        touched: nf_tables says that tables of ours were changed, by another process as it seems.
        """


@runtime_checkable
class Watchful(Protocol):
    """A firewall that knows what others' rules do."""

    def trouble(self, owner: str) -> str:
        """Which chain of whose drops the traffic of a network, by its id, and what would work; empty for none."""

    def look(self) -> None:
        """Reads others' rules again, where they changed. Raises KernelRefused."""

    def report(self) -> FirewallReport:
        """The backend in use and why, and others' chains, looked at now. Raises KernelRefused."""


def trouble_of(firewall: Firewall) -> Callable[[str], str]:
    """What tells what others' rules do to a network, by its id; empty where nothing is known."""
    return firewall.trouble if isinstance(firewall, Watchful) else _no_trouble


def _no_trouble(_owner: str) -> str:
    return ""


def look_again(firewall: Firewall) -> None:
    """What `trouble_of` tells is true as of now, where the firewall knows of others' rules. Raises KernelRefused."""
    if isinstance(firewall, Watchful):
        firewall.look()


def report_of(firewall: Firewall) -> FirewallReport:
    """A firewall's own report, else its name alone. Raises KernelRefused."""
    if isinstance(firewall, Watchful):
        return firewall.report()
    return FirewallReport(firewall.name, "", legacy_ipv4=False, legacy_ipv6=False, nftables=False)
