"""The bodies that clients send: strict types, no unknown fields, each checked by itself."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from app.model import ipam, naming, ports
from app.model.errors import BridgeheadError, Invalid
from app.model.spec import Protocol

_LABELS_MAX = 64
_LABEL_LENGTH = 256
_TEXT_LENGTH = 4096
_SHOWN = 80
"""Characters of a refused value that an answer repeats."""
_EPHEMERAL = "`true`: it is deleted, with its address and port mappings, when its namespace ends."
AUTO = "auto"
"""The `subnet6` that asks for a unique local prefix."""


def _checked(check: Any) -> AfterValidator:
    """A check of the model's as a validator: its words become the answer's."""

    def validate(value: str) -> str:
        try:
            return str(check(value))
        except BridgeheadError as refusal:
            raise ValueError(refusal.detail) from None

    return AfterValidator(validate)


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > _LABELS_MAX:
        raise ValueError(f"{len(labels)} labels; at most {_LABELS_MAX}")
    for key, value in labels.items():
        if not 0 < len(key) <= _LABEL_LENGTH or len(value) > _LABEL_LENGTH or "=" in key:
            raise ValueError(
                f"label '{key}': 1 to {_LABEL_LENGTH} characters, no '='; its value at most {_LABEL_LENGTH}"
            )
    return labels


Name = Annotated[
    str,
    _checked(lambda value: naming.check_name(value, "name")),
    Field(json_schema_extra={"pattern": naming.NAME_PATTERN}, description="Letters, digits, `_`, `.`, `-`; unique."),
]
Ifname = Annotated[
    str,
    _checked(lambda value: naming.check_ifname(value, "interface name")),
    Field(json_schema_extra={"pattern": naming.IFNAME_PATTERN}),
]
_CIDR = {"pattern": r"^[0-9a-fA-F:.]+/[0-9]{1,3}$"}
_ADDRESS = {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
Cidr = Annotated[
    str,
    _checked(lambda value: ipam.parse_network(value, "network")),
    Field(max_length=64, json_schema_extra=_CIDR),
]
Address = Annotated[
    str,
    _checked(lambda value: ipam.parse_address(value, "address")),
    Field(max_length=64, json_schema_extra=_ADDRESS),
]
Cidr6 = Annotated[
    str, _checked(lambda value: value if value == AUTO else ipam.parse_network(value, "network")), Field(max_length=64)
]
Mac = Annotated[
    str,
    _checked(lambda value: naming.check_mac(value, "mac")),
    Field(json_schema_extra={"pattern": naming.MAC_PATTERN}),
]
Mtu = Annotated[int, Field(ge=68, le=65535, description="Bytes.")]


def _check_ports(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        shown = repr(value)[:_SHOWN]
        # pydantic takes a ValueError for the client's fault, a TypeError for ours
        raise ValueError(f"{shown} is neither an integer such as 8080 nor a range such as '8000-8010'")  # noqa: TRY004
    try:
        return ports.ports_value(*ports.parse_ports(value))
    except BridgeheadError as refusal:
        raise ValueError(refusal.detail) from None


def _no_range(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - as above
            f"'{value[:_SHOWN]}' is not an integer; where host_port is a range, give the first target port alone"
        )
    return value


_PORT_SCHEMA = {"type": "integer", "minimum": ports.FIRST, "maximum": ports.LAST}
Ports = Annotated[
    int | str,
    PlainValidator(_check_ports),
    WithJsonSchema({"anyOf": [_PORT_SCHEMA, {"type": "string", "pattern": ports.RANGE_PATTERN}]}),
]
TargetPort = Annotated[int, BeforeValidator(_no_range), Field(ge=ports.FIRST, le=ports.LAST)]
Labels = Annotated[
    dict[str, str],
    AfterValidator(_check_labels),
    Field(
        json_schema_extra={
            "maxProperties": _LABELS_MAX,
            "propertyNames": {"minLength": 1, "maxLength": _LABEL_LENGTH, "pattern": "^[^=]*$"},
            "additionalProperties": {"type": "string", "maxLength": _LABEL_LENGTH},
        }
    ),
]
Ref = Annotated[str, Field(min_length=1, max_length=256, description="An id or a name; an id wins.")]


def _check_protocol(value: str) -> str:
    if value not in tuple(Protocol):
        raise ValueError(f"protocol '{value}' is not known; use one of {', '.join(Protocol)}")
    return value


ProtocolName = Annotated[
    str, AfterValidator(_check_protocol), Field(json_schema_extra={"enum": [str(one) for one in Protocol]})
]


class Request(BaseModel):
    """Refuses what it does not know, and converts nothing."""

    # built when it is first used: a start would wait for all of them, and few daemons ever need the half
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _encodable(cls, body: Any) -> Any:
        """JSON can carry half a surrogate pair, which no file name and no database can."""
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text has a lone surrogate, which is no character") from None
        return body

    def given(self) -> dict[str, Any]:
        """The fields that the client sent."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def refuse_null(request: Request, *nullable: str) -> None:
    """Raises Invalid where a field is null that a PATCH cannot clear."""
    for name, value in request.given().items():
        if value is None and name not in nullable:
            raise Invalid(f"{name} cannot be null; leave it out to keep it as it is")


