from __future__ import annotations

import subprocess
import sys
import time

import pytest

from gptj_predictor.common.phases import Phase, Phases, process_seconds


def test_each_phase_is_measured() -> None:
    phases = Phases()
    with phases.measure(Phase.WEIGHTS_READ):
        time.sleep(0.01)
    assert phases.seconds[Phase.WEIGHTS_READ] >= 0.01
    assert {phases.seconds[phase] for phase in Phase if phase is not Phase.WEIGHTS_READ} == {0}


def test_what_fails_is_measured_too() -> None:
    phases = Phases()

    def fail() -> None:
        with phases.measure(Phase.TOKENIZER):
            time.sleep(0.01)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert phases.seconds[Phase.TOKENIZER] >= 0.01


def test_the_line_of_the_log_has_the_whole_in_parts() -> None:
    phases = Phases()
    phases.add(Phase.IMPORTS, 1.5)
    phases.add(Phase.WEIGHTS_READ, 0.25)
    assert phases.total == 0
    phases.finish()
    parts = dict(part.split(" ", 1) for part in str(phases).split(", "))
    assert list(parts) == [*Phase, "rest"]
    assert parts["imports"] == "1.50 s"
    assert parts["kv_cache"] == "0.00 s"
    seconds = [float(part.removesuffix(" s")) for part in parts.values()]
    assert sum(seconds) == pytest.approx(phases.total, abs=0.05)


def test_the_age_of_a_process() -> None:
    code = "import time; from gptj_predictor.common.phases import process_seconds as age\n"
    code += "before = age(); time.sleep(0.2); print(before, age())"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took = time.monotonic() - started
    before, after = map(float, done.stdout.split())
    assert 0 < before < after <= took + 0.02
    assert after - before >= 0.2
    assert process_seconds() > after
