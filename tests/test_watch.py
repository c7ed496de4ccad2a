"""Watch: nobody is killed who could not have been heard, and nobody who is overdue is forgotten. No clock; time is told."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.watch import LATE, SILENCE, TICK, Watch

REPORT, TRIAL = 20.0, 50.0


def ticking(
    watch: Watch, start: float, stop: float, *, at: Callable[[float], object] = lambda now: None
) -> list[tuple[float, int, str]]:
    """What is named, and when, while the driver looks once a TICK; `at` is called before each look."""
    named = []
    now = start
    while now < stop:
        now += TICK
        at(now)
        named += [(now, slot, cause) for slot, cause in watch.overdue(now)]
    return named


def test_a_trial_without_a_report_is_named_at_its_time() -> None:
    watch = Watch(100.0, report_timeout=20)
    watch.began(3, 100.0)
    assert ticking(watch, 100, 200) == [(120, 3, "sent no report for 20 s (report_timeout)")]


def test_a_report_starts_the_time_anew() -> None:
    watch = Watch(0.0, report_timeout=20)
    watch.began(0, 0.0)
    assert ticking(watch, 0, 100, at=lambda now: watch.reported(0, now)) == []
    assert ticking(watch, 100, 200) == [(120, 0, "sent no report for 20 s (report_timeout)")]


def test_reports_do_not_make_a_trial_immortal() -> None:
    watch = Watch(0.0, report_timeout=20, trial_timeout=3600)
    watch.began(0, 0.0)
    assert ticking(watch, 0, 4000, at=lambda now: watch.reported(0, now)) == [
        (3600, 0, "ran for 3600 s (trial_timeout)")
    ]


def test_a_worker_that_dies_before_its_first_sign_of_life_is_missed() -> None:
    # apache/airflow #66773: a task that never sent a heartbeat was never found dead.
    watch = Watch(0.0)
    watch.spawned(1, 0.0)
    assert ticking(watch, 0, 1000) == [(SILENCE, 1, "hung: gave no sign of life for 300 s")]


def test_a_sign_of_life_is_no_report_and_a_report_no_sign_of_life() -> None:
    watch = Watch(0.0, report_timeout=20)
    watch.spawned(0, 0.0)
    watch.spawned(1, 0.0)
    watch.began(0, 0.0)
    watch.began(1, 0.0)

    def at(now: float) -> None:
        watch.alive(0, now)
        watch.reported(1, now)

    assert ticking(watch, 0, 1000, at=at) == [
        (20, 0, "sent no report for 20 s (report_timeout)"),
        (300, 1, "hung: gave no sign of life for 300 s"),
    ]


def test_a_worker_that_is_hung_is_called_hung() -> None:
    watch = Watch(0.0, report_timeout=SILENCE, trial_timeout=SILENCE)
    watch.spawned(0, 0.0)
    watch.began(0, 0.0)
    assert ticking(watch, 0, 1000) == [(SILENCE, 0, "hung: gave no sign of life for 300 s")]


def test_a_trial_that_waits_is_not_missed() -> None:
    watch = Watch(0.0, report_timeout=20, trial_timeout=50)
    watch.spawned(0, 0.0)
    watch.began(0, 0.0)
    watch.ended(0)
    watch.reported(0, 5.0)  # came late, and is nobody's
    assert ticking(watch, 0, 200, at=lambda now: watch.alive(0, now)) == []


def test_a_worker_that_left_is_not_missed() -> None:
    watch = Watch(0.0, report_timeout=20)
    watch.spawned(0, 0.0)
    watch.began(0, 0.0)
    watch.gone(0)
    watch.alive(0, 5.0)
    assert ticking(watch, 0, 1000) == []


def test_without_timeouts_only_the_hung_are_named() -> None:
    watch = Watch(0.0)
    watch.began(0, 0.0)
    assert ticking(watch, 0, 10_000) == []


@pytest.mark.parametrize("gap", [LATE + 1, 60.0, 1e6])
def test_a_suspended_driver_kills_nobody(gap: float) -> None:
    watch = Watch(0.0, report_timeout=20, trial_timeout=50)
    for slot in range(4):
        watch.spawned(slot, 0.0)
        watch.began(slot, 0.0)
    assert ticking(watch, 0, 19) == []
    woken = 19 + gap
    watch.began(3, woken)  # what comes first after the gap is not thrown back either
    assert watch.overdue(woken) == []
    assert ticking(watch, woken, woken + 40) == [
        *((woken + 1, slot, "sent no report for 20 s (report_timeout)") for slot in range(3)),
        (woken + 20, 3, "sent no report for 20 s (report_timeout)"),
    ]


# Against a model that counts, for each slot, the seconds in which the driver listened.

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["spawned", "alive", "gone", "began", "reported", "ended", "overdue", "overdue", "overdue"]),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.5, 1.0, 3.0, 9.0, 10.0, 10.5, 400.0]),
    ),
    max_size=200,
)


@given(EVENTS, st.sampled_from([None, REPORT]), st.sampled_from([None, TRIAL]))
def test_the_watch_names_whom_a_model_names(
    events: list[tuple[str, int, float]], report_timeout: float | None, trial_timeout: float | None
) -> None:
    watch = Watch(0.0, report_timeout=report_timeout, trial_timeout=trial_timeout)
    limits = {"life": SILENCE, "trial": trial_timeout or math.inf, "report": report_timeout or math.inf}
    words = {"life": "hung", "trial": "trial_timeout", "report": "report_timeout"}
    begun: dict[tuple[str, int], float] = {}  # in seconds of the listening driver
    now = looked = heard = 0.0
    for event, slot, gap in events:
        now += gap
        listening = heard + (now - looked if now - looked <= LATE else 0.0)
        if event == "overdue":
            heard, looked = listening, now
            expected: dict[int, str] = {}
            for kind, limit in reversed(limits.items()):
                expected |= {each: kind for (rule, each), at in begun.items() if rule == kind and heard - at >= limit}
            named = watch.overdue(now)
            assert len(named) == len(expected)
            assert {each: True for each, cause in named if words[expected[each]] in cause} == dict.fromkeys(
                expected, True
            )
            begun = {key: at for key, at in begun.items() if key[1] not in expected}
            continue
        if event in ("gone", "ended"):
            getattr(watch, event)(slot)
            gone = limits if event == "gone" else ("trial", "report")
            begun = {key: at for key, at in begun.items() if key[1] != slot or key[0] not in gone}
            continue
        getattr(watch, event)(slot, now)
        kinds = {"spawned": ["life"], "alive": ["life"], "began": ["trial", "report"], "reported": ["report"]}[event]
        for kind in kinds:
            if event in ("spawned", "began") or (kind, slot) in begun:
                begun[kind, slot] = listening


@given(st.lists(st.floats(0, 30), max_size=60), st.floats(0.1, 100))
def test_nobody_is_named_before_the_time_is_up_nor_twice(gaps: list[float], limit: float) -> None:
    watch = Watch(0.0, trial_timeout=limit)
    watch.began(0, 0.0)
    now, named = 0.0, []
    for gap in gaps:
        now += gap
        named += [now for _ in watch.overdue(now)]
    assert len(named) <= 1
    assert all(at >= limit for at in named)
    counted = sum(gap for gap in gaps if gap <= LATE)
    if counted > limit + 1e-6:
        assert named
