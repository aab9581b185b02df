"""From events to keys: a burst of ours leads to nothing, and of each link only the last event is taken apart."""

import struct
from ipaddress import ip_interface

import pytest

from app.kernel.events import Event
from app.kernel.wire import LINK_GROUP, RTM_DELADDR, RTM_DELLINK, RTM_NEWLINK, attribute
from app.model.naming import alias
from app.model.spec import NetnsKind, NetnsRef
from app.model.state import Attachment, Bridge
from app.reconcile import tracker
from app.reconcile.tracker import Tracker
from app.reconcile.watchlist import Watchlist

BRIDGE, PORT, INNER, NSID = 10, 11, 2, 5
MAC, INNER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
ADDRESS = ip_interface("10.0.0.2/24")


def number(value):
    return struct.pack("=I", value)


def link(index, name, *, kind=RTM_NEWLINK, up=True, mac=MAC, nsid=None, **attributes):
    flags = 1 if up else 0
    numbers = {"master": 10, "group": 27, "peer": 5, "peer_nsid": 37}
    body = attribute(3, name.encode() + b"\0") + attribute(4, number(1500))
    body += attribute(1, bytes.fromhex(mac.replace(":", "")))
    for key, value in attributes.items():
        body += attribute(20, value.encode() + b"\0") if key == "alias" else attribute(numbers[key], number(value))
    raw = struct.pack("=IHHII", 0, kind, 0, 0, 0) + struct.pack("=BxHiII", 0, 0, index, flags, 0) + body
    return Event(nsid, kind, raw)


def port(**changes):
    shown = {"master": BRIDGE, "group": LINK_GROUP, "alias": alias("e1"), "peer": INNER, "peer_nsid": NSID}
    return link(PORT, "veth1", **(shown | changes))


def inner(**changes):
    return link(INNER, "eth0", nsid=NSID, mac=INNER_MAC, **changes)


def address_gone():
    raw = struct.pack("=IHHII", 0, RTM_DELADDR, 0, 0, 0) + struct.pack("=BBBBI", 2, 24, 0, 0, INNER)
    return Event(NSID, RTM_DELADDR, raw + attribute(2, ADDRESS.ip.packed))


@pytest.fixture
def watched():
    watchlist = Watchlist()
    bridge = Bridge("n1", "web", MAC, 1500, frozenset(), ipv6=False)
    ref = NetnsRef(NetnsKind.NAME, "red")
    attachment = Attachment(
        owner="e1",
        host_ifname="veth1",
        bridge="web",
        netns=ref,
        namespace_key="name:red",
        ifname="eth0",
        mac=INNER_MAC,
        mtu=1500,
        addresses=frozenset({ADDRESS}),
        ipv6=False,
        hairpin=False,
    )
    watchlist.put(("network", "n1"), {bridge.key: bridge})
    watchlist.put(("endpoint", "e1"), {attachment.key: attachment})
    made = Tracker(watchlist)
    take(made, link(BRIDGE, "web", group=LINK_GROUP, alias=alias("n1")), port(), inner())
    assert not made.findings()
    return made


def take(made, *events):
    for event in events:
        made.take(event)


def test_of_each_link_only_the_last_event_is_taken_apart(watched, monkeypatch):
    parsed = []
    real = tracker.parse_link
    monkeypatch.setattr(tracker, "parse_link", lambda raw: parsed.append(raw) or real(raw))
    take(watched, port(up=False), port(up=False), inner(up=False), port(), inner())
    assert not watched.findings()
    assert len(parsed) == 2


@pytest.mark.parametrize(
    "events",
    [
        [port(up=False)],
        [port(alias="somebody's")],
        [inner(up=False)],
        [inner(kind=RTM_DELLINK)],
        [port(kind=RTM_DELLINK)],
        [address_gone()],
        [port(), port(kind=RTM_DELLINK)],
    ],
)
def test_what_is_not_as_wanted_is_found(watched, events):
    take(watched, *events)
    assert watched.findings().keys == {("endpoint", "e1")}
    assert not watched.findings()


def test_others_links_lead_to_nothing(watched):
    take(watched, link(99, "docker0"), link(99, "docker0", kind=RTM_DELLINK), link(INNER, "eth0", nsid=NSID + 1))
    assert not watched.findings()


def test_whose_an_inner_end_is_is_known_from_the_same_events():
    watchlist = Watchlist()
    made = Tracker(watchlist)
    take(made, inner(kind=RTM_DELLINK), port())
    made.findings()
    assert made._owners[NSID, INNER] == "e1"
    assert made._early == {"e1"}
    take(made, port(kind=RTM_DELLINK))
    assert made._inside == {}
