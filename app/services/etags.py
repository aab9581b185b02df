"""Entity tags: one for each state of an object that a client can bring about (RFC 9110, 8.8.3).

Status is not part of it: it is the kernel's, and moves by itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

from app.model.errors import PreconditionFailed
from app.model.spec import Allocation, Endpoint, Network, Portmap
from app.services.context import Change, Context, Object, Objects

Service = Callable[[Context], Change]
_TAG = re.compile(r'(?:W/)?"[^"]*"|\*')


def tag_of(view: Objects, subject: Object) -> str:
    """The tag, quoted: of the object, and of what its answer shows of others. Raises NotFound where those are gone."""
    match subject:
        case Network():
            return _tag(subject)
        case Endpoint():
            network = view.network(subject.network_id)
            prefixes = [plan.subnet.prefixlen for plan in network.plans]
            return _tag(subject, network.name, network.gateway_for(4), network.gateway_for(6), prefixes)
        case Portmap():
            return _tag(subject, view.endpoint(subject.endpoint_id).name)
        case Allocation():
            return _tag(subject, view.network(subject.network_id).name)


def _tag(*parts: object) -> str:
    return f'"{hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()[:32]}"'


def _tags(lines: Sequence[str]) -> list[str]:
    return [tag for line in lines for tag in _TAG.findall(line)]


def is_known(tag: str, if_none_match: Sequence[str]) -> bool:
    """Whether the client has what the tag stands for; weak comparison."""
    return any(given.removeprefix("W/") in (tag, "*") for given in _tags(if_none_match))


def matching(service: Service, find: Callable[[Context], Object], if_match: Sequence[str] | None) -> Service:
    """The service behind a check of the object, in the change's own transaction: a tag that was read is never late.

    Raises PreconditionFailed unless a tag matches; strong comparison.
    """
    if if_match is None:
        return service

    def checked(context: Context) -> Change:
        tag = tag_of(context, find(context))
        if not {tag, "*"} & set(_tags(if_match)):
            raise PreconditionFailed(
                f"If-Match {', '.join(if_match)} does not hold: the object's ETag is {tag}; GET it, and try again"
            )
        return service(context)

    return checked
