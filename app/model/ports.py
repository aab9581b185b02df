"""Host ports as users write them: one, or a range."""

from __future__ import annotations

import re

from app.model.errors import Invalid

FIRST, LAST = 1, 65535
AUTOMATIC = range(49153, LAST + 1)
"""Where a mapping without a `host_port` gets one."""
RANGE_PATTERN = r"^[0-9]{1,5}-[0-9]{1,5}$"


def parse_ports(ports: int | str) -> tuple[int, int]:
    """First port and count of `8080` or `"8000-8010"`. Raises Invalid with what would work."""
    if isinstance(ports, int):
        first = last = ports
    elif re.fullmatch(RANGE_PATTERN, ports, re.ASCII):
        first, last = (int(part) for part in ports.split("-"))
    else:
        raise Invalid(f"host_port '{ports}' is neither an integer such as 8080 nor a range such as '8000-8010'")
    for port in (first, last):
        if not FIRST <= port <= LAST:
            raise Invalid(f"host_port '{ports}': {port} is not a port; use {FIRST} to {LAST}")
    if last < first:
        raise Invalid(f"host_port '{ports}' is reversed; did you mean '{last}-{first}'?")
    return first, last - first + 1


def check_target(target_port: int, count: int) -> None:
    """Raises Invalid where the target ports of a range would end beyond the last port there is."""
    if target_port + count - 1 > LAST:
        raise Invalid(
            f"target_port {target_port} for {count} ports ends at {target_port + count - 1}, beyond {LAST}; "
            f"use one up to {LAST - count + 1}, or a smaller range"
        )


def ports_value(first: int, count: int) -> int | str:
    """Ports as the API shows them: an integer for one, else `"8000-8010"`."""
    return first if count == 1 else f"{first}-{first + count - 1}"
