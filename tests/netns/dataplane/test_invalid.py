"""Row 11: TCP that conntrack calls INVALID. What is valid goes the same way after it, so silence needs no waiting."""

from contextlib import ExitStack

import pytest
from segments import ACK, FIN, RST, SYN, Segment, arrivals, send

pytestmark = pytest.mark.parametrize("forward_policy", ["ACCEPT"])  # DROP would do our work

WITHOUT_FLOW = {1001: RST, 1002: FIN | ACK, 1003: SYN | ACK, 1004: ACK}
"""By destination port, to tell them apart."""
DAMAGED, VALID, SPORT = 1005, 80, 40000
FAR = 1 << 28


@pytest.fixture
def strict(lab):
    """conntrack takes up no connection whose beginning it did not see."""
    lab.host.write_sysctl("net/netfilter/nf_conntrack_tcp_loose", 0)


def test_row_11_segments_of_no_connection(lab, family, cell, strict):
    """From inside to outside, masqueraded and not; between networks; from outside to a routed network."""
    lab.network("web", masquerade=False, isolated=False)
    red, green = lab.endpoint("red"), lab.green(isolated=False)
    lab.route_back(family.web)
    for one, source, other, destination in (
        (red, family.red, lab.internet, family.server),
        (green, family.green, lab.internet, family.server),
        (lab.client, family.client, red, family.red),
        (red, family.red, green, family.green),
        (green, family.green, red, family.red),
    ):
        with cell("tcp"), arrivals(other, family) as arrived:
            for port, flags in WITHOUT_FLOW.items():
                send(one, source, destination, Segment(SPORT, port, 1, flags))
            send(one, source, destination, Segment(SPORT, DAMAGED, 1, SYN), damaged=True)
            send(one, source, destination, Segment(SPORT, VALID, 1, SYN))
            found = [segment.dport for segment in arrived.until(lambda segment: segment.dport == VALID)]
            assert found == [VALID], f"{one.name} to {other.name}"


def connections(lab, red, green):
    """Through a mapping, out of a network, between networks: both ends of each, with their addresses."""
    family = lab.family
    return (
        (lab.client, family.client, family.host, 8080, red, family.red),
        (red, family.red, family.server, 80, lab.internet, family.server),
        (green, family.green, family.red, 80, red, family.red),
    )


def test_row_11_segments_outside_an_established_connection_s_window(lab, family, cell):
    """Neither end sees those of the other one, and no connection is reset by them."""
    lab.network("web", isolated=False)
    red, green = lab.endpoint("red"), lab.green(isolated=False)
    lab.portmap("red", 8080, target_port=80)
    with lab.server(red, "tcp", 80), lab.server(lab.internet, "tcp", 80):
        for one, source, dialled, port, other, destination in connections(lab, red, green):
            with cell("tcp"), ExitStack() as stack:
                to_one, to_other = (stack.enter_context(arrivals(place, family)) for place in (one, other))
                connection = stack.enter_context(one.connect(dialled, port))
                assert connection.recv(100) == other.banner
                echo(connection)
                last = to_other.now()[-1]
                peer = dialled if port == 8080 else destination
                asked, answered = lost(last.sport, port, last.seq, last.ack), lost(80, last.sport, last.ack, last.seq)
                if port == 8080:
                    asked.pop()  # no mapping takes it up, and the host's own TCP would answer it with a reset
                sport = connection.getsockname()[1]
                send(one, source, peer, *(segment._replace(sport=sport) for segment in asked))
                send(other, destination, source_seen(lab, one, source), *answered)
                echo(connection)
                stray = {segment.seq for segment in asked + answered}
                for arrived in (to_one, to_other):
                    assert not [segment for segment in arrived.now() if segment.seq in stray]


def source_seen(lab, one, source):
    """The address by which the other end knows this one."""
    masqueraded = one.name == "red"  # only what leaves for the internet
    return lab.family.host if masqueraded else source


def lost(sport, dport, seq, ack):
    """Segments of a connection that are far outside its window."""
    here = Segment(sport, dport, seq, RST, ack)
    return [here.moved(FAR), here.moved(-FAR), here._replace(flags=ACK).moved(FAR)]


def echo(connection):
    connection.sendall(b"still here")
    assert connection.recv(100) == b"still here"
