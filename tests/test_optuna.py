"""Optuna's samplers: told of trials in their own terms, asked anew for each suggestion."""

import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from logging import getLogger
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import asynctune as at
from asynctune._core import SAMPLE, Stream
from asynctune.errors import InvalidArgument, RunFailed
from asynctune.records import COMPLETED, FAILED, STOPPED
from asynctune.searchers import optuna as room
from tests.runs import climb, local, options
from tests.test_searchers import RICH, SQUARE, Bound, bind, score, train

SAMPLERS = optuna.samplers


@local
def half_fixed(seed: int, **arguments: Any) -> Any:
    import optuna

    return optuna.samplers.PartialFixedSampler({"x": 0.25}, optuna.samplers.TPESampler(seed=seed, **arguments))


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Optuna's own log lines, which the tests here write, are not shown."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


def given(bound: Bound) -> list[Any]:
    """The trials that a sampler would be given now, as Optuna has them."""
    call: Any = bound.prepare(10_000)
    pickled, columns, rows, outcomes, *_ = call.args
    asked = room._Asked(pickled, columns, seed=0)
    for row, outcome in zip(rows, outcomes, strict=True):
        asked.give(row, outcome)
    trials: list[Any] = asked._study.get_trials(deepcopy=False)
    for trial in trials:
        trial._validate()
    return trials


def states(bound: Bound) -> list[tuple[str, float | None]]:
    return [(trial.state.name, trial.value) for trial in given(bound)]


def begin(bound: Bound, count: int) -> None:
    for trial in range(count):
        bound.started(trial, np.array([trial / 100, 0.5]))


def test_a_trial_is_told_of_in_other_terms_than_optunas() -> None:
    bound = bind(at.Optuna("TPESampler"))
    begin(bound, 6)
    bound.observe(1, 0, 2.5)
    bound.ended(1, COMPLETED)
    bound.observe(2, 0, math.nan)
    bound.ended(2, COMPLETED)
    bound.ended(3, FAILED)
    bound.observe(4, 0, math.inf)
    bound.ended(5, STOPPED)  # stopped before it said anything
    assert states(bound) == [
        ("RUNNING", None),
        ("COMPLETE", 2.5),
        ("COMPLETE", -math.inf),
        ("FAIL", None),
        ("COMPLETE", -math.inf),
        ("FAIL", None),
    ]
    assert [trial.number for trial in given(bound)] == list(range(6))
    assert given(bound)[4].params == {"x": 0.04, "y": 0.5}


def test_a_trial_that_stopped_early_is_complete_or_has_no_intermediate_values() -> None:
    bound = bind(at.Optuna("TPESampler"), num_trials=20)  # five make a level
    begin(bound, 9)
    for trial in range(8):
        bound.observe(trial, 1, float(trial))
    bound.ended(0, COMPLETED)
    for trial in range(3, 7):
        bound.observe(trial, 3, 10.0 + trial)
    lower = [("COMPLETE", float(trial)) for trial in range(8)]
    assert states(bound) == [*lower, ("RUNNING", None)], "four values make no level"
    bound.observe(7, 3, 17.0)
    bound.observe(7, 9, 27.0)
    bound.observe(8, 9, 28.0)  # of a bracket that starts further up: it cannot be compared
    bound.observe(6, 9, -math.inf)
    bound.ended(6, FAILED)
    assert states(bound) == [
        ("PRUNED", 0.0),
        ("PRUNED", 1.0),
        ("PRUNED", 2.0),
        ("COMPLETE", 13.0),
        ("COMPLETE", 14.0),
        ("COMPLETE", 15.0),
        ("FAIL", None),
        ("COMPLETE", 17.0),
        ("FAIL", None),
    ]
    assert given(bound)[2].intermediate_values == {1: 2.0}
    assert given(bound)[7].intermediate_values == {1: 7.0, 3: 17.0, 9: 27.0}


def test_the_lowest_level_is_not_used_from_the_first_value_on() -> None:
    bound = bind(at.Optuna("TPESampler"))
    begin(bound, 3)
    bound.observe(0, 3, 1.0)
    bound.observe(1, 3, 2.0)
    bound.observe(1, 9, 3.0)
    assert states(bound) == [("COMPLETE", 1.0), ("COMPLETE", 2.0), ("RUNNING", None)]


