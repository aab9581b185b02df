"""What keeps the daemon from starting is one line."""

import errno
from contextlib import ExitStack

import pytest

from app import main
from app.model.errors import KernelRefused, StartupError
from app.reconcile.monitor import Monitor
from app.settings import Settings


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "the kernel's events cannot be heard: Too many open files"),
        (KernelRefused(errno.ENOBUFS, "ip link"), "the kernel refused 'ip link'"),
    ],
)
def test_a_kernel_that_cannot_be_heard(monkeypatch, tmp_path, failure, words):
    def refuse(_monitor):
        raise failure

    monkeypatch.setattr(Monitor, "start", refuse)
    with ExitStack() as stack, pytest.raises(StartupError) as raised:
        main._start_worker(Settings(state_dir=str(tmp_path)), None, stack)
    assert raised.value.detail.startswith(words)
