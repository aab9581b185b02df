"""Flags, environment, defaults."""

from ipaddress import ip_network

import pytest

from app.main import load_settings
from app.model.errors import StartupError
from app.settings import split_listen


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("BRIDGEHEAD_")]:
        monkeypatch.delenv(name)


def test_the_contract_s_defaults():
    found = load_settings()
    assert found.socket == "/run/bridgehead/api.sock"
    assert found.listen == "127.0.0.1:8015"
    assert found.state_dir == "/var/lib/bridgehead"
    assert found.database_url == "sqlite:////var/lib/bridgehead/bridgehead.db"
    assert found.firewall == "auto"
    assert found.pools == ((ip_network("192.168.15.0/24"), 24), (ip_network("192.168.16.0/20"), 24))


def test_the_environment_and_flags_above_it(monkeypatch):
    monkeypatch.setenv("BRIDGEHEAD_LISTEN", "0.0.0.0:1")
    monkeypatch.setenv("BRIDGEHEAD_STATE_DIR", "/tmp/x")
    monkeypatch.setenv("BRIDGEHEAD_POOL", "10.0.0.0/8:16, 172.16.0.0/12")
    found = load_settings(listen="[::1]:2", socket=None)
    assert found.listen == "[::1]:2"
    assert found.database_url == "sqlite:////tmp/x/bridgehead.db"
    assert found.pools == ((ip_network("10.0.0.0/8"), 16), (ip_network("172.16.0.0/12"), 24))
    assert load_settings(database="sqlite:////d.db").database_url == "sqlite:////d.db"
    assert load_settings(socket="", listen="").listen == ""


@pytest.mark.parametrize(
    ("pool", "wanted"), [("10.0.0.0/8", 24), ("10.0.0.0/26", 26), ("10.0.0.0/26:30", 30), ("10.0.0.0/24:24", 24)]
)
def test_pools(pool, wanted):
    assert load_settings(pool=[pool]).pools == ((ip_network(pool.split(":")[0]), wanted),)


@pytest.mark.parametrize(
    ("pool", "word"),
    [
        ("10.0.0.1/24", "'10.0.0.0/24'"),
        ("nonsense", "nonsense"),
        ("10.0.0.0/24:23", "24 to 30"),
        ("10.0.0.0/24:31", "24 to 30"),
        ("10.0.0.0/24:x", "24 to 30"),
        ("", "CIDR"),
        ("fd00::/64", "'fd00::/64' is not IPv4"),
    ],
)
def test_bad_pools(pool, word):
    with pytest.raises(StartupError, match="pool") as refusal:
        load_settings(pool=[pool])
    assert word in refusal.value.detail
    assert "\n" not in refusal.value.detail


@pytest.mark.parametrize("listen", ["8015", "localhost", ":1", "h:", "h:x", "h:65536", "h:-1", "h:\u00b2"])
def test_bad_listen(listen):
    with pytest.raises(StartupError, match="listen") as refusal:
        load_settings(listen=listen)
    assert listen in refusal.value.detail


def test_bad_firewall():
    with pytest.raises(StartupError, match=r"firewall.*not 'pf'"):
        load_settings(firewall="pf")


def test_an_empty_state_directory():
    """It would be the working directory, and lose its mode."""
    with pytest.raises(StartupError, match=r"state_dir: .* empty"):
        load_settings(state_dir="")


def test_split_listen():
    assert split_listen("[::1]:80") == ("::1", 80)
    assert split_listen("a.example:0") == ("a.example", 0)


def test_names_and_origins_of_the_environment(monkeypatch):
    monkeypatch.setenv("BRIDGEHEAD_HOST_NAME", "a.example, b.example")
    monkeypatch.setenv("BRIDGEHEAD_CORS_ORIGIN", "https://a.example")
    monkeypatch.setenv("BRIDGEHEAD_INSECURE_LISTEN", "true")
    found = load_settings()
    assert found.host_name == ["a.example", "b.example"]
    assert found.cors_origin == ["https://a.example"]
    assert found.insecure_listen
    assert not found.allow_foreign_namespaces


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tls_cert": "/c"}, "--tls-cert and --tls-key go together"),
        ({"tls_key": "/k"}, "--tls-cert and --tls-key go together"),
        ({"tls_client_ca": "/a"}, "--tls-client-ca"),
        ({"rate": -1}, "rate: "),
    ],
)
def test_what_does_not_go_together(flags, words):
    with pytest.raises(StartupError) as refusal:
        load_settings(**flags)
    assert refusal.value.detail.startswith(words)
    assert "\n" not in refusal.value.detail


def test_every_setting_is_a_flag(monkeypatch):
    from typer.testing import CliRunner

    import app.main
    from app.cli import app as command
    from app.settings import Settings

    given = []
    monkeypatch.setattr(app.main, "run", lambda settings: given.append(settings) or 0)
    flags = {
        "socket": "/s",
        "listen": "127.0.0.1:1",
        "state_dir": "/d",
        "database": "sqlite:///x",
        "firewall": "none",
        "audit_log": "/a",
        "tls_cert": "/c",
        "tls_key": "/k",
        "tls_client_ca": "/ca",
        "rate": 7.0,
        "pool": ["10.0.0.0/16:24", "10.1.0.0/16:24"],
        "host_name": ["a", "b"],
        "cors_origin": ["https://a"],
        "insecure_listen": True,
        "allow_foreign_namespaces": True,
    }
    arguments = ["serve"]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            arguments += [flag] if one is True else [flag, str(one)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert {name: getattr(given[0], name) for name in flags} == flags
    assert set(Settings.model_fields) - set(flags) == {"resync", "fast_repairs"}
