"""Trains the whole of torchvision's recipe and of that for fine-tuning, with a small network, on a folder of
small pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import load_config
from tests.python import ROOT
from tests.tiny import tiny_trainer

SIZE, PICTURES = 24, 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make two classes that no turn and no change of colour mixes up: coarse and fine noise."""
    generator = np.random.default_rng(0)
    for part, count in (("train", PICTURES), ("val", 24)):
        for name, grain in (("coarse", 8), ("fine", 2)):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for number in range(count // 2):
                cells = generator.integers(0, 256, (SIZE // grain, SIZE // grain, 3), dtype=np.uint8)
                picture = cells.repeat(grain, axis=0).repeat(grain, axis=1)
                Image.fromarray(picture).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.usefixtures("process_state")
def test_the_whole_recipe_learns(root: Path):
    """Only sizes, length and network are smaller; every part of the recipe stays switched on."""
    smaller = (
        *(f"data.root={root}", "data.cache_below=8", f"data.image_size={SIZE}", "data.batch_size=32"),
        *(f"data.eval_image_size={SIZE}", "data.eval_crop=1.0", "data.num_threads=2", "model.name=resnet20"),
        *("precision.mode=fp32", "duration=40ep", "optimizer.lr=0.1", "ema.decay=0.8", "ema.every=4st"),
        *("log.eval_every=40ep", "log.checkpoint_every=40ep", "runtime.device=cpu"),
    )
    trainer = tiny_trainer(load_config(ROOT / "configs/imagenet_resnet50_v2.yaml", smaller))
    result = trainer.fit()
    assert trainer.plan.total_steps == 80
    assert result.ema is not None
    assert result.ema.accuracy > 0.7, (result.accuracy, result.ema.accuracy)


@pytest.mark.usefixtures("process_state")
def test_the_recipe_for_fine_tuning_takes_a_folder_of_small_pictures(root: Path):
    keys = [
        *(f"data.root={root}", "data.batch_size=8", "data.eval_batch_size=12", "data.image_size=32"),
        *("model.name=resnet18", "model.weights=null", "precision.mode=fp32"),
        *("duration=2st", "data.num_threads=1", "runtime.device=cpu"),
    ]
    trainer = tiny_trainer(load_config(ROOT / "configs/finetune_resnet50.yaml", keys))
    assert trainer.fit().seen == 24
