"""What an endpoint's making costs, in what does not depend on the machine: sends of netlink messages, visits."""

import os
from itertools import count

import pytest
from driven import attachment, bridge, netns, route

from app.kernel import libc
from app.kernel.wire import Netlink
from app.model.errors import KernelRefused
from app.model.ops import Op
from app.sandbox import eventually

WEB = bridge("web", "10.5.0.1/16", "fd05::1/64")
NUMBER = count(1)


@pytest.fixture
def kernel(kernel):
    kernel.make(WEB)
    return kernel


def endpoint(*addresses, **fields):
    number = next(NUMBER)
    return attachment(f"n{number}", *(one.format(number + 1) for one in addresses), number=number, **fields)


def applied(sandbox, kernel, monkeypatch, *items):
    """Sends and entries of one visit in which these are made."""
    entered = []
    monkeypatch.setattr(libc, "setns", lambda *call, real=libc.setns: entered.append(call) or real(*call))

    def work():
        before = Netlink.sent
        with kernel.kernel.visiting():
            for item in items:
                kernel.kernel.apply(Op(None, item))
        return Netlink.sent - before

    sends = sandbox.host.run(work)
    monkeypatch.undo()
    # the sandbox enters the host by itself
    return sends, len(entered) // 2


@pytest.mark.parametrize("others", [0, 20])
def test_one_endpoint(sandbox, kernel, monkeypatch, figure, others):
    for _ in range(others):
        other = endpoint("10.5.0.{}/16")
        kernel.make(netns(other.netns.value), other)
    four, both = endpoint("10.5.0.{}/16"), endpoint("10.5.0.{}/16", "fd05::{}/64")
    for made, gateways, most in ((four, ["10.5.0.1"], 7), (both, ["10.5.0.1", "fd05::1"], 9)):
        routes = [route(made, gateway) for gateway in gateways]
        kernel.make(netns(made.netns.value))
        there = applied(sandbox, kernel, monkeypatch, netns(made.netns.value), made, *routes)
        figure(f"{others} others, {len(gateways)} addresses: {there[0]} sends, {there[1]} entries")
        assert there[0] <= most
        assert there[1] <= 3


def test_a_visit_leaves_nothing_open(sandbox, kernel, monkeypatch):
    descriptors = len(os.listdir("/proc/self/fd"))
    made = endpoint("10.5.0.{}/16")
    applied(sandbox, kernel, monkeypatch, netns(made.netns.value), made, route(made, "10.5.0.1"))
    kernel.remove(made, netns(made.netns.value))
    kernel.kernel._visits.close()  # the procfs that others' visits would share
    kernel.kernel._announcer.close()  # waits for its threads
    # a namespace is announced as gone before the thread that let go of it has closed it
    eventually(lambda: len(os.listdir("/proc/self/fd")) == descriptors)


def test_a_namespace_that_took_another_s_name_within_a_visit(sandbox, kernel):
    made = endpoint("10.5.0.{}/16")
    name = made.netns.value

    def work():
        with kernel.kernel.visiting():
            assert not kernel.kernel.link_exists_in(made.netns, "eth0")
            sandbox.host.exec(["ip", "netns", "delete", name])
            sandbox.host.exec(["ip", "netns", "add", name])
            kernel.kernel.apply(Op(None, made))

    kernel.make(netns(name))
    sandbox.host.run(work)
    assert "eth0" in sandbox.netns(name).links()


def test_a_refusal_in_the_middle_of_several_messages_undoes_all(sandbox, kernel):
    made = endpoint("10.5.0.{}/16", "fd05::{}/64", mtu=1279)  # IPv6 wants 1280
    kernel.make(netns(made.netns.value))
    with pytest.raises(KernelRefused, match="address add fd05::"):
        kernel.make(made)
    assert made.host_ifname not in sandbox.host.links()
    assert "eth0" not in sandbox.netns(made.netns.value).links()
