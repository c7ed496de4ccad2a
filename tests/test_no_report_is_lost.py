"""P1, no report is lost: a driver dies at a write, is followed by others, and the end is what it would have been.

A sample; `python -m tests.torture --every` does it at every write.
"""

import random
from collections.abc import Iterator
from typing import Any

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
    """Complaints about deaths at `count` points, drawn from a seed; beside workers a run may have fewer than the one that counted them."""
    draw = random.Random(f"{crashes.scenario} {crashes.slots}")
    wrong: list[str] = []
    for _ in range(10 * count):
        wrong += crashes.at(crashes.some_point(draw), draw.choice(KILLS), again=draw if again else None) or []
        if wrong or crashes.survived == count:
            return wrong
    raise AssertionError(f"{crashes.survived} of {count} died")


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
