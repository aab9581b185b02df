"""Whose a namespace is: users other than root, and tokens with a scope, may not connect somebody else's.

A namespace is a user's own where the kernel gives them every right over it already: it belongs to a user
namespace of theirs, or the process by which it is named is theirs. So is one that holds nothing but endpoints
that they made, which is one that the daemon made for them. It is a scoped token's own where every endpoint in
it is on the token's networks.
"""

from __future__ import annotations

import re

from app.model.errors import Forbidden
from app.model.spec import NetnsKind, NetnsRef
from app.services.context import Context

_OF_PROCESS = re.compile(r"/proc/([1-9][0-9]{0,9})/ns/net")
_HINT = "root may, and so may everybody where the daemon is started with --allow-foreign-namespaces"


def followed(context: Context, ref: NetnsRef) -> NetnsRef:
    """A confined caller's path as the process or name it stands for. Raises Forbidden for any other path.

    Another path could lead elsewhere by the time that it is opened again, and tells whether a file is there.
    """
    if ref.kind is not NetnsKind.PATH or not context.principal.confined:
        return ref
    process = _OF_PROCESS.fullmatch(ref.value)
    if process is None:
        raise Forbidden(
            f"netns '{ref.value}' is neither /proc/PID/ns/net nor a name under /run/netns, all that "
            f"{context.principal.name} may use; {_HINT}"
        )
    return NetnsRef(NetnsKind.PID, process[1])


def require_own(context: Context, ref: NetnsRef, key: str) -> None:
    """Raises Forbidden where a namespace that is there is not the confined caller's. `key`: of its endpoints."""
    if context.principal.confined and not _is_own(context, ref, key):
        raise Forbidden(
            f"{ref} is not a namespace of {context.principal.name}; use one of your own, or a new name "
            f"under /run/netns, which is made; {_HINT}"
        )


def require_any(context: Context, what: str) -> None:
    """Raises Forbidden for a confined caller."""
    if context.principal.confined:
        raise Forbidden(f"{context.principal.name} may not {what}: it may be about anybody's namespaces; {_HINT}")


def _is_own(context: Context, ref: NetnsRef, key: str) -> bool:
    principal = context.principal
    members = context.store.endpoints_in(key)
    if principal.uid is None:
        networks = [context.network(member.network_id) for member in members]
        return bool(networks) and all(principal.may_change(one.id, one.name) for one in networks)
    made_for_them = bool(members) and all(member.uid == principal.uid for member in members)
    return made_for_them or context.host.belongs_to(ref, principal.uid)
