"""Who may ask to stop, how often, and what the run then ends with. Real signals to this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from nemo_tapo.utils.errors import Stopped
from nemo_tapo.utils.signals import Stop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def stop() -> Iterator[Stop]:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    listening = Stop()
    listening.install()
    yield listening
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(*signals: signal.Signals) -> None:
    for signum in signals:
        os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_one_signal_asks(stop: Stop, signum: signal.Signals) -> None:
    stop.check("nothing")
    send(signum)
    with pytest.raises(Stopped, match=f"stopped by {signum.name}; saved") as raised:
        stop.check("saved")
    assert raised.value.signum == signum


def test_two_of_a_person_abort(stop: Stop) -> None:
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)


def test_slurms_word_never_aborts_a_checkpoint(stop: Stop) -> None:
    send(signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR1)
    assert stop.signum == signal.SIGUSR1


def test_a_cancelled_job_is_cancelled_though_its_limit_was_near(stop: Stop) -> None:
    """SIGUSR1 leads to a requeue, SIGTERM does not: the order must not matter."""
    send(signal.SIGUSR1, signal.SIGTERM)
    assert stop.signum == signal.SIGTERM
    send(signal.SIGUSR1)
    assert stop.signum == signal.SIGTERM
