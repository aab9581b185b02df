"""The watch over namespaces looks at those that it is asked about, not at all of them."""

import os

import pytest

from app.kernel.watch import NamespaceWatch
from app.model.spec import NetnsKind, NetnsRef


@pytest.mark.parametrize("others", [0, 50])
def test_a_look_at_paths_costs_what_they_are(tmp_path, monkeypatch, others):
    watch = NamespaceWatch()
    path = NetnsRef(NetnsKind.PATH, str(tmp_path / "one"))
    watch.keep([path, *(NetnsRef(NetnsKind.NAME, f"nobody-s-{number}") for number in range(others))])
    asked = []
    monkeypatch.setattr(os, "stat", lambda *given, real=os.stat: asked.append(given) or real(*given))
    assert watch.look(NetnsKind.PATH) == set()
    monkeypatch.undo()
    assert len(asked) == 1
    (tmp_path / "one").touch()
    assert watch.look(NetnsKind.PATH) == {path}
    assert watch.look(NetnsKind.PATH) == set()
    watch.close()


def test_those_that_are_kept_no_more_are_not_looked_at(tmp_path):
    watch = NamespaceWatch()
    path, other = (NetnsRef(NetnsKind.PATH, str(tmp_path / name)) for name in ("one", "two"))
    assert watch.keep([path]) == {path: False}
    assert watch.keep([path, other]) == {other: False}
    assert watch.keep([other]) == {}
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    assert watch.look(NetnsKind.PATH) == {other}
    watch.close()
