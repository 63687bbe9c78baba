"""The parts of a run's time have no gaps, and no part is counted twice."""

import time
from unittest.mock import patch

import pytest

from pipeline.run.timeline import Timeline
from tests.tiny import tiny_config, tiny_trainer


def test_the_parts_add_up():
    with patch.object(time, "perf_counter") as clock:
        clock.return_value = 100.0
        timeline = Timeline(90.0)
        timeline.begin("imports", at=95.0)
        timeline.begin("compile")
        clock.return_value = 110.0
        timeline.move(2.0, "compile", "capture")
        with timeline.within("evaluation"):
            clock.return_value = 113.0
        timeline.begin("training")
        clock.return_value = 120.0
        expected = {"launcher": 5.0, "imports": 5.0, "compile": 8.0, "capture": 2.0, "evaluation": 3.0}
        assert timeline.seconds() == {**expected, "training": 7.0}
        timeline.begin("saving", at=80.0)
        assert sum(timeline.seconds().values()) == 30.0, "a time before the present part began is that time"


@pytest.mark.usefixtures("process_state")
def test_the_evaluation_of_a_run_that_is_continued_from_its_last_step():
    trainer = tiny_trainer(tiny_config())
    trainer.state.step = trainer.plan.total_steps
    trainer.fit()
    parts = trainer.timeline.seconds()
    assert parts["evaluation"] > parts["compile"]
