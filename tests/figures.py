"""Figures that a test measured or counted, printed at the end of the run."""

import pytest

_KEY = "figure"


class Figures:
    """A plugin: the fixture `figure` takes a line of words."""

    def __init__(self):
        self._lines = []

    @pytest.fixture
    def figure(self, request):
        def note(words):
            # by way of the report, which reaches the process that prints
            request.node.user_properties.append((_KEY, f"{request.node.name}: {words}"))

        return note

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self._lines += [value for key, value in report.user_properties if key == _KEY]

    def pytest_terminal_summary(self, terminalreporter):
        if self._lines:
            terminalreporter.section("figures")
            for line in self._lines:
                terminalreporter.write_line(line)
