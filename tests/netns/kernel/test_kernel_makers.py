"""Whose a namespace is: asked once a visit, noted, and never taken for granted where it could be otherwise."""

import errno
from pathlib import Path

import pytest
from driven import BOTH, NET, NET6, RED, bridge, netns

from app.kernel.netlink import Rtnl
from app.kernel.parse import parse_link, parse_owner, parse_port_state
from app.kernel.wire import RTM_GETNSID, Netlink
from app.model.errors import KernelRefused
from app.model.naming import alias


def refuse_once(monkeypatch, kind):
    """The kernel refuses the next question of this kind."""
    ask_all, left = Netlink.ask_all, [1]

    def asked(self, requests):
        answers = ask_all(self, requests)
        for place, request in enumerate(requests):
            if request.kind == kind and left:
                left.clear()
                answers[place] = KernelRefused(errno.ENOMEM, "ip netns list-id")
        return answers

    monkeypatch.setattr(Netlink, "ask_all", asked)


def _raw_links():
    with Rtnl() as rtnl:
        return rtnl.raw_links()


def remove_all(kernel):
    for item in kernel.observe().values():
        kernel.remove(item)


def test_ours_is_not_anothers_for_a_question_that_was_refused(sandbox, kernel, monkeypatch):
    kernel.make(netns("red"))
    with monkeypatch.context() as refusing:
        refuse_once(refusing, RTM_GETNSID)
        with pytest.raises(KernelRefused):
            kernel.make(netns("red"))
    remove_all(kernel)
    assert "red" not in sandbox.netns_names()


def test_ours_whose_mark_was_gone_for_a_while_is_ours_again(sandbox, kernel):
    kernel.make(netns("red"))
    red = sandbox.netns("red")
    for words in ("", alias("ep-red")):
        red.exec(["ip", "link", "set", "lo", "alias", words])
        kernel.observe(netns("red"))
    remove_all(kernel)
    assert "red" not in sandbox.netns_names()


def test_a_placeholder_at_the_name_of_anothers_goes(sandbox, kernel):
    sandbox.add_netns("red")
    kernel.make(netns("red"))  # it is there, and another's
    place = Path("/run/netns/red")
    sandbox.delete_netns("red")
    sandbox.host.run(lambda: place.write_text(alias("ep-red")))
    kernel.remove(netns("red"))
    assert not sandbox.host.run(place.exists)


def test_a_part_of_a_links_message_says_what_the_whole_says(sandbox, kernel):
    for name in ("red", "blue"):
        sandbox.add_netns(name)
    kernel.make(bridge("web", NET, NET6), *BOTH)
    sandbox.host.exec(["ip", "link", "set", RED.host_ifname, "group", "77"])
    raws = sandbox.host.run(_raw_links)
    links = [parse_link(raw) for raw in raws]
    assert [parse_owner(raw) for raw in raws] == [link.owner for link in links]
    assert [parse_port_state(raw) for raw in raws] == [link.port_state for link in links]
    assert {link.owner for link in links} == {None, "net-web", "ep-blue"}
    assert {link.port_state for link in links} == {None, 3}
    kernel.remove(*BOTH, bridge("web", NET, NET6))
    sandbox.host.exec(["ip", "link", "del", RED.host_ifname], check=False)
