"""Namespaces while they are visited: what is done there in a row is done by the same sockets.

An open socket keeps a namespace alive, with its links: at the end of the visit all are closed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from app.kernel import announce, messages
from app.kernel.announce import Announcer
from app.kernel.namespaces import Namespaces, maker_of
from app.kernel.netlink import Rtnl
from app.kernel.nsfiles import identity, open_namespace, path_of
from app.kernel.parse import parse_address, parse_index
from app.kernel.procfs import OwnProc
from app.kernel.wire import RTM_NEWADDR, RTMGRP_IPV6_IFADDR, Answer, Netlink, Request
from app.model.errors import KernelRefused
from app.model.spec import NetnsRef
from app.model.state import IPInterface

_PATIENCE = 0.5
PLACES_MAX = 64
"""Namespaces that are kept open at once: those of a batch, whose operations come by kind, not by namespace."""


class Place:
    """One namespace, and what is known of it for as long as the visit lasts.

    made: indices of the links that were made there within the visit, by name.
    """

    def __init__(self, namespaces: Namespaces, ref: NetnsRef, announcer: Announcer, proc: OwnProc) -> None:
        self._namespaces = namespaces
        self._proc = proc
        self._announcer = announcer
        self._rtnl: Rtnl | None = None
        self._sender: socket.socket | None = None
        self._heard: Netlink | None = None
        self._net: int | None = None
        self._path = path_of(ref)
        self._asked: list[Answer] = []
        self.ref = ref
        self.descriptor = open_namespace(ref)
        self.identity = identity(self.descriptor)
        self.made: dict[str, int] = {}

    def close(self) -> None:
        os.close(self.descriptor)
        if self._net is not None:
            os.close(self._net)
        if self._rtnl is not None:
            self._rtnl.close()
        if self._heard is not None:
            self._heard.close()
        if self._sender is not None:
            self._announcer.discard(self._sender)

    @property
    def is_there(self) -> bool:
        """Whether its name still leads there."""
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in the namespace within the block."""
        with self._namespaces.inside(self.descriptor):
            if self._rtnl is None:
                self._rtnl = Rtnl(str(self.ref))
            yield

    @property
    def rtnl(self) -> Rtnl:
        if self._rtnl is None:
            with self._namespaces.inside(self.descriptor):
                self._rtnl = Rtnl(str(self.ref))
        return self._rtnl

    def net(self) -> int:
        """Its /proc/sys/net; the first call is made inside."""
        if self._net is None:
            self._net = self._proc.open_net()
        return self._net

    def index_of(self, ifname: str) -> int | None:
        """A link's index, None where there is none."""
        if ifname in self.made:
            return self.made[ifname]
        link = self._ask(messages.get_link(ifname))
        if not isinstance(link, KernelRefused):
            return parse_index(link[0])
        if link.errno == errno.ENODEV:
            return None
        raise link

    @property
    def maker(self) -> str | None:
        """The id in the mark of a namespace that a daemon of this host made; None for any other.

        Raises KernelRefused.
        """
        if self.identity == self._namespaces.host_identity:
            return None
        if not self._asked:
            self._asked = self.rtnl.ask_all(self._namespaces.asked_of_maker())
        return maker_of(self.rtnl, *self._asked)

    def _ask(self, question: Request) -> Answer:
        """With the first question it is asked who made the namespace, too."""
        if self._asked:
            return self.rtnl.ask_all([question])[0]
        answer, *self._asked = self.rtnl.ask_all([question, *self._namespaces.asked_of_maker()])
        return answer

    def hear_addresses(self) -> None:
        """To be called inside, before the addresses are there that `await_addresses` is about."""
        if self._heard is None:
            self._heard = Netlink(groups=RTMGRP_IPV6_IFADDR)

    def await_addresses(self, index: int, addresses: Collection[IPInterface]) -> None:
        """Until the kernel has taken these IPv6 addresses of a link into use, or for half a second.

        It does so on a thread of its own, and before that it answers no neighbour, who then asks again a second later.
        """
        waiting = {address for address in addresses if address.version == 6}
        deadline = time.monotonic() + _PATIENCE
        while waiting and self._heard is not None and (left := deadline - time.monotonic()) > 0:
            waiter = select.poll()
            waiter.register(self._heard.fileno(), select.POLLIN)
            waiter.poll(left * 1000)
            for kind, _flags, raw in self._heard.events():
                if kind == RTM_NEWADDR and parse_index(raw) == index:
                    waiting.discard(parse_address(raw)[1])

    def prepare_announcement(self) -> None:
        """To be called inside, before `announce`."""
        if self._sender is None:
            self._sender = announce.open_socket()

    def announce(self, ifname: str, mac: str, addresses: Collection[IPInterface]) -> None:
        """Tells the neighbours of a link that it has these addresses now; see `Announcer.announce`."""
        if self._sender is not None and addresses:
            sender, self._sender = self._sender, None
            self._announcer.announce(sender, ifname, mac, addresses)


class Visits:
    """The namespaces that are open now. Belongs to the thread that makes it."""

    def __init__(self, namespaces: Namespaces, announcer: Announcer) -> None:
        self._namespaces = namespaces
        self._places: dict[NetnsRef, Place] = {}
        self._depth = 0
        self._announcer = announcer
        self._proc = OwnProc()

    def close(self) -> None:
        """Outside of any block."""
        self._proc.close()

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """Within the block, and those in it, namespaces stay open; after it, none is."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """A block of `visiting` begins, which `end` ends."""
        self._depth += 1

    def end(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            for ref in list(self._places):
                self.leave(ref)

    def at(self, ref: NetnsRef) -> _Visit:
        """For a block: the namespace that the reference leads to now. Entering the block raises NamespaceMissing."""
        return _Visit(self, ref)

    def place(self, ref: NetnsRef) -> Place:
        """The same, for whoever is within `visiting` already. Raises NamespaceMissing."""
        place = self._places.get(ref)
        if place is None or not place.is_there:
            self.leave(ref)
            if len(self._places) >= PLACES_MAX:
                self.leave(next(iter(self._places)))
            place = self._places[ref] = Place(self._namespaces, ref, self._announcer, self._proc)
        return place

    def leave(self, ref: NetnsRef) -> None:
        """Closes what is open of it: before it is to go."""
        place = self._places.pop(ref, None)
        if place is not None:
            place.close()


class _Visit:
    """`Visits.at`; not by `contextlib`, which takes longer than what is done within."""

    __slots__ = ("_ref", "_visits")

    def __init__(self, visits: Visits, ref: NetnsRef) -> None:
        self._visits = visits
        self._ref = ref

    def __enter__(self) -> Place:
        self._visits.begin()
        try:
            return self._visits.place(self._ref)
        except BaseException:
            self._visits.end()
            raise

    def __exit__(self, *_exc: object) -> None:
        self._visits.end()
