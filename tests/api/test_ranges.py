"""Port ranges, SCTP, and automatic ports: whom which port belongs to, at any number of mappings."""

from ipaddress import ip_address

import pytest
from harness import UPLINK
from hypothesis import given
from hypothesis import strategies as st
from values import portmap

from app.model.spec import Protocol
from app.store.indexed import Intervals
from app.store.memory import Memory
from app.store.repository import Repository
from app.store.session import transaction


@pytest.fixture
def api(api):
    api.network()
    api.endpoint()
    return api


def held(api):
    return [line for line in api.kernel.snapshot().splitlines() if line.startswith("port ")]


def test_a_range(api):
    made = api.portmap(host_port="8000-8010")
    assert (made["host_port"], made["target_port"]) == ("8000-8010", 8000)
    assert held(api) == ["port tcp 0.0.0.0 8000-8010"]
    assert api.get("/portmaps") == [made]
    assert api.portmap(host_port="9000-9001", target_port=80)["target_port"] == 80


def test_a_range_of_one_is_one(api):
    assert api.portmap(host_port="8000-8000")["host_port"] == 8000


def test_the_last_ports(api):
    assert api.portmap(host_port="65530-65535")["target_port"] == 65530
    assert api.portmap(host_port="1-10", target_port=65526)["target_port"] == 65526


def test_sctp_is_a_protocol_of_its_own(api):
    made = [api.portmap(host_port=132, protocol=protocol)["protocol"] for protocol in ("tcp", "udp", "sctp")]
    assert made == ["tcp", "udp", "sctp"]
    body = {"endpoint": "red", "protocol": "sctp", "host_port": 132}
    api.refused("POST", "/portmaps", body, 409, "port_taken", "sctp/0.0.0.0:132")


@pytest.mark.parametrize("ports", [8000, 8005, 8010, "7990-8000", "8010-8020", "8003-8004", "7000-9000", "8000-8010"])
@pytest.mark.parametrize(("first", "second"), [("0.0.0.0", UPLINK), (UPLINK, "0.0.0.0"), (UPLINK, UPLINK)])
def test_an_overlap_is_taken_and_names_the_holder(api, first, second, ports):
    made = api.portmap(host_ip=first, host_port="8000-8010")
    body = {"endpoint": "red", "host_ip": second, "host_port": ports}
    words = (f"tcp/{second}:{ports}", made["id"], f"tcp/{first}:8000-8010", "red")
    api.refused("POST", "/portmaps", body, 409, "port_taken", *words)


def test_neighbours_protocols_and_other_addresses_are_free(api):
    api.portmap(host_ip=UPLINK, host_port="8000-8010")
    api.portmap(host_port=7999)
    api.portmap(host_port="8011-8012")
    api.portmap(host_port="8000-8010", protocol="udp")
    api.portmap(host_port="8000-8010", host_ip="127.0.0.1")
    assert len(held(api)) == 5


def test_a_wide_range_hides_no_narrow_one(api):
    api.portmap(host_port="1000-3000")
    api.portmap(host_port=5000)
    body = {"endpoint": "red", "host_port": "3000-3001"}
    api.refused("POST", "/portmaps", body, 409, "port_taken", "1000-3000")
    body = {"endpoint": "red", "host_port": "4000-6000"}
    api.refused("POST", "/portmaps", body, 409, "port_taken", "5000")


def test_a_process_within_a_range_is_named(api):
    api.kernel.hold_port(Protocol.TCP, ip_address(UPLINK), 8007, "process 'nginx' (pid 7)")
    body = {"endpoint": "red", "host_port": "8000-8010"}
    api.refused("POST", "/portmaps", body, 409, "port_taken", "8007", "process 'nginx' (pid 7)")


def test_patch_grows_shrinks_and_moves_and_keeps_the_target(api):
    made = api.portmap(host_port=8000)
    path = f"/portmaps/{made['id']}"
    changed = api.patch(path, host_port="8000-8010")
    assert (changed["host_port"], changed["target_port"]) == ("8000-8010", 8000)
    changed = api.patch(path, host_port="8005-8015", target_port=9000)
    assert (changed["host_port"], changed["target_port"]) == ("8005-8015", 9000)
    assert held(api) == ["port tcp 0.0.0.0 8005-8015"]
    api.portmap(host_port="8000-8004")
    api.refused("PATCH", path, {"host_port": "8004-8010"}, 409, "port_taken", "8000-8004")
    assert api.patch(path, host_port=8005)["host_port"] == 8005
    assert api.patch(path, host_ip=UPLINK)["host_port"] == 8005


