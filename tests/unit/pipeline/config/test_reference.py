"""Every key is described, and the reference lists all of them."""

import json
import re

import pytest

from pipeline.config import (
    leaf_fields,
    reference_table,
)


def test_every_key_is_described():
    for key, field in leaf_fields():
        assert field.description and len(field.description) > 10, key
        assert not field.is_required(), key


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("log.trackers", r"list of `tensorboard` \| `wandb` \| `mlflow` \| `trackio`"),
        ("model.freeze", "list of str"),
        ("optimizer.betas", "list of float"),
        ("data.mean", "list of float or null"),
        ("loss.class_weights", "`balanced` or list of float or null"),
        ("schedule.milestones", "list of durations"),
        ("optimizer.groups", "list of mappings"),
    ],
)
def test_the_reference_says_what_a_list_holds(key: str, kind: str):
    assert f"| `{key}` | {kind} | " in reference_table(key)


def test_reference_table_holds_every_key_with_type_and_default():
    rows = [line.split(" | ") for line in reference_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"| `{key}`" for key, _ in leaf_fields()]
    for row, (key, field) in zip(rows, leaf_fields(), strict=True):
        cells = re.split(r"(?<!\\) \| ", " | ".join(row))
        assert len(cells) == 4, key
        assert cells[2] == f"`{json.dumps(field.get_default())}`"
        assert cells[1] and "Annotated" not in cells[1] and "typing" not in cells[1], key
