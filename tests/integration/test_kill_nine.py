"""Run the shipped script in a process of its own, because it forks."""

from tests.python import run_python


def test_ten_kills_leave_a_checkpoint_each():
    command = ("-W", "error", "-m", "tests.kill_nine", "--kills", "10", "--seed", "1")
    done = run_python(*command, check=False, OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("10 kills, each left a checkpoint that loads; ")
