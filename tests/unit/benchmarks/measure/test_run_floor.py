"""Checks the least work of a whole run: steps of each phase, evaluations with their views, and the time."""

import pytest

from benchmarks.measure.run_floor import EVALUATION, LOADING, floor_of, steps_of_phases
from benchmarks.publish.whole_runs import Floor, FloorPart
from pipeline.models.flops import count_flops
from pipeline.profiling.layer_work import FORWARD, INPUT_GRADIENT, OPTIMIZER, Work, layer_passes
from pipeline.training.trainer import Trainer
from tests.tiny import tiny_config, tiny_trainer

pytestmark = pytest.mark.usefixtures("process_state")

STEPS, BATCH, TEST_IMAGES, PIXELS = 15, 8, 8, 3 * 8 * 8
BEST = Work(flops=1e9, num_bytes=1e9)


def parts_of(trainer: Trainer, best: Work = BEST) -> dict[str, FloorPart]:
    return {part.kind: part for part in floor_of(trainer, best).parts}


def test_the_work_of_a_run_is_that_of_its_steps_and_its_evaluation():
    trainer = tiny_trainer(tiny_config())
    parts, model = parts_of(trainer), trainer.state.model
    images = STEPS * BATCH
    per_image = count_flops(model, (3, 8, 8), backward=True)[""]
    num_test = trainer.loaders.test.num_samples
    forward = num_test * count_flops(model, (3, 8, 8))[""]
    assert parts[EVALUATION].flops == forward
    assert sum(part.flops for part in parts.values()) == images * per_image + forward
    assert parts[OPTIMIZER].num_bytes == STEPS * 20 * sum(p.numel() for p in model.parameters())
    assert parts[LOADING].num_bytes == (images + num_test) * PIXELS * (1 + 4)  # uint8 to float32


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        (["evaluation.flip_tta=true"], 2 * 8),
        (["evaluation.views=mirror_shift"], 6 * 8),
        (["evaluation.views=mirror_shift", "evaluation.views_share=0.25"], 8 + 5 * 2),
        (["ema.decay=0.5", "evaluation.flip_tta=true"], 2 * 2 * 8),
    ],
)
def test_every_view_of_an_evaluation_counts(keys: list[str], seen: int):
    trainer = tiny_trainer(tiny_config(*keys))
    assert trainer.loaders.test.num_samples == TEST_IMAGES
    flops = count_flops(trainer.state.model, (3, 8, 8))[""]
    assert parts_of(trainer)[EVALUATION].flops == seen * flops


def test_gradients_that_a_phase_does_not_compute_do_not_count():
    keys = ["model.name=speednet94", "data.image_size=10"]
    keys += ["optimizer.groups=[{match: stem.bias, until: 4st}]"]
    whole, dropped = (
        tiny_trainer(tiny_config(*keys, f"compile.drop_ended={drop}")) for drop in ("false", "true")
    )
    assert [steps for _, steps in steps_of_phases(dropped)] == [4, STEPS - 4]
    first = next(
        each
        for each in layer_passes(whole.state.model, (3, 10, 10), BATCH, 4)
        if each.kind == INPUT_GRADIENT and each.layer.endswith("conv1")
    )
    before, after = parts_of(whole), parts_of(dropped)
    saved = before[INPUT_GRADIENT].flops - after[INPUT_GRADIENT].flops
    assert saved == (STEPS - 4) * first.flops > 0
    assert before[FORWARD] == after[FORWARD]


def test_the_time_is_that_of_operations_or_bytes():
    trainer = tiny_trainer(tiny_config())
    by_bytes, by_flops = (
        floor_of(trainer, best) for best in (Work(1e30, 1e9), Work(flops=1e9, num_bytes=1e30))
    )
    assert by_bytes.seconds == pytest.approx(by_bytes.num_bytes / 1e9)
    assert by_flops.seconds == pytest.approx(by_flops.flops / 1e9)
    both = floor_of(trainer, BEST)
    assert max(by_bytes.seconds, by_flops.seconds) < both.seconds < by_bytes.seconds + by_flops.seconds
    assert Floor.model_validate_json(both.model_dump_json()) == both
    assert [part.seconds for part in both.parts] == sorted((p.seconds for p in both.parts), reverse=True)
