"""What all tests share."""

import os
from pathlib import Path

import pytest
from cells import Matrix
from figures import Figures

NETNS_TESTS = Path(__file__).parent / "netns"
OUTCOME = pytest.StashKey[pytest.TestReport]()
"""The report of a test's own part, for fixtures that clean up after it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="list every cell of the data plane's matrix")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Figures(), "figures")
    config.pluginmanager.register(Matrix(listed=config.option.matrix), "matrix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    needs_root = pytest.mark.skip(reason="needs root, for network namespaces")
    for item in items:
        if item.path.is_relative_to(NETNS_TESTS):
            item.add_marker(needs_root)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call":
        item.stash[OUTCOME] = report
    return report


@pytest.fixture
def passed(request):
    """Whether the test itself passed, to be called while tearing down: a failure hides what follows from it."""

    def outcome() -> bool:
        report = request.node.stash.get(OUTCOME, None)
        return report is not None and report.passed

    return outcome
