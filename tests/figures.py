"""Figures that a test measured or counted, printed at the end of the run."""

import pytest


class Figures:
    """A plugin: the fixture `figure` takes a line of words."""

    def __init__(self):
        self._lines = []

    @pytest.fixture
    def figure(self, request):
        def note(words):
            self._lines.append(f"{request.node.name}: {words}")

        return note

    def pytest_terminal_summary(self, terminalreporter):
        if self._lines:
            terminalreporter.section("figures")
            for line in self._lines:
                terminalreporter.write_line(line)
