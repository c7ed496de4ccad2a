"""Population-based training on problems with a definition: bench/pbt.py, with a few seeds."""

import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import pbt

SEEDS = range(3)


def mean(problem: pbt.Problem, method: str) -> float:
    return statistics.fmean(problem.ends(method, SEEDS))


def test_two_blind_workers_do_not_find_the_top_of_the_quadratic() -> None:
    """Jaderberg et al., figure 2: together they reach 1.2, alone each is stuck at 1.2 - 0.9^2."""
    [problem] = [problem for problem in pbt.PROBLEMS if "quadratic" in problem.name]
    assert mean(problem, "PBT") > 1.19
    assert mean(problem, "random search") == pytest.approx(0.39, abs=0.001)
    assert mean(problem, "no explore") == pytest.approx(0.39, abs=0.001)
    assert 1.0 < mean(problem, "no exploit") < mean(problem, "PBT")


@pytest.mark.parametrize("problem", pbt.PROBLEMS[1:], ids=lambda problem: problem.name)
def test_a_schedule_is_not_found_that_no_constant_comes_near(problem: pbt.Problem) -> None:
    assert mean(problem, "PBT") > 180
    assert mean(problem, "random search") < 120
    assert mean(problem, "no exploit") < 120


def test_the_triangle_wave_has_another_shape() -> None:
    wave = pbt.TriangleWave()

    def gain(accuracy: float, lr: float) -> float:
        """The mean gain of a step, over many."""
        return statistics.fmean(wave.step(accuracy, {"lr": lr}, seed)[1] for seed in range(400)) - accuracy

    # Half of what is gained with the best rate; 0.001 at 0 and 200, 0.01 at 100.
    assert gain(100.0, 0.01) == pytest.approx(0.5, abs=0.3)
    assert gain(50.0, 0.005) == pytest.approx(0.5, abs=0.3)
    assert gain(150.0, 0.0025) == pytest.approx(0.25, abs=0.3)
    assert gain(150.0, 0.02) == pytest.approx(-0.5, abs=0.3)
    assert gain(150.0, 0.001) == pytest.approx(0.0, abs=0.3)


def test_a_member_that_explores_alone_is_given_others_hyperparameters() -> None:
    alone = pbt.Alone(pbt.Quadratic(), interval=2)
    state, value, seconds = alone.step(None, {"a": 1.0, "b": 0.0}, 0)
    assert value == pytest.approx(1.2 - (0.98**2 + 1) * 0.81)
    assert seconds == 1
    state, _, _ = alone.step(state, {"a": 1.0, "b": 0.0}, 1)
    assert state[1].tolist() == [1.0, 0.0]
    state, _, _ = alone.step(state, {"a": 1.0, "b": 0.0}, 2)
    assert state[1].tolist() != [1.0, 0.0], "at the interval"
