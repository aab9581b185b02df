"""Links and namespaces that go: done once the kernel has announced that they are gone.

The call that removes them returns later, a link's by 15 ms and more (rcu_barrier), and nothing that anybody sees
depends on that: a thread waits for it.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from app.kernel import libc, messages
from app.kernel.crew import Crew
from app.kernel.events import EventsLost, KernelEvents
from app.kernel.mirror import HostMirror
from app.kernel.namespaces import Namespaces
from app.kernel.nsfiles import RUN_NETNS
from app.kernel.parse import Link
from app.kernel.wire import GOING_GROUPS, LINK_GROUP, Netlink, Request
from app.model.errors import BridgeheadError, KernelRefused
from app.model.ops import Op
from app.model.state import Attachment, Bridge, DefaultRoute, ForeignLink, Netns

_MANY = 4
"""Links from which on one delete of them as a group is announced no later than one of each, all at once."""
_THREADS = 32
_PATIENCE = 5.0
"""Seconds that the daemon's end waits for deletes that are under way."""
_CATCH_UP = 1000
"""Milliseconds that the mirror may be behind with what another socket has heard; it takes microseconds."""

Refused = list[tuple[Op, BridgeheadError]]
Place = tuple[int | None, int]
"""A link's end: the host's id of its namespace, None for the host itself, and its index there."""
_NEVER: Place = (None, 0)
"""No link has this index."""


@dataclass(frozen=True, slots=True)
class _Going:
    op: Op
    link: Link


@dataclass(slots=True)
class _Namespace:
    """One that is ours, and a descriptor of it: whatever has its name later, only this one is unmounted."""

    op: Op
    name: str
    held: int | None

    def give(self) -> int:
        """The descriptor, which its taker closes."""
        held, self.held = self.held, None
        return -1 if held is None else held

    def close(self) -> None:
        if self.held is not None:
            os.close(self.give())


@dataclass(slots=True)
class _Call:
    """A delete under way. places: those of its links' ends whose end is still to be announced."""

    going: Sequence[_Going]
    places: set[Place]
    answer: Future[None]

    @property
    def is_over(self) -> bool:
        return not self.places or self.answer.done()

    @property
    def refusal(self) -> BaseException | None:
        return self.answer.exception() if self.answer.done() else None


