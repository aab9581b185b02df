"""Bearer tokens of the TCP listener: the first one in the file `token`, named ones, as hashes, in `tokens.json`."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.model.access import Principal, Role
from app.model.errors import Invalid, NameTaken, NotFound, StartupError, StoreFailed

log = logging.getLogger("bridgehead")

FIRST = "default"
"""The name of the token in the file `token`; it may do everything."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Token:
    """A named token; of its secret only the SHA-256 is kept: 256 random bits need no salt."""

    name: str
    role: Role
    networks: frozenset[str] | None
    digest: str
    created_at: str

    def principal(self, *, allow_foreign: bool) -> Principal:
        """Whoever has its secret; with a scope, not to connect somebody else's namespaces unless that is allowed."""
        confined = self.networks is not None and not allow_foreign
        return Principal(f"token {self.name}", self.role, self.networks, confined)


class TokenStore:
    """The tokens of a state directory. Changes by another process, such as a rotation, count at the next request."""

    def __init__(
        self, state_dir: Path, allow_foreign: bool = False, changed: Callable[[str, str], None] | None = None
    ) -> None:
        """changed: hears of changes by others, as `create`, `change` or `delete` and a token's name."""
        self._allow_foreign = allow_foreign
        self._changed = changed
        self._lock = state_dir / "tokens.lock"
        self._first = state_dir / "token"
        self._named = state_dir / "tokens.json"
        self._stamps: tuple[_Stamp | None, _Stamp | None] | None = None
        self._known: list[Token] = []

    # --- the listener's side

    def find(self, secret: str) -> Principal | None:
        """Whose secret this is; compared in constant time with every one that there is."""
        self._refresh()
        digest = _digest(secret)
        found: Principal | None = None
        for token in self._known:
            if hmac.compare_digest(digest, token.digest):
                found = token.principal(allow_foreign=self._allow_foreign)
        return found

    def _refresh(self) -> None:
        stamps = _stamp(self._first), _stamp(self._named)
        if stamps == self._stamps:
            return
        first, former = self._stamps is None, self._known
        self._stamps = stamps
        self._known = []  # what cannot be read lets nobody in
        try:
            self._known = [*self._load_first(), *self._read()]
        except (OSError, StoreFailed) as refusal:
            log.error("named tokens are void until their file can be read: %s", refusal)  # noqa: TRY400
            self._known = list(self._load_first())
        if self._changed is not None and not first:
            for verb, name in _differences(former, self._known):
                self._changed(verb, name)

    def _load_first(self) -> Iterator[Token]:
        try:
            first = self._first.read_text().strip()
        except (OSError, ValueError):
            first = ""
        if first:
            yield Token(FIRST, Role.WRITE, None, _digest(first), "")

    # --- the command's side

    def ensure_first(self) -> None:
        """Makes the first token where there is none. Raises StartupError."""
        try:
            if not self._first.exists():
                _write(self._first, f"{_secret()}\n")
            if not self._first.read_text().strip():
                raise StartupError(f"token file {self._first} is empty: delete it to get a new token")
            self._refresh()
        except OSError as refusal:
            raise StartupError(f"token file {self._first} cannot be used: {refusal.strerror}") from None

    def all(self) -> list[Token]:
        """Every token, the first one first."""
        return [*self._load_first(), *self._read()]

    def create(self, name: str, role: Role, networks: Iterable[str] | None) -> str:
        """Makes a named token and returns its secret, which is kept nowhere. Raises Invalid, NameTaken."""
        if _NAME.fullmatch(name) is None:
            raise Invalid(f"token name '{name}' is not a name: 1 to 63 of letters, digits, '_', '.' and '-'")
        secret = _secret()
        scope = frozenset(networks) if networks is not None else None
        with self._changing():
            if name == FIRST or any(token.name == name for token in self._read()):
                raise NameTaken(f"token name '{name}' is taken; choose another, or: bridgehead token rotate {name}")
            self._save([*self._read(), Token(name, role, scope, _digest(secret), _now())])
        return secret

    def rotate(self, name: str = FIRST) -> str:
        """Gives a token a new secret, which it returns; the old one is void at once. Raises NotFound."""
        secret = _secret()
        if name == FIRST:
            _write(self._first, f"{secret}\n")
            return secret
        with self._changing():
            kept = {token.name: token for token in self._read()}
            former = self._named_token(kept, name)
            kept[name] = Token(name, former.role, former.networks, _digest(secret), _now())
            self._save(kept.values())
        return secret

    def remove(self, name: str) -> None:
        """Makes a named token void. Raises NotFound, Invalid for the first one."""
        if name == FIRST:
            raise Invalid(f"token '{FIRST}' cannot be removed; rotate it, or serve without --listen")
        with self._changing():
            kept = {token.name: token for token in self._read()}
            del kept[self._named_token(kept, name).name]
            self._save(kept.values())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One command at a time: each writes the whole file."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    def _named_token(kept: dict[str, Token], name: str) -> Token:
        if name not in kept:
            raise NotFound(f"token '{name}' does not exist; there are: {', '.join([FIRST, *kept])}")
        return kept[name]

    def _read(self) -> list[Token]:
        """Raises StoreFailed, OSError."""
        try:
            return [_token(row) for row in json.loads(self._named.read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as failure:
            raise StoreFailed(
                f"token file {self._named} is damaged ({failure}): remove it, and make new ones"
            ) from None

    def _save(self, tokens: Iterable[Token]) -> None:
        rows = [
            {
                "name": token.name,
                "role": str(token.role),
                "networks": None if token.networks is None else sorted(token.networks),
                "sha256": token.digest,
                "created_at": token.created_at,
            }
            for token in tokens
        ]
        _write(self._named, json.dumps(rows, indent=2) + "\n")


def _differences(before: list[Token], after: list[Token]) -> Iterator[tuple[str, str]]:
    former, current = ({token.name: token for token in tokens} for tokens in (before, after))
    for name in sorted(former.keys() | current.keys()):
        if former.get(name) != current.get(name):
            yield "create" if name not in former else "delete" if name not in current else "change", name


def _token(row: dict[str, Any]) -> Token:
    networks = None if row["networks"] is None else frozenset(row["networks"])
    return Token(row["name"], Role(row["role"]), networks, row["sha256"], row["created_at"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _secret() -> str:
    return secrets.token_urlsafe(32)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _write(path: Path, text: str) -> None:
    """Beside it and moved: a file is there whole or not at all."""
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as fresh:
        fresh.write(text)
        fresh.flush()
        os.fsync(fresh.fileno())
    beside.replace(path)
