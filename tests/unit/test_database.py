"""Opening, migrating, refusing; queries that are more than a lookup."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlmodel import SQLModel

import app.store.tables  # noqa: F401 - fills the metadata
from app.model.errors import StartupError, StoreFailed
from app.model.spec import AddressPlan, Allocation, AllocationKind, Network
from app.store import migrate
from app.store.repository import Repository
from app.store.session import is_writable, migrations_dir, open_database, transaction

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "bridgehead.db"


@pytest.fixture
def engine(file):
    made = open_database(f"sqlite:///{file}")
    yield made
    made.dispose()


def network(name="web", subnet="10.0.0.0/16"):
    found = ip_network(subnet)
    plan = AddressPlan(found, None, found)
    return Network(id=name, name=name, bridge=name, plans=(plan,), mtu=1500, created_at=NOW, updated_at=NOW)


def test_the_migrations_make_what_the_tables_say(engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_the_pragmas(engine):
    with engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert values == ["wal", 2, 1]


def test_opening_again_keeps_what_is_there(engine, file):
    with transaction(engine) as session:
        Repository(session).add_network(network())
    again = open_database(f"sqlite:///{file}")
    with transaction(again) as session:
        assert Repository(session).networks() == [network()]
    again.dispose()


def test_a_newer_database_is_refused_and_left(engine, file):
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupError, match=r"newer Bridgehead.*9999.*upgrade") as refusal:
        open_database(f"sqlite:///{file}")
    assert "\n" not in refusal.value.detail
    assert str(file) in refusal.value.detail
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_refused_and_left(file, damage):
    file.write_bytes(damage)
    with pytest.raises(StartupError, match="move it away") as refusal:
        open_database(f"sqlite:///{file}")
    assert "\n" not in refusal.value.detail
    assert file.read_bytes() == damage


def test_damage_within_is_found(engine, file):
    with transaction(engine) as session:
        Repository(session).add_network(network())
    engine.dispose()
    raw = bytearray(file.read_bytes())
    raw[4096 : 4096 * 3] = b"\xa5" * (4096 * 2)
    file.write_bytes(raw)
    with pytest.raises(StartupError, match="move it away"):
        open_database(f"sqlite:///{file}")


@pytest.mark.parametrize("url", ["nonsense", "", "postgresql://x/y", "sqlite:////nope/nope.db"])
def test_bad_urls(url):
    with pytest.raises(StartupError) as refusal:
        open_database(url)
    assert "\n" not in refusal.value.detail


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(StartupError, match="only sqlite:///PATH"):
        open_database(url)


def test_writable(engine, file):
    assert is_writable(engine)
    with engine.begin():
        assert is_writable(engine)
    engine.dispose()
    file.unlink()
    file.mkdir()
    assert not is_writable(engine)


def test_a_failed_transaction_writes_nothing(engine):
    def write_twice():
        with transaction(engine) as session:
            Repository(session).add_network(network())
            Repository(session).add_network(network())

    with pytest.raises(StoreFailed, match="nothing was changed") as refusal:
        write_twice()
    assert "INSERT" not in refusal.value.detail
    with transaction(engine) as session:
        assert Repository(session).networks() == []


def test_taken_reads_across_chunks_in_order(engine):
    first = ip_address("10.0.0.0")
    with transaction(engine) as session:
        store = Repository(session)
        store.add_network(network())
        for number in [*range(599, -1, -1)]:
            address = first + number
            store.add_allocation(
                Allocation(
                    id=f"a{number}",
                    network_id="web",
                    address=address,
                    kind=AllocationKind.RESERVATION,
                    created_at=NOW,
                )
            )
        found = list(store.taken(network(), first + 1, first + 590))
        assert found == [int(first) + number for number in range(1, 591)]


@pytest.mark.parametrize(
    ("subnet", "overlaps"),
    [
        ("10.0.0.0/8", True),
        ("10.0.255.255/32", True),
        ("10.1.0.0/16", False),
        ("9.255.0.0/16", False),
        ("fd00::/8", False),
    ],
)
def test_overlaps(engine, subnet, overlaps):
    with transaction(engine) as session:
        store = Repository(session)
        store.add_network(network())
        assert (store.network_overlapping(ip_network(subnet)) is not None) is overlaps


ROWS = (
    "INSERT INTO network (id, name, bridge, subnet, subnet_first, subnet_last, gateway, ip_range, mtu, internal, "
    "isolated, masquerade, labels, created_at, updated_at) VALUES ('n', 'web', 'web', '10.0.0.0/24', 'a', 'b', "
    "'10.0.0.1', '10.0.0.0/24', 1500, 0, 1, 1, '{}', '2026-01-02T00:00:00+00:00', '2026-01-02T00:00:00+00:00')",
    "INSERT INTO endpoint (id, network_id, name, netns_kind, netns_value, netns_start_time, namespace_key, "
    "create_namespace, address, mac, ifname, host_ifname, labels, created_at, updated_at) VALUES ('e', 'n', 'red', "
    "'name', 'red', 0, 'name:red', 1, '10.0.0.2', '02:00:00:00:00:01', 'eth0', 'veth0', '{}', "
    "'2026-01-02T00:00:00+00:00', '2026-01-02T00:00:00+00:00')",
    "INSERT INTO portmap (id, endpoint_id, protocol, host_ip, host_port, target_port, labels, created_at, updated_at) "
    "VALUES ('p', 'e', 'tcp', '0.0.0.0', 8080, 80, '{}', '2026-01-02T00:00:00+00:00', '2026-01-02T00:00:00+00:00')",
    "INSERT INTO allocation (id, network_id, address, address_key, kind, endpoint_id, note, created_at) VALUES "
    "('e', 'n', '10.0.0.2', '0000', 'endpoint', 'e', '', '2026-01-02T00:00:00+00:00')",
)


def _first_schema(file):
    """A database of schema 0001, with a row of each kind."""
    blank = create_engine(f"sqlite:///{file}")
    migrate.upgrade(blank, migrations_dir(), "0001")
    with blank.begin() as connection:
        for row in ROWS:
            connection.exec_driver_sql(row)
    blank.dispose()


def test_a_database_of_the_first_schema_keeps_its_rows(file):
    _first_schema(file)
    engine = open_database(f"sqlite:///{file}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    with transaction(engine) as session:
        store = Repository(session)
        (network,), (endpoint,), (portmap,) = store.networks(), store.endpoints(), store.portmaps()
        assert (network.plan(6), network.icc, network.snat_address, network.spoof_protection) == (
            None,
            True,
            None,
            False,
        )
        assert endpoint.addresses == (ip_address("10.0.0.2"),)
        assert (portmap.host_port, portmap.count) == (8080, 1)
        assert [one.id for one in store.allocations()] == ["e"]
        # both versions under one id, but no address twice
        store.add_allocation(replace(store.allocations()[0], address=ip_address("fd00::2")))
    engine.dispose()


def test_back_to_the_first_schema_and_up_again(file):
    _first_schema(file)
    open_database(f"sqlite:///{file}").dispose()
    plain = create_engine(f"sqlite:///{file}")
    with plain.begin() as connection:
        six = "SELECT id, network_id, 'fd00::2', '0001', kind, endpoint_id, note, created_at FROM allocation"
        columns = "id, network_id, address, address_key, kind, endpoint_id, note, created_at"
        connection.exec_driver_sql(f"INSERT INTO allocation ({columns}) {six}")
    migrate.downgrade(plain, migrations_dir(), "0001")
    with plain.connect() as connection:
        assert connection.exec_driver_sql("SELECT id, address FROM allocation").all() == [("e", "10.0.0.2")]
        assert connection.exec_driver_sql("SELECT id, host_port FROM portmap").all() == [("p", 8080)]
    plain.dispose()
    again = open_database(f"sqlite:///{file}")
    with transaction(again) as session:
        assert [one.name for one in Repository(session).networks()] == ["web"]
    again.dispose()


@pytest.mark.parametrize(
    ("subnet", "overlaps"),
    [("fd00::/8", True), ("fd00:15::8:0/112", True), ("fd00:16::/64", False), ("0.0.0.0/0", True)],
)
def test_overlaps_of_ipv6(engine, subnet, overlaps):
    six = AddressPlan(ip_network("fd00:15::/64"), None, ip_network("fd00:15::/64"))
    made = network()
    with transaction(engine) as session:
        store = Repository(session)
        store.add_network(replace(made, plans=(*made.plans, six)))
        assert (store.network_overlapping(ip_network(subnet)) is not None) is overlaps
