"""The host's settings: set when needed, put back when not, with all that the kernel rewrites beside them."""

import errno
import json
import os
from functools import partial

import pytest
from driven import driven, setting
from frames import advertise

from app.kernel import sysctl
from app.model.errors import StoreFailed
from app.sandbox import GATEWAY6

FORWARD4, FORWARD6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"


def test_ipv6_forwarding_keeps_the_route_that_the_host_learnt(sandbox, kernel):
    host = sandbox.host
    host.write_sysctl("net/ipv6/conf/lo/forwarding", 1)
    assert advertise(sandbox)
    learnt = host.default_route(6)
    paths = ("net/ipv6/conf/lo/forwarding", "net/ipv6/conf/eth0/forwarding", "net/ipv6/conf/default/forwarding")
    before = {path: host.sysctl(path) for path in paths}
    kernel.make(setting(FORWARD6))
    assert host.sysctl(FORWARD6) == "1"
    assert host.sysctl("net/ipv6/conf/eth0/accept_ra") == "2"
    assert host.sysctl("net/ipv6/conf/lo/accept_ra") == "1"
    assert host.default_route(6) == learnt
    assert list(kernel.observe(setting(FORWARD6)).values()) == [setting(FORWARD6)]
    assert list(kernel.observe().values()) == [setting(FORWARD6)]
    kernel.remove(setting(FORWARD6))
    assert host.sysctl(FORWARD6) == "0"
    assert host.sysctl("net/ipv6/conf/eth0/accept_ra") == "1"
    assert {path: host.sysctl(path) for path in paths} == before
    assert host.default_route(6) == learnt


@pytest.mark.parametrize("accepting", ["0", "1", "2"])
def test_only_who_learns_its_route_and_takes_it_by_itself_is_told_to_go_on(sandbox, kernel, accepting):
    host = sandbox.host
    host.exec(["ip", "-6", "route", "delete", "default"])
    host.exec(["ip", "-6", "route", "add", "default", "via", GATEWAY6, "dev", "eth0", "proto", "ra"])
    host.write_sysctl("net/ipv6/conf/eth0/accept_ra", accepting)
    kernel.make(setting(FORWARD6))
    assert host.sysctl("net/ipv6/conf/eth0/accept_ra") == ("2" if accepting == "1" else accepting)
    kernel.remove(setting(FORWARD6))
    assert host.sysctl("net/ipv6/conf/eth0/accept_ra") == accepting


def test_a_link_that_learns_its_route_later_is_told_then(sandbox, tmp_path):
    """Once: what an administrator makes of it afterwards stays."""
    host, accept = sandbox.host, "net/ipv6/conf/eth0/accept_ra"
    forwarding = setting(FORWARD6)
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(forwarding)
        host.exec(["ip", "-6", "route", "delete", "default"])
        host.write_sysctl(accept, 1)
        assert kernel.is_kept(forwarding)
        host.exec(["ip", "-6", "route", "add", "default", "via", GATEWAY6, "dev", "eth0", "proto", "ra"])
        assert not kernel.is_kept(forwarding)
        kernel.repair(forwarding)
        assert host.sysctl(accept) == "2"
        assert kernel.is_kept(forwarding)
    with driven(sandbox, tmp_path) as kernel:
        host.write_sysctl(accept, 1)
        assert kernel.is_kept(forwarding)
        host.write_sysctl(accept, 2)
        kernel.remove(forwarding)
    assert host.sysctl(accept) == "1"


def test_a_host_that_forwards_by_itself_is_left_alone(sandbox, kernel):
    host = sandbox.host
    host.write_sysctl(FORWARD6, 1)
    host.write_sysctl("net/ipv6/conf/eth0/accept_ra", 1)
    host.exec(["ip", "-6", "route", "replace", "default", "via", GATEWAY6, "dev", "eth0", "proto", "ra"])
    kernel.make(setting(FORWARD6))
    assert kernel.is_kept(setting(FORWARD6))
    assert host.sysctl("net/ipv6/conf/eth0/accept_ra") == "1"


