"""libnftables by its public C API: the one place that loads it. Commands go in as text, listings come out as JSON.

The library's netlink socket is opened with the object, in the calling thread's namespace, and stays open:
to close one costs 7 to 23 ms. One thread uses an object.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
from functools import cache
from typing import Any, Self

from app.firewall.nfnetlink import NETFILTER
from app.firewall.nft_listing import Listing
from app.model.errors import KernelRefused

LIBRARY = "libnftables.so.1"
_STATELESS, _HANDLE, _JSON, _TERSE = 1 << 2, 1 << 3, 1 << 4, 1 << 11
_NUMERIC = (1 << 7) | (1 << 8) | (1 << 9)  # protocols, priorities, symbols
_ASKED_LENGTH = 200
_FD_SETSIZE = 1024
"""The library waits with select(2), and ends the process where its socket has a higher number."""
_kept: list[int] = []
_TRIES = 64
_SOCKET = "socket (netlink netfilter)"


def keep_descriptors(count: int = 64) -> None:
    """Holds so many low descriptors back for the sockets of later contexts: clients may take all others."""
    while len(_kept) < count:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if descriptor >= _FD_SETSIZE:
            os.close(descriptor)
            return
        _kept.append(descriptor)


def _free_descriptor() -> int:
    """The number that the library's socket will have, if nobody is quicker. Raises KernelRefused."""
    if _kept:
        os.close(_kept.pop())
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as probe:
            descriptor = probe.fileno()
    except OSError as failure:  # the library would end the process
        raise KernelRefused(failure.errno or errno.EPROTONOSUPPORT, _SOCKET) from failure
    if descriptor >= _FD_SETSIZE:  # likewise
        raise KernelRefused(errno.EMFILE, _SOCKET, f"{descriptor} descriptors are open")
    return descriptor


def _is_netlink(descriptor: int) -> bool:
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        return False  # somebody's file by now
    family = found.family
    found.detach()
    return family == socket.AF_NETLINK


@cache
def _library() -> ctypes.CDLL:
    """Raises KernelRefused where the library is missing."""
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as failure:
        reason = f"{failure}; install it (Debian, Ubuntu: libnftables1)"
        raise KernelRefused(errno.ELIBACC, f"dlopen {LIBRARY}", reason) from failure
    context, text = ctypes.c_void_p, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "nft_ctx_new": (context, [ctypes.c_uint32]),
        "nft_ctx_free": (None, [context]),
        "nft_ctx_buffer_output": (ctypes.c_int, [context]),
        "nft_ctx_buffer_error": (ctypes.c_int, [context]),
        "nft_ctx_get_output_buffer": (text, [context]),
        "nft_ctx_get_error_buffer": (text, [context]),
        "nft_ctx_output_set_flags": (None, [context, ctypes.c_uint]),
        "nft_ctx_set_dry_run": (None, [context, ctypes.c_bool]),
        "nft_run_cmd_from_buffer": (ctypes.c_int, [context, text]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Libnftables:
    """A context of the library. Raises KernelRefused where the library is missing or gets no socket."""

    def __init__(self) -> None:
        self._context: int | None = None
        self._nft = _library()
        for _try in range(_TRIES):
            descriptor = _free_descriptor()
            self._context = self._nft.nft_ctx_new(0)
            if not self._context:
                raise KernelRefused(ctypes.get_errno() or errno.ENOMEM, _SOCKET)
            if _is_netlink(descriptor):
                break
            self.close()  # another thread was quicker, and this one's number may be too high
        if not self._context:
            raise KernelRefused(errno.EMFILE, _SOCKET, "no low descriptor stays free long enough")
        if self._nft.nft_ctx_buffer_output(self._context) or self._nft.nft_ctx_buffer_error(self._context):
            raise KernelRefused(errno.ENOMEM, "buffers of libnftables")

    def run(self, commands: str, *, dry: bool = False) -> None:
        """Text commands as nft(8) takes them, as one transaction: all or nothing. dry: checked by the kernel only.

        Raises KernelRefused; ENOENT also where the library itself misses what a command names.
        """
        self._nft.nft_ctx_set_dry_run(self._context, dry)
        self._run(commands, _STATELESS)

    def list(self, command: str, *, terse: bool = False) -> Listing:
        """What a command such as `list table ip bridgehead` shows, with handles; terse: named sets without elements.

        Raises KernelRefused, ENOENT where there is no such object.
        """
        self._nft.nft_ctx_set_dry_run(self._context, False)
        text = self._run(command, _JSON | _STATELESS | _HANDLE | _NUMERIC | (_TERSE if terse else 0))
        objects: Listing = json.loads(text)["nftables"] if text else []
        return [one for one in objects if "metainfo" not in one]

    def _run(self, commands: str, flags: int) -> bytes:
        self._nft.nft_ctx_output_set_flags(self._context, flags)
        ctypes.set_errno(0)
        failed = self._nft.nft_run_cmd_from_buffer(self._context, commands.encode())
        code = ctypes.get_errno()
        # both buffers start anew when they are read
        output: bytes = self._nft.nft_ctx_get_output_buffer(self._context) or b""
        complaint: bytes = self._nft.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            # the kernel's, but for what its own look around left: then it missed an object and asked nothing
            if code in {0, errno.EAGAIN}:
                code = errno.ENOENT
            reason = complaint.decode(errors="replace").strip().partition("\n")[0]
            asked = commands.strip().partition("\n")[0]
            raise KernelRefused(code, f"nft {asked[:_ASKED_LENGTH]}", reason)
        return output

    def close(self) -> None:
        """Closes the socket; the object is of no use afterwards."""
        if self._context:
            self._nft.nft_ctx_free(self._context)
            keep_descriptors(len(_kept) + 1)
        self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
