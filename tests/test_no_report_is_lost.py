"""P1, no report is lost: a driver dies at a write, is followed by others, and the end is what it would have been."""

import random
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.faults import KILLS, Driver
from tests.faults.crash import Crashes
from tests.faults.scenarios import SCENARIOS

#: With a checkpoint at every step, there is something to go on from everywhere.
OFTEN: dict[str, Any] = {"checkpoint_every": 1e-4}
POWER: dict[str, Any] = {"durability": "power"}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


def sample(crashes: Crashes, count: int, *, again: bool) -> list[str]:
    """Complaints about deaths at `count` points, drawn from a seed."""
    draw = random.Random(f"{crashes.scenario} {crashes.slots}")
    wrong: list[str] = []
    for _ in range(count):
        wrong += crashes.at(crashes.some_point(draw), draw.choice(KILLS), again=draw if again else None) or []
    assert crashes.survived or wrong, "nobody died"
    return wrong


def every(crashes: Crashes) -> list[str]:
    """Complaints about deaths at every point there is, before, during and after the call."""
    wrong: list[str] = []
    for point in range(1, 10_000):
        for what in KILLS:
            complaints = crashes.at(point, what)
            if complaints is None:
                assert crashes.survived > 20
                return wrong
            wrong += complaints
    raise AssertionError("it never ends")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_killed_driver_changes_what_comes_out(driver: Driver, scenario: str) -> None:
    assert sample(Crashes(driver, scenario), 8, again=False) == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_driver_killed_again_and_again_changes_what_comes_out(driver: Driver, scenario: str) -> None:
    assert sample(Crashes(driver, scenario, options=OFTEN), 4, again=True) == []


@pytest.mark.parametrize("scenario", ["asha", "barrier"])
def test_a_driver_killed_beside_its_workers_changes_what_comes_out(driver: Driver, scenario: str) -> None:
    assert sample(Crashes(driver, scenario, slots=1, options=OFTEN), 2, again=False) == []


@pytest.mark.parametrize("scenario", ["promotion", "pbt"])
@pytest.mark.parametrize("options", [OFTEN, POWER], ids=["process", "power"])
def test_a_driver_with_four_slots_loses_something(driver: Driver, scenario: str, options: dict[str, Any]) -> None:
    assert sample(Crashes(driver, scenario, slots=4, options=options), 1, again=True) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("options", [{}, OFTEN], ids=["seldom", "often"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_point_of_death_changes_what_comes_out(driver: Driver, scenario: str, options: dict[str, Any]) -> None:
    assert every(Crashes(driver, scenario, options=options)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("scenario", ["random", "asha", "promotion", "pbt", "barrier"])
def test_a_point_of_death_beside_workers_loses_something(driver: Driver, scenario: str, slots: Literal[1, 4]) -> None:
    assert every(Crashes(driver, scenario, slots=slots, options=OFTEN)) == []
