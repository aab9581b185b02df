"""Every error the daemon can answer with: typed, with a stable code and an HTTP status."""

from __future__ import annotations

import errno as errno_names
import os


class BridgeheadError(Exception):
    """An expected failure. `detail` says what was wrong, with which value, and what would work."""

    code = "internal"
    status = 500
    title = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def extra(self) -> dict[str, object]:
        """Members beyond RFC 9457's own that the problem document carries."""
        return {}


class Invalid(BridgeheadError):
    code, status, title = "invalid", 422, "Invalid request"


class AddressOutsideSubnet(BridgeheadError):
    code, status, title = "address_outside_subnet", 422, "Address outside the subnet"


class IdempotencyMismatch(BridgeheadError):
    code, status, title = "idempotency_mismatch", 422, "Idempotency-Key of another request"


class PreconditionFailed(BridgeheadError):
    code, status, title = "precondition_failed", 412, "Precondition failed"


class NotFound(BridgeheadError):
    code, status, title = "not_found", 404, "Not found"


class NamespaceMissing(BridgeheadError):
    code, status, title = "namespace_missing", 404, "Network namespace missing"


class Conflict(BridgeheadError):
    status = 409


class NameTaken(Conflict):
    code, title = "name_taken", "Name taken"


class AddressTaken(Conflict):
    code, title = "address_taken", "Address taken"


class SubnetOverlap(Conflict):
    code, title = "subnet_overlap", "Subnet overlaps"


class PoolExhausted(Conflict):
    code, title = "pool_exhausted", "Pool exhausted"


class PortTaken(Conflict):
    code, title = "port_taken", "Port taken"


class NetworkInUse(Conflict):
    code, title = "network_in_use", "Network in use"


class EndpointInUse(Conflict):
    code, title = "endpoint_in_use", "Endpoint in use"


class InterfaceExists(Conflict):
    code, title = "interface_exists", "Interface exists"


class InternalNetwork(Conflict):
    code, title = "internal_network", "Network is internal"


class NoGateway(Conflict):
    code, title = "no_gateway", "Network has no gateway"


class BridgeFull(Conflict):
    code, title = "bridge_full", "Bridge is full"


class NotEmpty(Conflict):
    code, title = "not_empty", "Not empty"


class TooManyPorts(Conflict):
    code, title = "too_many_ports", "Too many ports"


class Unauthorized(BridgeheadError):
    code, status, title = "unauthorized", 401, "Unauthorized"


class Forbidden(BridgeheadError):
    code, status, title = "forbidden", 403, "Forbidden"


class Misdirected(BridgeheadError):
    """A Host header that is not ours: a name that somebody points at us (DNS rebinding)."""

    code, status, title = "misdirected", 421, "Misdirected request"


class TooManyRequests(BridgeheadError):
    """retry_after: seconds."""

    code, status, title = "too_many_requests", 429, "Too many requests"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class TooSlow(BridgeheadError):
    code, status, title = "too_slow", 408, "Request took too long"


class BodyTooLarge(BridgeheadError):
    code, status, title = "body_too_large", 413, "Body too large"


class KernelRefused(BridgeheadError):
    """The kernel said no.

    errno: the kernel's error number; asked: what was asked of it, as the command one would type;
    reason: the kernel's own words (netlink extended ack), where it gave any.
    """

    code, status, title = "kernel_refused", 502, "The kernel refused"

    def __init__(self, errno: int, asked: str, reason: str = "") -> None:
        self.errno = errno
        self.asked = asked
        self.reason = reason or os.strerror(errno)
        super().__init__(f"the kernel refused '{asked}': {self.name} ({self.reason})")

    @property
    def name(self) -> str:
        """The errno's symbol, such as EEXIST."""
        return errno_names.errorcode.get(self.errno, str(self.errno))

    def extra(self) -> dict[str, object]:
        return {"errno": self.errno, "errno_name": self.name, "asked": self.asked}


class StoreFailed(BridgeheadError):
    code, status, title = "store_failed", 503, "The database refused"


class ShuttingDown(BridgeheadError):
    code, status, title = "shutting_down", 503, "Shutting down"


class StartupError(BridgeheadError):
    """The daemon cannot start; `detail` is the one line that says why."""

    code, status, title = "startup_failed", 500, "Cannot start"
