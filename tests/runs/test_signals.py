"""Does a signal end the work as said, that of a terminal which closes among them?"""

import os
import signal

import pytest

from moesaic.errors import Interrupted
from moesaic.runs.signals import HANGUP, SIGNALS, heed, listening, mood, stopping


@pytest.mark.parametrize("number", SIGNALS)
def test_hasty_work_ends_at_once_and_patient_work_when_it_asks(number):
    with pytest.raises(Interrupted) as ended, listening():
        os.kill(os.getpid(), number)
    assert ended.value.exit_code == 128 + number
    with pytest.raises(Interrupted), listening(), mood("patient"):
        os.kill(os.getpid(), number)
        assert stopping()
        heed()


@pytest.mark.parametrize("number", HANGUP)
def test_a_command_that_shall_outlive_its_terminal_does(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with listening():
            os.kill(os.getpid(), number)
            assert not stopping()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
