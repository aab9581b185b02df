"""Settings of single links, which go with the link: no ledger keeps their former values."""

from __future__ import annotations

from app.kernel import sysctl
from app.model.errors import KernelRefused

_IPV6 = {
    # nobody's router advertisement counts here, and an address is usable at once
    "accept_ra": "0",
    "autoconf": "0",
    "accept_dad": "0",
    "dad_transmits": "0",
    # the link-local address is that of the MAC, which spoof_protection lets pass
    "addr_gen_mode": "0",
    "disable_ipv6": "0",
}
_STRICT, _LOOSE = 1, "2"


def set_ipv6(ifname: str, *, on: bool, net: int | None = None) -> None:
    """IPv6 as on a link that has a subnet for it; off without. A kernel without IPv6 has nothing to turn off.

    net: see `sysctl.read`.
    """
    for key, value in (_IPV6 if on else {"disable_ipv6": "1"}).items():
        path = f"net/ipv6/conf/{ifname}/{key}"
        try:
            sysctl.write(path, value, net)
        except KernelRefused:
            # not there; or read-only, and as it should be
            if sysctl.read(path, net) not in (None, value):
                raise


def ipv6_is_on(ifname: str) -> bool:
    """Whether the link has IPv6, in the calling thread's namespace."""
    return sysctl.read(f"net/ipv6/conf/{ifname}/disable_ipv6") == "0"


def is_strict(own: int, everywhere: int) -> bool:
    """Whether reverse path filtering is: the kernel takes the higher of a link's own setting and that of all."""
    return max(own, everywhere) == _STRICT


def filters_strictly(ifname: str) -> bool:
    """Whether reverse path filtering is strict on a link."""
    own, everywhere = (int(sysctl.read(f"net/ipv4/conf/{name}/rp_filter") or 0) for name in (ifname, "all"))
    return is_strict(own, everywhere)


def loosen_filter(ifname: str, net: int | None = None) -> None:
    """Loose reverse path filtering: what enters by one link may be answered by another."""
    sysctl.write(f"net/ipv4/conf/{ifname}/rp_filter", _LOOSE, net)
