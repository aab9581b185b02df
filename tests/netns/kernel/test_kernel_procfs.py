"""Settings of many namespaces are found as fast as those of one: in a procfs that holds few of them."""

import os
from contextlib import closing

import pytest
from driven import RED, WEB, netns

from app.kernel import libc, procfs
from app.kernel.procfs import OwnProc


def read(net, path):
    descriptor = os.open(path, os.O_RDONLY, dir_fd=net)
    try:
        return os.read(descriptor, 64).decode().strip()
    finally:
        os.close(descriptor)


def test_each_namespace_has_its_own_settings_and_keeps_them_when_the_procfs_is_renewed(sandbox, monkeypatch):
    monkeypatch.setattr(procfs, "_RENEWED", 2)
    names = [f"n{number}" for number in range(5)]
    with closing(OwnProc()) as proc:
        opened = {}
        for number, name in enumerate(names):
            inside = sandbox.add_netns(name)
            inside.exec(["sysctl", "-qw", f"net.ipv4.conf.lo.rp_filter={number % 3}"])
            opened[name] = inside.run(proc.open_net)
    for number, name in enumerate(names):
        net = opened[name]
        assert sandbox.netns(name).run(lambda net=net: read(net, "ipv4/conf/lo/rp_filter")) == str(number % 3)
        os.close(net)


def test_where_none_is_to_be_had_it_is_proc(sandbox, kernel, monkeypatch):
    def refused(_kind):
        raise PermissionError

    monkeypatch.setattr(libc, "mount_apart", refused)
    kernel.make(WEB, netns("red"), RED)
    assert kernel.is_kept(RED)
    kernel.remove(RED, netns("red"), WEB)


def test_it_is_to_be_had_here():
    os.close(libc.mount_apart("proc"))


def test_a_kind_that_the_kernel_lacks_is_refused():
    with pytest.raises(OSError, match="No such device"):
        libc.mount_apart("nothing")
