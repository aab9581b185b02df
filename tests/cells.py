"""The cells of the matrix: row of docs/dataplane.md x backend x IP version x protocol, and what became of each."""

import re
from collections import defaultdict
from contextlib import contextmanager
from itertools import product

import pytest

ROWS = range(1, 16)
BACKENDS = ("iptables", "nftables")
VERSIONS = ("4", "6")
PROTOCOLS = ("tcp", "udp", "sctp")
PASS, FAIL = "pass", "FAIL"

_RESETS = "the row is about TCP: no other protocol has a packet that resets its peer's connection"
NOT_APPLICABLE: dict[tuple, str] = {
    **{
        (11, backend, version, protocol): _RESETS
        for backend in BACKENDS
        for version in VERSIONS
        for protocol in ("udp", "sctp")
    },
}
"""Why a cell has no test."""

_KEY = "cell"
_ROW = re.compile(r"test_row_(\d\d)_")


def every_cell():
    return list(product(ROWS, BACKENDS, VERSIONS, PROTOCOLS))


def cells_of(item, protocols):
    """The cells that a test is about, so far as its name and parameters say."""
    row, values = _ROW.match(item.originalname or item.name), item.callspec.params if hasattr(item, "callspec") else {}
    family = values.get("family")
    if row is None or family is None:
        return []
    return list(product([int(row[1])], [values["firewall"]], [str(family.version)], protocols))


class Recorder:
    """Says which cells a part of a test is about; a part that fails does not keep the next one from being tried."""

    def __init__(self, item):
        self._item = item
        self.failures = []

    @contextmanager
    def __call__(self, *protocols):
        outcome = FAIL
        try:
            yield
            outcome = PASS
        except (AssertionError, OSError) as failure:
            failure.add_note(f"cells: {', '.join(protocols)}")
            self.failures.append(failure)
        finally:
            for cell in cells_of(self._item, protocols):
                self._item.user_properties.append((_KEY, [*cell, outcome]))

    def raise_failures(self):
        if len(self.failures) == 1:
            raise self.failures[0]
        if self.failures:
            raise ExceptionGroup(f"{len(self.failures)} parts failed", self.failures)


class Matrix:
    """A pytest plugin that collects the cells of all tests; with xdist, on the side that reports."""

    def __init__(self, *, listed):
        self._listed = listed
        self._outcomes = defaultdict(set)

    def pytest_runtest_logreport(self, report):
        cells = {tuple(value[:4]): value[4] for key, value in report.user_properties if key == _KEY}
        for cell, outcome in cells.items():
            self._outcomes[cell].add((outcome, report.nodeid))
        if report.failed and FAIL not in cells.values():
            # outside of any part, or while tearing down: nothing of the test counts
            for cell in cells or dict(report.user_properties).get("cells", []):
                self._outcomes[tuple(cell)].add((FAIL, report.nodeid))

    def state(self, cell):
        outcomes = {outcome for outcome, _test in self._outcomes.get(cell, ())}
        if FAIL in outcomes:
            return FAIL
        return PASS if outcomes else NOT_APPLICABLE.get(cell, "")

    def pytest_sessionfinish(self, session):
        lacking = self._listed and not all(map(self.state, every_cell()))
        if lacking and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if not self._outcomes and not self._listed:
            return
        states = {cell: self.state(cell) for cell in every_cell()}
        if self._listed:
            terminalreporter.section("data plane: row x backend x IP version x protocol")
            for cell, state in states.items():
                row, backend, version, protocol = cell
                said = state or "ERROR: neither test nor reason"
                terminalreporter.write_line(f"{row:2} {backend:8} IPv{version} {protocol:4}  {said}")
                for outcome, test in sorted(self._outcomes.get(cell, ())):
                    if outcome == FAIL:
                        terminalreporter.write_line(f"       FAIL {test}")
        terminalreporter.write_line(self.summary(states))

    def summary(self, states):
        """In a line; without the list, what was not run may just not have been asked for."""
        failed = [" ".join(map(str, cell)) for cell, state in states.items() if state == FAIL]
        passed, lacking = sum(state == PASS for state in states.values()), sum(not state for state in states.values())
        rest = len(states) - passed - lacking - len(failed)
        words = f"data plane: {passed} of {len(states)} cells pass, {rest} do not apply, {len(failed)} FAIL"
        untested = "without test or reason" if self._listed else "not run"
        return f"{words}, {lacking} {untested}" + "".join(f"\n  FAIL {one}" for one in failed)
