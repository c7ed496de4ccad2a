import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asynctune.records import (
    Failed,
    Finished,
    Header,
    Left,
    Record,
    Reported,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.report import render
from asynctune.report.page import _scale
from asynctune.report.svg import Categories, Linear, Log, Scale
from asynctune.results import Result
from tests.pages import Page, inert
from tests.runs import write_journal

EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\x00"


def header(metric: str = "acc", **space: str) -> Header:
    return Header(
        metric=metric,
        mode="max",
        num_trials=None,
        seed=0,
        space=space or {"lr": "loguniform(1e-05, 0.1)"},
        searcher="Random()",
        scheduler="FIFO()",
        slots=2,
    )


HEADER = header()


def trial(
    number: int, values: Sequence[float], config: dict[str, Any] | None = None, metric: str = "acc"
) -> list[Record]:
    return [
        Suggested(trial=number, config={"lr": 10.0 ** -(1 + number % 5)} if config is None else config),
        Started(trial=number, segment=0, step=0, until=None, slot=0),
        *(Reported(trial=number, segment=0, step=i, metrics={metric: v}) for i, v in enumerate(values, start=1)),
        Left(trial=number, segment=0, slot=0, busy=0.5, log=(0, 0)),
        Finished(trial=number, state=TrialState.COMPLETED, time=1.0),
    ]


Show = Callable[..., str]


@pytest.fixture
def show(tmp_path: Path) -> Show:
    def show(*records: Record, header: Header = HEADER) -> str:
        write_journal(tmp_path, [header, *records])
        return render(Result.load(tmp_path))

    return show


def check(page: str) -> Page:
    """The page, which is inert, and whose figures are well-formed with finite coordinates."""
    for figure in re.findall(r"<figure>(.*?)</figure>", page, re.DOTALL):
        for element in ElementTree.fromstring(figure).iter():
            for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "points"):
                for number in element.get(name, "0").replace(",", " ").split():
                    assert math.isfinite(float(number))
    return inert(page)


def test_a_page_says_what_a_run_found(show: Show) -> None:
    page = check(show(*trial(0, [0.1, 0.5]), *trial(1, [0.2, 0.875]), Stopping(reason="enough", time=2.0)))
    for words in ("0.875", "Trial 1, the best, at step 2", "FIFO()", "2 completed", "enough", "lr"):
        assert words in page.text
    assert "How the hyperparameters moved" not in page.text


def test_no_text_of_a_run_becomes_markup(show: Show) -> None:
    config = {EVIL: EVIL, "lr": 0.1}
    evil = header(EVIL, lr=EVIL, **{EVIL: EVIL})
    failure = [Suggested(trial=2, config=config), Failed(trial=2, error=EVIL, retry=False)]
    page = show(
        *trial(0, [0.5], config, EVIL), *trial(1, [0.6], config | {EVIL: "x"}, EVIL), *failure, Stopping(reason=EVIL),
        header=evil,
    )  # fmt: skip
    assert "alert(1)" in check(page).text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_breaks_a_figure(show: Show, data: st.DataObject) -> None:
    plain = st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(), st.lists(st.integers()))
    domain = data.draw(
        st.sampled_from(["loguniform(1e-05, 0.1)", "uniform(0.0, 1.0)", "choice([...])", "ordinal([1])"])
    )
    records = []
    for number in range(data.draw(st.integers(0, 5))):
        values = data.draw(st.lists(st.floats(), max_size=4))
        records += trial(number, values, {"x": data.draw(plain), "n": {"y": data.draw(plain)}})
    check(show(*records, header=header(x=domain, **{"n.y": domain})))


def test_an_integer_that_no_float_holds_breaks_a_scale() -> None:
    assert Linear(0, 1).at(10**400) == 10.0
    assert Linear(0, 1).at(-(10**400)) == -9.0
    assert isinstance(_scale([1, 10**400], "randint(0, 9)"), Categories)


def test_a_run_without_any_value_has_a_page(show: Show) -> None:
    assert "no trial started" in check(show()).text
    page = check(show(Suggested(trial=0, config={}), Failed(trial=0, error="ValueError: boom", retry=False)))
    assert "ValueError: boom" in page.text
    assert "Scores" not in page.text