def test_the_former_values_outlive_the_daemon(sandbox, tmp_path):
    assert advertise(sandbox)
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(setting(FORWARD6))
    with driven(sandbox, tmp_path) as kernel:
        assert list(kernel.observe().values()) == [setting(FORWARD6)]
        kernel.remove(setting(FORWARD6))
    assert sandbox.host.sysctl("net/ipv6/conf/eth0/accept_ra") == "1"
    assert not (tmp_path / "sysctl.json").exists()


def test_a_setting_is_taken_back_on_a_full_disk(sandbox, tmp_path, monkeypatch):
    """Its row is in the file until what restored it is settled, so that nothing has to be written."""
    file = tmp_path / "sysctl.json"
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(setting(FORWARD4))
        kept = file.read_bytes()
        with monkeypatch.context() as full:
            full.setattr(os, "write", no_room)
            kernel.remove(setting(FORWARD4))
            assert sandbox.host.sysctl(FORWARD4) == "0"
            kernel.make(setting(FORWARD4))
        assert sandbox.host.sysctl(FORWARD4) == "1"
        kernel.do("settle")
        assert file.read_bytes() == kept
        kernel.remove(setting(FORWARD4))
        kernel.do("settle")
        assert not file.exists()


def no_room(descriptor, data, write=os.write):
    """os.write, but for settings themselves: a part of it, then nothing."""
    if "/sys/net/" in os.readlink(f"/proc/self/fd/{descriptor}"):
        return write(descriptor, data)
    if len(data) == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, data[: len(data) // 2])


def test_without_room_for_the_former_value_nothing_is_set(sandbox, tmp_path, monkeypatch):
    with driven(sandbox, tmp_path) as kernel:
        monkeypatch.setattr(os, "write", no_room)
        with pytest.raises(StoreFailed, match="No space left"):
            kernel.make(setting(FORWARD4))
        assert sandbox.host.sysctl(FORWARD4) == "0"
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
        kernel.make(setting(FORWARD4))
        kernel.remove(setting(FORWARD4))
    assert sandbox.host.sysctl(FORWARD4) == "0"


def test_later_rows_are_lines_of_the_file_until_it_is_long(sandbox, tmp_path, monkeypatch):
    """They come and go at the cost of a row, and what goes on for long does not make it ever longer."""
    file, local = tmp_path / "sysctl.json", setting("net/ipv4/conf/lo/route_localnet")
    monkeypatch.setattr(sysctl, "_MORE", 1000)
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(setting(FORWARD4))
        first = file.read_bytes()
        kernel.make(local)
        assert file.read_bytes().startswith(first)
        assert len(file.read_bytes().splitlines()) == 2
        with monkeypatch.context() as full:
            full.setattr(os, "write", no_room)
            with pytest.raises(StoreFailed, match="No space left"):
                kernel.make(setting(FORWARD6))
        assert len(file.read_bytes().splitlines()) == 2
        assert file.read_bytes().endswith(b"\n")
        longest = 0
        for _ in range(20):
            kernel.remove(local)
            kernel.do("settle")
            kernel.make(local)
            longest = max(longest, file.stat().st_size)
        assert longest < len(first) + 2000
    assert json.loads(file.read_text().splitlines()[-1])["changed"].keys() >= {local.path}


@pytest.mark.parametrize("tail", ["", '{"epoch": "'])
def test_what_the_last_lines_say_counts(sandbox, tmp_path, tail):
    """One that was not finished had changed nothing yet."""
    file, local = tmp_path / "sysctl.json", setting("net/ipv4/conf/lo/route_localnet")
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(setting(FORWARD4), local)
        kernel.remove(local)
        kernel.do("settle")
        kernel.make(setting(FORWARD6))
    with file.open("a") as more:
        more.write(tail)
    with driven(sandbox, tmp_path) as kernel:
        assert kernel.observe().keys() == {setting(FORWARD4).key, setting(FORWARD6).key}
        kernel.make(local)
    with driven(sandbox, tmp_path) as kernel:
        kernel.remove(setting(FORWARD4), setting(FORWARD6), local)
    assert [sandbox.host.sysctl(path) for path in (FORWARD4, FORWARD6, local.path)] == ["0"] * 3
    assert not file.exists()


def test_a_file_that_somebody_took_away_is_written_again(sandbox, tmp_path):
    file, local = tmp_path / "sysctl.json", setting("net/ipv4/conf/lo/route_localnet")
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(setting(FORWARD4))
        file.unlink()
        kernel.make(local)
    with driven(sandbox, tmp_path) as kernel:
        kernel.remove(setting(FORWARD4), local)
    assert [sandbox.host.sysctl(path) for path in (FORWARD4, local.path)] == ["0"] * 2


def test_a_file_of_an_older_daemon_is_understood(sandbox, tmp_path):
    with driven(sandbox, tmp_path) as kernel:
        kernel.make(setting(FORWARD4))
    file = tmp_path / "sysctl.json"
    kept = json.loads(file.read_text())
    kept["changed"] = {path: values[:3] for path, values in kept["changed"].items()}
    file.write_text(json.dumps(kept))
    with driven(sandbox, tmp_path) as kernel:
        kernel.remove(setting(FORWARD4))
    assert sandbox.host.sysctl(FORWARD4) == "0"


# --- who depends on it


def foreign_bridge(sandbox, address="10.88.0.1/16"):
    sandbox.host.add_bridge("cni0")
    other = sandbox.add_netns("pod")
    sandbox.host.add_veth("vethpod", "eth0", other, master="cni0")
    sandbox.host.exec(["ip", "address", "add", address, "dev", "cni0"])


def routed_pod(sandbox, address="10.88.0.2/32"):
    other = sandbox.add_netns("pod")
    sandbox.host.add_veth("cali1", "eth0", other)
    sandbox.host.exec(["ip", "route", "add", address, "dev", "cali1"])


@pytest.mark.parametrize(
    ("path", "arrive"),
    [
        (FORWARD4, foreign_bridge),
        (FORWARD4, routed_pod),
        (FORWARD6, partial(foreign_bridge, address="fd88::1/64")),
        (FORWARD6, partial(routed_pod, address="fd88::2/128")),
    ],
)
def test_forwarding_stays_where_somebody_came_to_depend_on_it(sandbox, kernel, path, arrive, caplog):
    caplog.set_level("INFO")
    kernel.make(setting(path))
    arrive(sandbox)
    kernel.remove(setting(path))
    assert sandbox.host.sysctl(path) == "1"
    assert "forwards by it" in caplog.text
    assert kernel.observe() == {}


@pytest.mark.parametrize("path", [FORWARD4, FORWARD6])
def test_forwarding_goes_where_others_did_without_it(sandbox, kernel, path):
    foreign_bridge(sandbox)
    sandbox.host.exec(["ip", "address", "add", "fd88::1/64", "dev", "cni0"])
    kernel.make(setting(path))
    sandbox.host.add_bridge("idle")
    sandbox.host.exec(["ip", "address", "add", "10.87.0.1/16", "dev", "idle"])
    kernel.remove(setting(path))
    assert sandbox.host.sysctl(path) == "0"


# --- reverse path filter


@pytest.mark.parametrize(
    ("everywhere", "own", "wanted"),
    [("0", "0", "0"), ("1", "0", "2"), ("0", "1", "2"), ("2", "1", "1"), ("2", "0", "0")],
)
def test_a_strict_filter_is_loosened_and_no_other(sandbox, kernel, everywhere, own, wanted):
    host, path = sandbox.host, "net/ipv4/conf/br9/rp_filter"
    host.add_bridge("br9")
    host.write_sysctl("net/ipv4/conf/all/rp_filter", everywhere)
    host.write_sysctl(path, own)
    loose = setting(path, "2")
    kernel.make(loose)
    assert host.sysctl(path) == wanted
    assert kernel.is_kept(loose)
    if wanted != "2":
        host.write_sysctl("net/ipv4/conf/all/rp_filter", 1)
        host.write_sysctl(path, 0)
        assert not kernel.is_kept(loose)
        kernel.repair(loose)
        own = "0"
    assert host.sysctl(path) == "2"
    kernel.remove(loose)
    assert host.sysctl(path) == own


def test_a_setting_that_went_with_its_link_is_forgotten(sandbox, kernel):
    host, path = sandbox.host, "net/ipv4/conf/br9/route_localnet"
    host.add_bridge("br9")
    kernel.make(setting(path))
    host.delete_link("br9")
    kernel.remove(*kernel.observe().values())
    assert kernel.observe() == {}