def test_automatic_ports_pass_ranges(api):
    api.portmap(host_port="49150-49155")
    api.portmap(host_port="49157-49160", host_ip=UPLINK)
    assert [api.portmap()["host_port"] for _number in range(2)] == [49156, 49161]
    assert api.portmap(host_ip="127.0.0.1")["host_port"] == 49157


def test_an_automatic_port_that_was_freed_is_the_next(api):
    made = [api.portmap() for _number in range(4)]
    api.delete(f"/portmaps/{made[1]['id']}")
    assert [api.portmap()["host_port"] for _number in range(2)] == [49154, 49157]
    api.patch(f"/portmaps/{made[2]['id']}", host_port=80)
    assert api.portmap()["host_port"] == 49155
    api.patch(f"/portmaps/{made[0]['id']}", host_ip=UPLINK)
    assert api.portmap(host_ip="127.0.0.1")["host_port"] == 49153


def test_a_refused_request_moves_no_port(api):
    body = {"endpoint": "red", "target_port": 65535, "host_port": "49153-49154"}
    api.refused("POST", "/portmaps", body, 422, "invalid", 65534)
    assert api.portmap()["host_port"] == 49153


def test_the_last_automatic_port_and_what_a_process_gave_back(api):
    api.kernel.hold_port(Protocol.TCP, ip_address("0.0.0.0"), 49153, "nc")
    api.portmap(host_port="49154-65534")
    assert api.portmap()["host_port"] == 65535
    api.refused("POST", "/portmaps", {"endpoint": "red"}, 409, "port_taken", "49153-65535")
    api.kernel._foreign_ports.clear()
    assert api.portmap()["host_port"] == 49153


def filled(api, number):
    endpoint = api.get("/endpoints/red")["id"]
    with transaction(api.engine) as store:
        for port in range(49153, 49153 + number):
            store.add_portmap(portmap(f"p{port}", endpoint, "0.0.0.0", port, 1))
    api.reread()


def test_the_next_automatic_port_reads_only_what_is_new(api, monkeypatch):
    filled(api, 600)
    assert api.portmap()["host_port"] == 49753
    read = []
    original = Repository.held_ports

    def counted(self, *arguments):
        for one in original(self, *arguments):
            read.append(one)
            yield one

    monkeypatch.setattr(Repository, "held_ports", counted)
    assert api.portmap()["host_port"] == 49754
    assert len(read) <= 1


def test_a_collision_is_found_by_an_index(api, monkeypatch):
    filled(api, 600)
    looked_at = []
    original = Intervals.meeting

    def counted(self, *arguments):
        for one in original(self, *arguments):
            looked_at.append(one)
            yield one

    monkeypatch.setattr(Intervals, "meeting", counted)
    api.portmap(host_port="8000-8004")
    api.refused("POST", "/portmaps", {"endpoint": "red", "host_port": 49300}, 409, "port_taken", 49300)
    assert len([one for one in looked_at if isinstance(one[2], str)]) <= 3


spans = st.tuples(
    st.sampled_from(["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"]), st.integers(1, 60), st.integers(1, 12)
)


@given(st.lists(spans, max_size=12), spans)
def test_what_is_in_the_way_equals_brute_force(others, wanted):
    store = Memory()
    rows = [portmap(str(number), "red", *span) for number, span in enumerate(dict.fromkeys(others))]
    rows = list({(one.host_ip, one.host_port): one for one in rows}.values())
    new = portmap("new", "red", *wanted)

    def meets(one):
        addresses = (one.host_ip, new.host_ip)
        same = one.host_ip == new.host_ip or 0 in map(int, addresses)
        overlap = one.host_port <= new.last_port and new.host_port <= one.last_port
        return one.host_ip.version == new.host_ip.version and same and overlap

    for one in rows:
        store._portmaps.put(one)
    found = store.portmap_in_the_way(new)
    taken = set()
    for first, last in store.held_ports(Protocol.TCP, new.host_ip, new.host_port, new.last_port):
        taken |= set(range(first, last + 1))
    wanted_ones = [one for one in rows if meets(one)]
    assert (found is not None) == bool(wanted_ones)
    assert found is None or found in wanted_ones
    assert taken == {port for one in wanted_ones for port in range(one.host_port, one.last_port + 1)}