def test_a_large_run_is_thinned_and_the_page_says_so(show: Show) -> None:
    page = show(*(record for number in range(310) for record in trial(number, [number / 310] * 250)))
    assert page.count("<polyline") == 300
    assert max(points.count(",") for points in re.findall(r'points="([^"]*)"', page)) == 200
    text = check(page).text
    assert "the 300 best of 310 trials" in text
    assert "longer curves are thinned to 200 points" in text


def test_the_table_of_a_large_run_is_cut_and_the_page_says_so(show: Show) -> None:
    def rows(page: str) -> list[str]:
        return re.findall(r"<tr(?: class=\"best\")?><td>(\d+)</td>", page)

    page = show(*(record for number in range(1200) for record in trial(number, [number / 1200])))
    assert rows(page) == [str(number) for number in range(1199, 199, -1)]
    text = check(page).text
    assert "The 1000 best of 1200 trials." in text
    assert text.count("the 300 best of 1200 trials") == 2, "at the scores and at the hyperparameters"


def test_trials_are_ranked_by_value_and_those_that_failed_come_last(show: Show) -> None:
    failed = [*trial(5, [0.95])[:-1], Failed(trial=5, error="boom", retry=False)]
    values: list[list[float]] = [[0.5], [math.nan], [0.9], [], [0.9]]
    page = show(*(record for i, value in enumerate(values) for record in trial(i, value)), *failed)
    check(page)
    assert re.findall(r"<tr[^>]*><td>(\d+)</td>", page) == ["2", "4", "0", "1", "3", "5"]
    assert re.findall(r'<tr class="best"><td>(\d+)</td>', page) == ["2"]


def test_a_curve_is_broken_where_a_value_is_not_a_number(show: Show) -> None:
    page = show(*trial(0, [0.1, 0.2, math.nan, 0.3, 0.4]), *trial(1, [0.5, math.inf]))
    assert [points.count(",") for points in re.findall(r'points="([^"]*)"', page)] == [1, 2, 2]
    check(page)


def test_one_diverged_curve_does_not_flatten_the_others(show: Show) -> None:
    records = [record for number in range(10) for record in trial(number, [number / 10] * 10)]
    page = check(show(*records, *trial(10, [-1e9])))
    assert "the outer 2 % of values lie outside" in page.text
    assert "-1e+09" in page.text  # it has its row in the table


def test_exploits_show_how_hyperparameters_moved(show: Show) -> None:
    exploit = Started(
        trial=0, segment=1, step=2, until=None, slot=0, donor=1, config={"lr": 0.05, "fixed": 1}, how="exploited"
    )
    page = show(
        *trial(0, [0.1, 0.2], {"lr": 0.1, "fixed": 1})[:-1],
        *trial(1, [0.3, 0.4], {"lr": 0.01, "fixed": 2}),
        exploit,
        Reported(trial=0, segment=1, step=3, metrics={"acc": 0.6}),
    )
    text = check(page).text
    assert "How the hyperparameters moved" in text
    moved = page.partition("How the hyperparameters moved")[2]
    assert moved.count("<figure>") == 1, "what no exploit changed did not move"
    assert max(points.count(",") for points in re.findall(r'points="([^"]*)"', moved)) == 4


def test_the_page_is_written_where_it_is_asked_for(show: Show, tmp_path: Path) -> None:
    show(*trial(0, [0.5]))
    path = Result.load(tmp_path).report(tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    check(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("scale", "names"),
    [
        (Linear(0, 50, whole=True), ["0", "10", "20", "30", "40", "50"]),
        (Linear(1, 3, whole=True), ["1", "2", "3"]),
        (Log(1e-5, 1e-1), ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        (Log(2, 60), ["2", "5", "10", "20", "50"]),
        (Categories(["sgd", "adam"]), ["sgd", "adam"]),
    ],
)
def test_ticks_are_round_numbers(scale: Scale, names: list[str]) -> None:
    assert [name for _, name in scale.ticks()] == names
    places = [place for place, _ in scale.ticks()]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
