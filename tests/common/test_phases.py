from __future__ import annotations

import time

import pytest

from gptj_predictor.common.phases import Phase, Phases


def test_each_phase_is_measured() -> None:
    phases = Phases()
    with phases.measure(Phase.WEIGHTS):
        time.sleep(0.01)
    assert phases.seconds[Phase.WEIGHTS] >= 0.01
    assert {phases.seconds[phase] for phase in Phase if phase is not Phase.WEIGHTS} == {0}


def test_what_fails_is_measured_too() -> None:
    phases = Phases()

    def fail() -> None:
        with phases.measure(Phase.TOKENIZER):
            time.sleep(0.01)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert phases.seconds[Phase.TOKENIZER] >= 0.01
