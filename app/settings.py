"""Flags and environment: `BRIDGEHEAD_SOCKET` and so on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.model import ipam
from app.model.errors import BridgeheadError
from app.model.spec import IPNetwork

DEFAULT_SOCKET = "/run/bridgehead/api.sock"


class Settings(BaseSettings):
    """What `bridgehead serve` is told."""

    model_config = SettingsConfigDict(env_prefix="BRIDGEHEAD_", extra="ignore")

    socket: str = DEFAULT_SOCKET
    listen: str = "127.0.0.1:8015"
    state_dir: str = "/var/lib/bridgehead"
    database: str = ""
    firewall: Literal["auto", "iptables", "nftables", "none"] = "auto"
    pool: Annotated[list[str], NoDecode] = ["192.168.15.0/24:24", "192.168.16.0/20:24"]
    resync: float = 60.0
    fast_repairs: int = Field(default=10, ge=1)
    audit_log: str = ""
    allow_foreign_namespaces: bool = False
    host_name: Annotated[list[str], NoDecode] = []
    cors_origin: Annotated[list[str], NoDecode] = []
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    insecure_listen: bool = False
    rate: float = Field(default=1000.0, ge=0)
    """Requests a second that one client may send, in the long run; 0: as many as it likes."""

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        if value and split_listen(value) is None:
            raise ValueError(f"listen '{value}' is not HOST:PORT, such as 127.0.0.1:8015 or [::1]:8015")
        return value

    @field_validator("state_dir")
    @classmethod
    def _check_state_dir(cls, value: str) -> str:
        # it would stand for the working directory, which nobody wants closed to all others
        if not value:
            raise ValueError("the path of the state directory is empty; give one, such as /var/lib/bridgehead")
        return value

    @field_validator("pool", "host_name", "cors_origin", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """The environment's form: several, separated by commas."""
        return [text.strip() for text in value.split(",")] if isinstance(value, str) else value

    @field_validator("pool")
    @classmethod
    def _check_pools(cls, value: list[str]) -> list[str]:
        for text in value:
            _pool(text)
        return value

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("--tls-cert and --tls-key go together: the certificate's file and its key's")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("--tls-client-ca asks for client certificates, which needs --tls-cert and --tls-key")
        return self

    @cached_property
    def pools(self) -> tuple[tuple[IPNetwork, int], ...]:
        """The pools, each with the prefix length of the subnets cut from it."""
        return tuple(_pool(text) for text in self.pool)

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{Path(self.state_dir).absolute()}/bridgehead.db"


def split_listen(value: str) -> tuple[str, int] | None:
    """Host and port of HOST:PORT, None where it is not that."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        return None
    return host.strip("[]"), int(port)


def _pool(text: str) -> tuple[IPNetwork, int]:
    if text.count(":") > 1:
        raise ValueError(f"pool '{text}' is not IPv4")
    cidr, _colon, prefix = text.partition(":")
    try:
        network = ipam.parse_network(cidr, "pool")
    except BridgeheadError as refusal:
        raise ValueError(refusal.detail) from None
    if not prefix:
        return network, max(24, network.prefixlen)
    if not (prefix.isascii() and prefix.isdigit()) or not network.prefixlen <= int(prefix) <= 30:
        raise ValueError(f"pool '{text}': the prefix length after ':' must be {network.prefixlen} to 30")
    return network, int(prefix)
