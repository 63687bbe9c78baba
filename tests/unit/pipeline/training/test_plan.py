"""Durations become steps once; a short run still logs often enough for a curve."""

import pytest

from pipeline.training.plan import Plan
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("duration", "log_every", "steps"),
    [
        ("1ep", "390st", 3),  # 78 steps: no log but the last
        ("1ep", "50st", 3),
        ("1ep", "10st", 10),  # seven logs are a curve
        ("5ep", "78st", 78),
        ("10st", "50st", 1),
        ("1st", "50st", 1),
        ("1ep", "1ep", 78),  # in epochs and in percent it is meant
        ("1ep", "100%", 78),
        ("20ep", "390st", 78),
    ],
)
def test_an_interval_in_steps_is_capped_by_the_length_of_the_run(duration: str, log_every: str, steps: int):
    plan = Plan.of(tiny_config(f"duration={duration}", f"log.log_every={log_every}"), steps_per_epoch=78)
    assert plan.log_every == steps


def test_a_short_run_has_about_twenty_points():
    plan = Plan.of(tiny_config("duration=1ep", "log.log_every=390st"), steps_per_epoch=78)
    logged = [step for step in range(1, plan.total_steps + 1) if plan.due(step).log]
    assert 20 <= len(logged) <= 40 and logged[-1] == 78


@pytest.mark.parametrize(
    ("duration", "eval_every", "steps"),
    [
        ("1ep", "5ep", 20),
        ("1ep", "1ep", 20),
        ("78st", "2000st", 20),
        ("9ep", "5ep", 390),  # two points are a line
        ("1ep", "100%", 78),  # a share of the run is meant
        ("39st", "1ep", 78),
    ],
)
def test_a_short_run_is_evaluated_more_than_once(duration: str, eval_every: str, steps: int):
    plan = Plan.of(tiny_config(f"duration={duration}", f"log.eval_every={eval_every}"), steps_per_epoch=78)
    assert plan.eval_every == steps
    warned = any(warning.startswith(f"log.eval_every: {eval_every} is not") for warning in plan.warnings)
    assert warned == (steps == 20)


def test_the_evaluations_of_a_short_run_are_evenly_spread():
    plan = Plan.of(tiny_config("duration=1ep", "log.eval_every=5ep"), steps_per_epoch=78)
    assert [step for step in range(1, 79) if plan.due(step).evaluate] == [20, 40, 60, 78]