class Removal:
    """See `app.model.contracts.Kernel.remove`. Belongs to the thread that makes it.

    delete_route: removes a default route that does not go with its link.
    """

    def __init__(self, mirror: HostMirror, namespaces: Namespaces, delete_route: Callable[[Op], None]) -> None:
        self._mirror = mirror
        self._namespaces = namespaces
        self._delete_route = delete_route
        self._crew = Crew("removal", _THREADS)
        self._returned = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self) -> None:
        if self._crew.close(_PATIENCE):  # else a thread may still write to it
            os.close(self._returned)

    def remove(self, ops: Sequence[Op]) -> Refused:
        """Links at once, for the kernel's announcements overlap; then what stood in no link's way."""
        namespaces: list[_Namespace] = []
        try:
            self._mirror.refresh()
            # whose they are is asked while no delete holds what the answer needs
            for op in ops:
                if isinstance(op.before, Netns) and (held := self._namespaces.open_own(op.before.name)) is not None:
                    namespaces.append(_Namespace(op, op.before.name, held))
            going = [one for op in ops if (one := self._going(op)) is not None]
            refused = self._remove_routes(ops, going)
            refused += self._remove_links(going)
            refused += self._remove_namespaces(namespaces)
        except OSError as failure:
            refusal = KernelRefused(failure.errno or errno.EIO, "ip link delete")
            return [(op, refusal) for op in ops]
        finally:
            for left in namespaces:
                left.close()
        return refused

    def _going(self, op: Op) -> _Going | None:
        """None where it is gone already, or somebody else's has its name."""
        match op.before:
            case Bridge(name=name, owner=owner) | ForeignLink(name=name, owner=owner):
                link = self._mirror.link(name)
            case Attachment(host_ifname=name, owner=owner):
                link = self._mirror.link(name)
            case _:
                return None
        if link is None or not link.is_ours or (link.owner or owner) != owner:
            return None
        return _Going(op, link)

    def _remove_routes(self, ops: Sequence[Op], going: Sequence[_Going]) -> Refused:
        """One by a link that goes goes with it."""
        ends = {(item.namespace_key, item.ifname) for one in going if isinstance(item := one.op.before, Attachment)}
        refused: Refused = []
        for op in ops:
            if isinstance(route := op.before, DefaultRoute) and (route.namespace_key, route.ifname) not in ends:
                try:
                    self._delete_route(op)
                except BridgeheadError as refusal:
                    refused.append((op, refusal))
        return refused

    # --- links

    def _remove_links(self, going: Sequence[_Going]) -> Refused:
        if not going:
            return []
        refused: Refused = []
        with closing(KernelEvents(departures=True)) as heard:
            if _are_many(going) and self._remove_group(heard, going):
                return []
            for part in (_ports(going), _bridges(going)):
                calls = [self.delete([one]) for one in part]
                self._await(heard, calls)
                refused += [(call.going[0].op, _as_refusal(call.refusal)) for call in calls if call.refusal is not None]
        return refused

    def _remove_group(self, heard: KernelEvents, going: Sequence[_Going]) -> bool:
        """All with one request; False where that is not to be had, and each is as it was, or gone."""
        held = {link.group for link in self._mirror.links()}
        group = next((one for one in GOING_GROUPS if one not in held), None)
        if group is None:
            return False
        with Groups() as groups:
            indices = [one.link.index for one in going]
            # a group can be changed without a word (sysfs): what is in it is counted where it counts
            if groups.move(indices, group) and groups.size(group) == len(going):
                call = self.delete(going, group)
                self._await(heard, [call])
                if call.refusal is None:
                    return True
            groups.move(indices, LINK_GROUP)
        return False

    def delete(self, going: Sequence[_Going], group: int = 0) -> _Call:
        link = going[0].link
        asked = messages.delete_group(group) if group else messages.delete_link(link.index, link.name)
        places = {place for one in going for place in _ends(one.link)}
        return _Call(going, places, self._crew.run(partial(_delete, asked), self._tell))

    def _tell(self) -> None:
        os.eventfd_write(self._returned, 1)

    def _await(self, heard: KernelEvents, calls: Sequence[_Call]) -> None:
        """Until each of them was announced whole, or has returned; and until the mirror knows it."""
        by_place = {place: call for call in calls for place in call.places}
        while not all(call.is_over for call in calls):
            self._wait(heard.fileno(), select.POLLIN)
            try:
                for event in heard.take():
                    place = (event.nsid, struct.unpack_from("=i", event.raw, 20)[0])
                    if place in by_place:
                        by_place[place].places.discard(place)
            except EventsLost:
                for call in calls:
                    call.places = {_NEVER}
        gone = [one.link.index for call in calls if call.refusal is None for one in call.going]
        self._mirror.refresh()
        while any(self._mirror.holds_link(index) for index in gone):
            behind = select.poll()
            behind.register(self._mirror.fileno(), select.POLLIN)
            if not behind.poll(_CATCH_UP):
                return
            self._mirror.refresh()

    def _wait(self, descriptor: int, event: int) -> None:
        """For the event, or for a call's return."""
        poll = select.poll()
        poll.register(descriptor, event)
        poll.register(self._returned, select.POLLIN)
        if any(ready == self._returned for ready, _event in poll.poll()):
            os.eventfd_read(self._returned)

    # --- namespaces

    def _remove_namespaces(self, namespaces: Sequence[_Namespace]) -> Refused:
        """A name is free once its file is gone, which can be removed before the unmounting call has returned."""
        if not namespaces:
            return []
        refused: Refused = []
        mounts = os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            calls = [self._crew.run(partial(_unmount, one.give()), self._tell) for one in namespaces]
            for one, answer in zip(namespaces, calls, strict=True):
                try:
                    self.unlink(one.name, answer, mounts)
                except KernelRefused as refusal:
                    refused.append((one.op, refusal))
        finally:
            os.close(mounts)
        return refused

    def unlink(self, name: str, answer: Future[None], mounts: int) -> None:
        while True:
            returned = answer.done()
            reason = answer.exception() if returned else None
            try:
                (RUN_NETNS / name).unlink(missing_ok=True)
                return
            except OSError as failure:
                if isinstance(reason, OSError) and reason.errno == errno.EINVAL:
                    return  # somebody was faster, and what is mounted there now is theirs
                if returned or failure.errno != errno.EBUSY:
                    number = reason.errno if isinstance(reason, OSError) else failure.errno
                    raise KernelRefused(number or errno.EIO, f"ip netns delete {name}") from failure
            self._wait(mounts, select.POLLPRI)


class Groups(Netlink):
    """Moves links between groups."""

    def move(self, indices: Sequence[int], group: int) -> bool:
        """In one send; False where the kernel refused one."""
        answers = self.ask_all([messages.move_link(index, group) for index in indices])
        return not any(isinstance(answer, KernelRefused) for answer in answers)

    def size(self, group: int) -> int:
        """How many links are in a group: a dump, which is not taken apart."""
        wanted = messages.in_group(group)
        return sum(wanted in raw for raw in self.dump(messages.get_links()))


def _ends(link: Link) -> Iterator[Place]:
    yield None, link.index
    if link.kind == "veth" and link.peer_index:
        yield link.nsid, link.peer_index


def _ports(going: Sequence[_Going]) -> list[_Going]:
    return [one for one in going if one.link.kind != "bridge"]


def _bridges(going: Sequence[_Going]) -> list[_Going]:
    return [one for one in going if one.link.kind == "bridge"]


def _are_many(going: Sequence[_Going]) -> bool:
    """A bridge's delete waits long before it is announced, and with its ports in the same one it does so once."""
    return len(going) >= _MANY or (len(going) > 1 and bool(_bridges(going)))


def _delete(asked: Request) -> None:
    """Returns long after it is done. Its being gone already is as good."""
    try:
        with Netlink(command="ip") as netlink:
            netlink.change_all([asked])
    except KernelRefused as refusal:
        if refusal.errno != errno.ENODEV:
            raise


def _unmount(descriptor: int) -> None:
    """By descriptor, so that it is this very mount, whatever has its place by then; closes it."""
    try:
        libc.umount(f"/proc/thread-self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _as_refusal(failure: BaseException) -> BridgeheadError:
    if isinstance(failure, BridgeheadError):
        return failure
    number = failure.errno if isinstance(failure, OSError) else None
    return KernelRefused(number or errno.EIO, "ip link delete", str(failure))