class NetworkCreate(Request):
    """A new network."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "web"}, {"name": "br0", "subnet": "192.168.15.0/24", "gateway": None}]}
    )

    name: Name
    bridge: Ifname | None = Field(
        None, description="The bridge's interface name; by default the name, else `bh-` and 10 hexadecimal digits."
    )
    subnet: Cidr | None = Field(None, description="By default the next free one of the pools.")
    gateway: Address | None = Field(
        None, description="The bridge's address; by default the subnet's first. `null`: none, a pure L2 bridge."
    )
    ip_range: Cidr | None = Field(None, description="Where automatic addresses come from; by default the subnet.")
    subnet6: Cidr6 | None = Field(
        None, description="`auto`: a unique local /64. Without it, IPv6 is off on the bridge and its endpoints."
    )
    gateway6: Address | None = Field(None, description="By default the first of `subnet6`. `null`: none.")
    ip_range6: Cidr | None = Field(None, description="Where automatic ones come from; by default `subnet6`.")
    mtu: Mtu | None = Field(None, description="By default that of the default route's interface, else 1500.")
    internal: bool = Field(False, description="No way out and none in, published ports included.")
    isolated: bool = Field(True, description="No traffic from or to the other networks, but for published ports.")
    icc: bool = Field(True, description="`false`: the network's endpoints cannot reach one another.")
    masquerade: bool = Field(
        True, description="Outbound traffic leaves with the uplink's address; `false`: with the endpoints' own."
    )
    snat_address: Address | None = Field(
        None, description="Outbound traffic of its IP version leaves with this address of the host instead."
    )
    spoof_protection: bool = Field(False, description="Endpoints send only from their own MAC and addresses.")
    labels: Labels = Field(default_factory=dict)


class NetworkPatch(Request):
    """A change of a live network. Its name, bridge and subnets stay as they are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"gateway": "192.168.15.5"}, {"isolated": False}]})

    gateway: Address | None = Field(None, description="`null` takes it away: a pure L2 bridge.")
    gateway6: Address | None = Field(None, description="`null` takes it away.")
    ip_range: Cidr | None = Field(None, description="`null`: the subnet.")
    ip_range6: Cidr | None = Field(None, description="`null`: `subnet6`.")
    mtu: Mtu | None = None
    internal: bool | None = None
    isolated: bool | None = None
    icc: bool | None = None
    masquerade: bool | None = None
    snat_address: Address | None = Field(None, description="`null`: the uplink's address.")
    spoof_protection: bool | None = None
    labels: Labels | None = None


class EndpointCreate(Request):
    """A new endpoint. Exactly one of `namespace`, `pid` and `netns` says where."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"network": "web", "namespace": "red"},
                {"network": "br0", "namespace": "red", "ifname": "veth-red", "host_ifname": "veth-red-br"},
            ]
        }
    )

    network: Ref
    namespace: Annotated[str, _checked(lambda value: naming.check_name(value, "namespace"))] | None = Field(
        None, description="A name under /run/netns, made where it is missing."
    )
    pid: Annotated[int, Field(ge=1, le=1 << 22)] | None = Field(None, description="A process in the namespace.")
    netns: Annotated[str, Field(min_length=1, max_length=_TEXT_LENGTH)] | None = Field(
        None, description="The absolute path of a namespace file."
    )
    create_namespace: bool = Field(True, description="Whether a missing `namespace` is made.")
    name: Name | None = Field(None, description="By default the namespace's name, else `ep-` and 8 digits.")
    address: Address | None = Field(None, description="By default the next free one, round robin.")
    address6: Address | None = Field(None, description="The same of `subnet6`, where the network has one.")
    mac: Mac | None = Field(None, description="By default random and locally administered.")
    ifname: Ifname | None = Field(None, description="Inside the namespace; by default the next free `ethN`.")
    host_ifname: Ifname | None = Field(None, description="On the bridge; by default `veth` and 10 digits.")
    default_route: bool | None = Field(None, description="`null`: automatic, `true` takes it, `false` never has it.")
    ephemeral: bool = Field(False, description=_EPHEMERAL)
    labels: Labels = Field(default_factory=dict)


class EndpointPatch(Request):
    """A change of a live endpoint."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"default_route": True}]})

    name: Name | None = None
    default_route: bool | None = None
    ephemeral: bool | None = Field(None, description=_EPHEMERAL)
    labels: Labels | None = None


class PortmapCreate(Request):
    """A port of the host, or a range of them, published to ports of an endpoint."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"endpoint": "red", "host_port": 8080, "target_port": 80},
                {"endpoint": "red", "host_port": "8000-8010", "target_port": 9000},
                {"endpoint": "red"},
            ]
        }
    )

    endpoint: Ref
    protocol: ProtocolName = "tcp"
    host_ip: Address = Field(
        "0.0.0.0",  # noqa: S104
        description="An address of the host; `0.0.0.0`, `::`: every one of its version; 127.x, `::1`: this host alone.",
    )
    host_port: Ports | None = Field(
        None, description='One, or a range `"8000-8010"`; by default the next free of 49153-65535.'
    )
    target_port: TargetPort | None = Field(None, description="The first one of a range. By default the host port.")
    labels: Labels = Field(default_factory=dict)


class PortmapPatch(Request):
    """A change of a live mapping: new connections go to the new target at once."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"target_port": 8000}]})

    endpoint: Ref | None = None
    host_ip: Address | None = None
    host_port: Ports | None = None
    target_port: TargetPort | None = Field(None, description="Stays as it is where only `host_port` changes.")
    labels: Labels | None = None


class AllocationCreate(Request):
    """A reserved address of either IP version, held without an endpoint."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"network": "web", "note": "the printer"}]})

    network: Ref
    address: Address | None = Field(None, description="By default the next free IPv4 one.")
    note: Annotated[str, Field(max_length=_TEXT_LENGTH)] = ""
