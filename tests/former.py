"""Databases as earlier versions wrote them."""

from pathlib import Path

from sqlalchemy import create_engine

from app.store import migrate
from app.store.session import migrations_dir

HEAD = "0005"
EARLIER = ["0001", "0002", "0003", "0004"]
"""Each schema that was released before; a new migration makes the one before it one of them."""

NETWORK, ENDPOINT, PORTMAP = (f"{number}" * 8 + "-0000-4000-8000-000000000000" for number in (1, 2, 3))
_NOW = "2026-01-02T00:00:00.000000+00:00"


def key(address: str) -> str:
    """As the store writes an IPv4 address of 10.0.0.0/24."""
    return f"{0xFFFF0A000000 + int(address.rpartition('.')[2]):032x}"


_NETWORK_ROW = {
    "id": NETWORK,
    "name": "web",
    "bridge": "web",
    "subnet": "10.0.0.0/24",
    "subnet_first": key("10.0.0.0"),
    "subnet_last": key("10.0.0.255"),
    "gateway": "10.0.0.1",
    "ip_range": "10.0.0.0/24",
    "mtu": 1500,
    "internal": 0,
    "isolated": 1,
    "masquerade": 1,
}
_ENDPOINT_ROW = {
    "id": ENDPOINT,
    "network_id": NETWORK,
    "name": "red",
    "netns_kind": "name",
    "netns_value": "red",
    "netns_start_time": 0,
    "namespace_key": "name:red",
    "create_namespace": 1,
    "address": "10.0.0.2",
    "mac": "02:00:00:00:00:01",
    "ifname": "eth0",
    "host_ifname": "veth0123456789",
}
_PORTMAP_ROW = {
    "id": PORTMAP,
    "endpoint_id": ENDPOINT,
    "protocol": "tcp",
    "host_ip": "0.0.0.0",
    "host_port": 8080,
    "target_port": 80,
}


def _rows() -> dict[str, list[dict[str, object]]]:
    shown = {"labels": "{}", "created_at": _NOW, "updated_at": _NOW}
    gateway = {"id": NETWORK, "network_id": NETWORK, "address": "10.0.0.1", "kind": "gateway", "endpoint_id": None}
    held = {"id": ENDPOINT, "network_id": NETWORK, "address": "10.0.0.2", "kind": "endpoint", "endpoint_id": ENDPOINT}
    return {
        "network": [_NETWORK_ROW | shown],
        "endpoint": [_ENDPOINT_ROW | shown],
        "portmap": [_PORTMAP_ROW | shown],
        "allocation": [
            one | {"address_key": key(str(one["address"])), "note": "", "created_at": _NOW} for one in (gateway, held)
        ],
    }


def make_database(file: Path, schema: str) -> None:
    """A database of an earlier schema, with a row of each kind; later columns have their defaults."""
    blank = create_engine(f"sqlite:///{file}")
    migrate.upgrade(blank, migrations_dir(), schema)
    with blank.begin() as connection:
        for table, rows in _rows().items():
            for row in rows:
                columns = ", ".join(row)
                marks = ", ".join("?" * len(row))
                connection.exec_driver_sql(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))
    blank.dispose()