def test_a_prepared_suggestion_hears_of_later_values() -> None:
    bound = bind(at.Optuna("TPESampler"))
    begin(bound, 2)
    bound.observe(0, 1, 1.0)
    call: Any = bound.prepare(2)
    bound.observe(0, 3, 2.0)
    assert [outcome.values for outcome in call.args[3]] == [{1: 1.0}, {}]


def test_a_sampler_suggests_other_than_on_its_own() -> None:
    bound = bind(at.Optuna("TPESampler"), seed=3)
    rows = train(bound, range(30))
    call: Any = bound.prepare(30)
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS.TPESampler(seed=call.args[4]))
    distributions: Any = {name: optuna.distributions.FloatDistribution(0, 1) for name in "xy"}
    for row in rows:
        params = dict(zip("xy", row.tolist(), strict=True))
        study.add_trial(optuna.create_trial(value=score(row), params=params, distributions=distributions))
    trial = study.ask()
    assert call().tolist() == [trial.suggest_float(name, 0, 1) for name in "xy"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("name", "arguments", "trials"),
    [
        ("QMCSampler", {"scramble": True}, 20),
        ("NSGAIISampler", {"population_size": 4}, 20),
        ("GridSampler", {"search_space": {"x": [0.1, 0.2, 0.7], "y": [0.0, 1.0]}}, 6),
    ],
)
def test_a_sampler_that_keeps_notes_suggests_other_than_on_its_own(
    name: str, arguments: dict[str, Any], trials: int
) -> None:
    bound = bind(at.Optuna(name, **arguments), seed=3)
    common_seed = bound.prepare(0).args[5]  # type: ignore[attr-defined]
    study = optuna.create_study(direction="maximize", sampler=getattr(SAMPLERS, name)(seed=common_seed, **arguments))
    equal = []
    for number in range(trials):
        trial = study.ask()
        row = np.array([trial.suggest_float(name, 0, 1) for name in "xy"])
        equal.append(bound.prepare(number)().tolist() == row.tolist())
        bound.started(number, row)
        bound.observe(number, 0, score(row))
        bound.ended(number, COMPLETED)
        with suppress(RuntimeError):  # GridSampler wants to stop the study
            study.tell(trial, score(row))
    # QMCSampler's first trial is drawn without a note, with a seed of its own.
    assert all(equal[1:]) and len(equal) == trials


def test_cma_es_forgets_its_distribution() -> None:
    bound = bind(at.Optuna("CmaEsSampler"), seed=1)
    scores = [score(row) for row in train(bound, range(60))]
    assert np.median(scores[-12:]) > 0.05 * np.median(scores[:12])


def test_a_value_is_another_one_in_optunas_terms() -> None:
    for trial in range(200):
        row = RICH.table.sample(Stream(0, SAMPLE, trial))
        for column, value in zip(RICH.columns, row.tolist(), strict=True):
            if math.isnan(value):
                continue
            parameter = room._parameter(column, value)
            distribution = room._distributions(RICH.columns)[column.name]
            assert distribution._contains(distribution.to_internal_repr(parameter)), column
            assert room._value(column, parameter) == pytest.approx(value, rel=1e-9), column
    far = room._parameter(RICH.columns[RICH.names.index("bias")], 1e6)  # where explore may have come to
    assert 0.5 < far < 1


def test_a_normal_hyperparameter_is_not_drawn_from_its_law() -> None:
    space = at.Space({"x": at.normal(5.0, 2.0)})
    bound = bind(at.Optuna("RandomSampler"), space)
    drawn = [float(bound.prepare(trial)()[0]) for trial in range(100)]
    assert abs(np.mean(drawn) - 5.0) < 0.8 and 1.5 < np.std(drawn) < 2.5
    assert len(set(drawn)) == 100


def test_a_class_and_its_name_are_two_specifications() -> None:
    spec = at.Optuna("TPESampler", n_startup_trials=3, multivariate=True)
    assert at.Optuna(SAMPLERS.TPESampler, multivariate=True, n_startup_trials=3) == spec
    assert repr(spec) == "Optuna('TPESampler', multivariate=True, n_startup_trials=3)"
    assert spec != at.Optuna("TPESampler")
    assert repr(at.Optuna(half_fixed)) == "Optuna(__main__.half_fixed)"
    assert at.Optuna(half_fixed) == at.Optuna(half_fixed) != spec


