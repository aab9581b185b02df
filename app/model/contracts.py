"""What the planner's executor and the services ask of a kernel: the real one and the fake one keep to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol as Interface

from app.model.errors import BridgeheadError
from app.model.host import HostFacts
from app.model.ops import Op
from app.model.spec import IPAddress, IPNetwork, NetnsRef, Protocol
from app.model.state import Item, PortForward


class Host(Interface):
    """Facts about the host that a request is checked against; none of them costs a dump."""

    def refresh(self) -> None:
        """Takes in what the kernel has announced so far."""

    def link_exists(self, name: str) -> bool:
        """Whether the host has an interface of this name."""

    def holds_address(self, address: IPAddress) -> bool:
        """Whether an interface of the host carries the address."""

    def route_in_the_way(self, subnet: IPNetwork) -> tuple[IPNetwork, str] | None:
        """A route of the host, other than the default one, that overlaps: destination and interface."""

    def default_mtu(self) -> int:
        """MTU, in bytes, of the default route's interface, else 1500."""

    def resolve(self, ref: NetnsRef) -> NetnsRef:
        """The same namespace, a process with its start time. Raises NamespaceMissing, Invalid for the host's own."""

    def namespace_name_free(self, name: str) -> bool:
        """Whether nothing at all stands at /run/netns/NAME."""

    def gone(self, ref: NetnsRef) -> str:
        """Why a namespace cannot be entered any more, in words; empty where it can."""

    def permit_creation(self, name: str) -> None:
        """A user asks for a namespace of this name: it may be made, though one that somebody else made has died."""

    def known_as(self, ref: NetnsRef) -> str | None:
        """The key under which we were last in this very namespace, by whatever name; None where we were not."""

    def belongs_to(self, ref: NetnsRef, uid: int) -> bool:
        """Whether a namespace is a user's: its user namespace is, or the process is. Raises NamespaceMissing."""

    def link_exists_in(self, ref: NetnsRef, name: str) -> bool:
        """Whether a namespace has an interface of this name; False where the namespace is missing."""

    def probe_port(self, protocol: Protocol, address: IPAddress, port: int) -> None:
        """Raises PortTaken, naming the process, where one holds the port."""

    def visiting(self) -> AbstractContextManager[None]:
        """Namespaces that are looked into within the block stay open until its end, so that each is entered once.

        Not to be held for long: an open namespace outlives its name. One within another is part of it.
        """

    def describe(self) -> HostFacts:
        """The host's settings, uplinks and routes, as they are now."""


class Kernel(Host, Interface):
    """Makes, changes and removes items, and reads back what is there."""

    def apply(self, op: Op) -> None:
        """Carries out one operation on anything but rules, all of it or nothing. Raises KernelRefused."""

    def remove(self, ops: Sequence[Op]) -> list[tuple[Op, BridgeheadError]]:
        """Removes links, namespaces and default routes together; goes on past what is refused, and gives it back.

        Done once the kernel has announced that all of them are gone: names, addresses and ports of theirs can be
        used again. Its being gone already is as good.
        """

    def settle(self) -> None:
        """What was done stays: what was kept in case it is taken back may go."""

    def flush(self, forwards: Collection[PortForward]) -> None:
        """Forgets the flows of connectionless protocols to these host ports."""

    def flush_into(self, subnets: Collection[IPNetwork]) -> None:
        """Forgets the flows of connectionless protocols that published ports led into these subnets."""

    def observe(self, expected: Iterable[Item]) -> list[Item]:
        """Every marked item there is, and of those expected that are there, how they really are."""

    def observe_items(self, expected: Iterable[Item]) -> list[Item]:
        """Of those expected that are there, how they really are, and other links that bear their owners' mark.

        At the cost of these items: nothing else is looked at.
        """

    def close(self) -> None:
        """Gives back sockets and descriptors; what was made in the kernel stays."""
