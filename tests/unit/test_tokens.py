"""Tokens in the state directory: whose secret it is, rotation, what a damaged file does."""

import json

import pytest

from app.host.tokens import TokenStore
from app.model.access import Role
from app.model.errors import Invalid, NameTaken, NotFound, StartupError


@pytest.fixture
def store(tmp_path):
    made = TokenStore(tmp_path)
    made.ensure_first()
    return made


def first(tmp_path):
    return (tmp_path / "token").read_text().strip()


def test_the_first_token_is_made_once_and_may_do_everything(tmp_path, store):
    secret = first(tmp_path)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    TokenStore(tmp_path).ensure_first()
    assert first(tmp_path) == secret
    found = store.find(secret)
    assert (found.name, found.role, found.networks, found.confined) == ("token default", Role.WRITE, None, False)
    assert store.find(secret + "x") is store.find("") is store.find(secret[:-1]) is store.find("\xff") is None


def test_an_empty_first_token_lets_nobody_in(tmp_path, store):
    (tmp_path / "token").write_text("\n")
    assert store.find("") is None
    with pytest.raises(StartupError, match="empty"):
        TokenStore(tmp_path).ensure_first()


def test_rotation_counts_at_the_next_request(tmp_path, store):
    old = first(tmp_path)
    assert store.find(old)
    fresh = TokenStore(tmp_path).rotate()
    assert store.find(old) is None
    assert store.find(fresh).name == "token default"
    assert fresh == first(tmp_path)


def test_named_tokens(tmp_path, store):
    command = TokenStore(tmp_path)
    look = command.create("look", Role.READ, None)
    web = command.create("web", Role.WRITE, ["web", "lan"])
    assert store.find(look).role is Role.READ
    assert store.find(web).networks == {"web", "lan"}
    assert store.find(web).confined
    assert not TokenStore(tmp_path, allow_foreign=True).find(web).confined
    assert [one.name for one in command.all()] == ["default", "look", "web"]
    kept = (tmp_path / "tokens.json").read_text()
    assert look not in kept
    assert web not in kept
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600
    fresh = command.rotate("web")
    assert store.find(web) is None
    assert store.find(fresh).networks == {"web", "lan"}
    command.remove("web")
    assert store.find(fresh) is None
    assert store.find(look)


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 64, "a/b", "é"])
def test_names_that_are_none(store, name):
    with pytest.raises(Invalid):
        store.create(name, Role.READ, None)


def test_refusals(store):
    store.create("ci", Role.READ, None)
    with pytest.raises(NameTaken):
        store.create("ci", Role.READ, None)
    with pytest.raises(NameTaken):
        store.create("default", Role.READ, None)
    with pytest.raises(NotFound, match="default, ci"):
        store.rotate("nope")
    with pytest.raises(Invalid):
        store.remove("default")


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "x"}]', '{"a": 1}', "\0"])
def test_a_damaged_file_lets_nobody_in_but_the_first(tmp_path, store, text):
    look = store.create("look", Role.READ, None)
    assert store.find(look)
    (tmp_path / "tokens.json").write_text(text)
    assert store.find(look) is None
    assert store.find(first(tmp_path))


def test_a_role_that_is_none_lets_nobody_in(tmp_path, store):
    secret = store.create("x", Role.READ, None)
    rows = json.loads((tmp_path / "tokens.json").read_text())
    rows[0]["role"] = "admin"
    (tmp_path / "tokens.json").write_text(json.dumps(rows))
    assert store.find(secret) is None


def test_changes_are_told(tmp_path, store):
    told = []
    listening = TokenStore(tmp_path, changed=lambda verb, name: told.append((verb, name)))
    listening.ensure_first()
    command = TokenStore(tmp_path)
    for change, expected in (
        (lambda: command.create("ci", Role.READ, None), ("create", "ci")),
        (lambda: command.rotate("ci"), ("change", "ci")),
        (command.rotate, ("change", "default")),
        (lambda: command.remove("ci"), ("delete", "ci")),
    ):
        change()
        listening.find("x")
        assert told.pop() == expected
        assert not told