def test_a_specification_changes_with_what_it_was_made_of() -> None:
    values = {"x": [0.1, 0.2]}
    spec = at.Optuna("GridSampler", search_space=values)
    values["x"].append(0.3)
    assert spec.arguments == (("search_space", {"x": [0.1, 0.2]}),)


def test_a_function_that_makes_a_sampler_is_not_asked() -> None:
    bound = bind(at.Optuna(half_fixed, n_startup_trials=2), SQUARE)
    rows = train(bound, range(8))
    assert [row[0] for row in rows] == [0.25] * 8
    assert len({row[1] for row in rows}) == 8
    call = pickle.loads(pickle.dumps(bound.prepare(8)))
    np.testing.assert_array_equal(call(), bound.prepare(8)())


def test_arguments_that_no_journal_could_tell_apart_are_taken() -> None:
    def local(seed: int) -> Any: ...

    for sampler in (SAMPLERS.TPESampler(), lambda seed: None, local, "", "two words", 3, None):
        with pytest.raises(InvalidArgument, match="sampler must be the name of a class in optuna.samplers, or "):
            at.Optuna(sampler)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="the sampler's seed follows from the study's, got seed=3"):
        at.Optuna("TPESampler", seed=3)
    with pytest.raises(InvalidArgument, match="independent_sampler must be made of numbers, .* got <optuna"):
        at.Optuna("CmaEsSampler", independent_sampler=SAMPLERS.RandomSampler())


def test_optuna_is_missing_and_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(InvalidArgument, match=r"at.Optuna needs the optuna package: pip install asynctune\[optuna\]"):
        at.Optuna("TPESampler")


def test_an_unknown_sampler_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="sampler must be the name of a class in optuna.samplers, got 'TPE'"):
        at.run(climb, {"x": at.uniform(0, 1)}, **options(tmp_path, searcher=at.Optuna("TPE")))


def test_an_unknown_argument_of_a_sampler_is_not_named() -> None:
    class Flat:
        space, metric, mode, max_resource = SQUARE, "score", "max", 1

        def evaluate(self, config: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
            return [0.0], [1.0]

    with pytest.raises(InvalidArgument, match="made of seed= and its arguments, got .*TPESampler.* 'startup'"):
        at.simulate(Flat(), searcher=at.Optuna("TPESampler", startup=3), num_trials=2)  # type: ignore[arg-type]


def test_log_lines_are_shown_or_hidden_for_good() -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    lines = BufferingHandler(1000)
    logger = getLogger("optuna")
    logger.addHandler(lines)
    try:
        bound = bind(at.Optuna("GridSampler", search_space={"x": [0.1], "y": [0.2]}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(bound, range(3))
        assert not lines.buffer
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        optuna.create_study()
        assert lines.buffer
    finally:
        logger.removeHandler(lines)


@pytest.mark.parametrize(
    "spec", [at.Optuna("TPESampler", n_startup_trials=2), at.Optuna("NSGAIISampler", population_size=3)], ids=repr
)
def test_a_resumed_run_suggests_other_than_one_that_was_not_interrupted(tmp_path: Path, spec: at.Optuna) -> None:
    space = {"x": at.uniform(0, 1), "kind": at.choice(["a", {"name": "b", "z": at.loguniform(1e-3, 1)}])}
    given: dict[str, Any] = {"searcher": spec, "slots": "inline", "num_trials": 12}
    whole = at.run(climb, space, **options(tmp_path, run_dir=tmp_path / "whole", **given))
    at.run(climb, space, **options(tmp_path, stop_when=lambda report: report.trial == 6, **given))
    parts = at.run(climb, space, **options(tmp_path, resume=True, **given))
    assert [trial.config for trial in parts.trials] == [trial.config for trial in whole.trials]


def test_the_driver_loads_optuna(tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        import asynctune as at
        def make(seed):
            import optuna
            return optuna.samplers.RandomSampler(seed=seed)
        def train(trial):
            return trial.config["x"]
        for sampler in ("TPESampler", make):
            result = at.run(train, {{"x": at.uniform(0, 1)}}, metric="x", mode="max", num_trials=3, slots=2, progress=False,
                            searcher=at.Optuna(sampler), run_dir=f"{tmp_path}/{{sampler}}")
            print(len({{trial.config["x"] for trial in result.trials}}), "optuna" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 False\n3 False\n"
