"""Reads the variables that launchers set, and tells those of others from its own."""

import pytest

from pipeline.errors import UserError
from pipeline.process.world import World, forget_world, rank_on_host, read_world

WORLD = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
LOCAL = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}

pytestmark = pytest.mark.usefixtures("process_state")


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_world_of_several_hosts(monkeypatch: pytest.MonkeyPatch):
    set_all(monkeypatch, WORLD | LOCAL)
    assert read_world() == World(5, 8, 1, 4, "first", 29500)
    assert read_world().local_ranks == range(4, 8)
    assert rank_on_host() == 1


def test_a_process_that_an_operator_has_started(monkeypatch: pytest.MonkeyPatch):
    """As a PyTorchJob does, without the number on the host."""
    set_all(monkeypatch, WORLD)
    assert read_world() == World(5, 8, 0, 1, "first", 29500)
    assert read_world().local_ranks == range(5, 6)
    assert rank_on_host() == 0


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "x"},
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
        {name: value for name, value in WORLD.items() if name != "MASTER_PORT"},
        WORLD | {"MASTER_ADDR": ""},
    ],
    ids=lambda variables: ",".join(variables),
)
def test_what_is_left_over_is_removed_and_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]):
    set_all(monkeypatch, variables)
    assert read_world() == World()
    warning = forget_world()
    assert warning is not None
    for name in variables:
        assert name in warning or name.startswith("MASTER_")
    assert "trains alone" in warning
    assert forget_world() is None, "nothing is left"


@pytest.mark.parametrize(
    "variables", [{}, {"MASTER_ADDR": "first"}, WORLD | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}]
)
def test_one_process_is_no_reason_for_a_warning(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]):
    set_all(monkeypatch, variables)
    assert read_world().size == 1
    assert forget_world() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "8"),
        ("RANK", "-1"),
        ("RANK", "one"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "²"),
        ("MASTER_PORT", "70000"),
        ("LOCAL_RANK", "4"),
        ("LOCAL_WORLD_SIZE", "9"),
    ],
)
def test_a_number_out_of_range(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    set_all(monkeypatch, WORLD | LOCAL | {name: value})
    with pytest.raises(UserError, match=f"{name}={value}: .*unset RANK WORLD_SIZE"):
        read_world()
    assert rank_on_host() == 0, "an error must be reported by somebody"
