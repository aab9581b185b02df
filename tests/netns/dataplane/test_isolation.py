"""Row 4: from one network to another's endpoint."""

import pytest
from cells import PROTOCOLS
from lab import patience, together

_ROUND = [(True, True), (False, True), (False, False), (True, False)]
"""Which of both networks is isolated; one changes from each to the next."""


@pytest.mark.parametrize("forward_policy", ["ACCEPT"])  # DROP would do our work
@pytest.mark.parametrize(
    ("masquerade", "first"),
    [((True, True), 0), ((True, False), 1), ((False, False), 2), ((False, True), 3)],
)
def test_row_04_isolated_networks_do_not_reach_one_another(lab, family, cell, masquerade, first):
    """Neither by masquerading nor routed; each change on the live networks, all the way round."""
    isolated = _ROUND[first]
    red = lab.red(isolated=isolated[0], masquerade=masquerade[0])
    green = lab.green(isolated=isolated[1], masquerade=masquerade[1])
    between(lab, cell, red, green, isolated)
    for step in range(1, 5):
        before, isolated = isolated, _ROUND[(first + step) % 4]
        changed = int(before[0] == isolated[0])
        lab.patch(f"networks/{('web', 'lan')[changed]}", isolated=isolated[changed])
        between(lab, cell, red, green, isolated)
    for place, address, other in ((lab.host, family.green, green), (lab.host, family.red, red)):
        lab.check(cell, True, place, address, other)


@pytest.mark.parametrize(("firewall", "forward_policy"), [("iptables", "DROP")])
@pytest.mark.parametrize("masquerade", [(True, True), (False, False)])
def test_row_04_open_networks_pass_where_the_host_forwards_nothing_else(lab, cell, masquerade):
    red = lab.red(isolated=False, masquerade=masquerade[0])
    green = lab.green(isolated=False, masquerade=masquerade[1])
    between(lab, cell, red, green, (False, False))


def between(lab, cell, red, green, isolated):
    """All passes, with its own addresses, or nothing does."""
    family, passes = lab.family, not any(isolated)
    found = together(
        {
            "red to green": lambda: lab.reached(red, family.green, green, timeout=patience(passes)),
            "green to red": lambda: lab.reached(green, family.red, red, timeout=patience(passes)),
        }
    )
    for protocol in PROTOCOLS:
        with cell(protocol):
            for way, passed in found.items():
                assert passed[protocol] is passes, f"isolated {isolated}, {way}: {passed}"
                assert passed["ping"] is passes, f"isolated {isolated}, {way}: {passed}"
    if passes:
        keeps_its_address(lab, cell, red, green, family.red, family.green)
        keeps_its_address(lab, cell, green, red, family.green, family.red)


def keeps_its_address(lab, cell, one, other, source, address):
    with lab.servers(other) as servers:
        for protocol in PROTOCOLS:
            with cell(protocol):
                assert one.ask(protocol, address, 80) == other.banner
                assert servers[protocol].last_peer == source
