"""Kernel settings below /proc/sys, and what they were before we changed them."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

from app.kernel.netlink import netns_cookie
from app.model.errors import KernelRefused

log = logging.getLogger("bridgehead.kernel")

ROOT = Path("/proc/sys")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read(path: str) -> str | None:
    """The setting's value in the calling thread's namespace, None where the kernel has no such setting."""
    try:
        return (ROOT / path).read_text().strip()
    except FileNotFoundError:
        return None


def write(path: str, value: str) -> None:
    """Raises KernelRefused."""
    try:
        (ROOT / path).write_text(value)
    except OSError as refusal:
        asked = f"sysctl -w {path.replace('/', '.')}={value}"
        raise KernelRefused(refusal.errno or errno.EIO, asked) from refusal


class SysctlLedger:
    """Sets values and remembers the former ones in a file that a reboot, or another namespace, makes void."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._epoch = f"{_BOOT_ID.read_text().strip()}/{netns_cookie()}"
        self._changed: dict[str, tuple[str, str, dict[str, str]]] = self._load()

    def _load(self) -> dict[str, tuple[str, str, dict[str, str]]]:
        try:
            kept = json.loads(self._file.read_text())
            if kept["epoch"] != self._epoch:
                return {}
            return {
                str(path): (str(former), str(ours), {str(key): str(value) for key, value in beside.items()})
                for path, (former, ours, beside) in kept["changed"].items()
            }
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as failure:
            log.warning("%s cannot be read, former sysctl values are lost: %s", self._file, failure)
            return {}

    def _save(self) -> None:
        if not self._changed:
            self._file.unlink(missing_ok=True)
            return
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps({"epoch": self._epoch, "changed": self._changed}))
        beside.replace(self._file)

    def set(self, path: str, value: str) -> None:
        """Sets a value; its former one is on disk first. Raises KernelRefused."""
        current = read(path)
        if current == value:
            return
        if current is not None:
            former, beside = current, _beside(path)
            if path in self._changed:
                former, _ours, beside = self._changed[path]
            self._changed[path] = (former, value, beside)
            self._save()
        write(path, value)

    def restore(self, path: str) -> None:
        """Puts the former value back, unless it was as wanted from the first or somebody changed it since."""
        if path not in self._changed:
            return
        former, ours, beside = self._changed[path]
        current = read(path)
        if current == ours:
            write(path, former)
            for other, value in beside.items():
                if read(other) not in (None, value):
                    write(other, value)
        elif current is not None:
            log.info("%s stays %s: somebody changed it since it was set to %s", path, current, ours)
        del self._changed[path]
        self._save()

    def former(self, path: str, current: str) -> str | None:
        """What a setting was before we set it to `current`; None where we did not."""
        former, ours, _beside = self._changed.get(path, ("", None, {}))
        return former if ours == current else None

    def held(self) -> list[str]:
        """The settings that we changed."""
        return list(self._changed)


def _beside(path: str) -> dict[str, str]:
    """What the kernel itself rewrites with ip_forward: every link's forwarding, and whether redirects are taken.

    Documentation/networking/ip-sysctl: "this variable is special, its change resets all configuration".
    """
    if path != "net/ipv4/ip_forward":
        return {}
    links = (
        f"net/ipv4/conf/{link.name}/forwarding" for link in (ROOT / "net/ipv4/conf").iterdir() if link.name != "all"
    )
    values = {path: read(path) for path in ("net/ipv4/conf/all/accept_redirects", *links)}
    return {path: value for path, value in values.items() if value is not None}
