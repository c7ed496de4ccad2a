"""Population: who gives, who takes over, and what becomes of the hyperparameters."""

import io
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune import _core
from asynctune.searchers.random import draw
from tests import reference

Values = dict[str, npt.NDArray[np.float64]]

SPACE = {
    "lr": at.loguniform(1e-5, 1e-1),
    "dropout": at.uniform(0.0, 0.5),
    "shift": at.uniform(-1.0, 1.0),
    "noise": at.normal(0.0, 2.0),
    "layers": at.randint(1, 9),
    "width": at.lograndint(1, 500),
    "margin": at.quniform(0.0, 1.0, 0.25),
    "patience": at.qloguniform(2.0, 40.0, 2.0),
    "batch_size": at.ordinal([32, 64, 128, 256]),
    "activation": at.choice(["relu", "tanh", "gelu"]),
    "optimizer": at.choice(
        [
            {"name": "sgd", "momentum": at.uniform(0.0, 0.99), "nesterov": at.choice([False, True])},
            {"name": "adam", "beta1": at.uniform(0.5, 0.99), "warmup": at.choice([0, {"steps": at.randint(1, 100)}])},
        ]
    ),
    "seed": 7,
}

SCORES = st.one_of(st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]), st.floats(-9, 9))


def scores_of(n: int, generation: int) -> npt.NDArray[np.float64]:
    """Scores with ties and with some that are not finite."""
    scores = np.round(np.random.default_rng(generation).normal(size=n), 1)
    scores[::31], scores[1::37], scores[2::41] = np.nan, np.inf, -np.inf
    return scores


def copied(pop: at.Population) -> Values:
    return {name: values.copy() for name, values in pop.values.items()}


def same(one: Values, other: Values) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k], equal_nan=True) for k in one)


# Selection.


@settings(max_examples=200, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=60), st.sampled_from(["max", "min"]), st.floats(0, 0.5), st.integers(0, 9))
def test_donors_and_recipients_are_not_those_of_the_reference(
    scores: list[float], mode: str, q: float, seed: int
) -> None:
    pop = at.Population(SPACE, len(scores), mode=mode, quantile_fraction=q, seed=seed)
    before = copied(pop)
    donor = pop.step(scores)
    giving, taking = reference.truncation(scores, mode, q)
    assert donor.shape == (len(scores),) and donor.dtype == np.int64
    for member, its_donor in enumerate(donor.tolist()):
        if member in taking and giving:
            assert its_donor in giving
        else:
            assert its_donor == member
            assert all(np.array_equal(pop.values[k][member], before[k][member], equal_nan=True) for k in before)
    assert pop.generation == 1


def test_donors_are_not_those_of_the_scheduler() -> None:
    """Each member draws from the same stream as under `at.PBT` with a barrier; there the best are listed by rank."""
    n = 40
    scores = np.arange(n)[::-1].astype(float)  # the best of the same score are listed from the last to the first
    generations = _core.Generations(n, 1, 0.25, 5, True)
    for member in range(n):
        generations.record(member, 1, scores[member])
        generations.save(member, 1, f"{member}")
    best = n // 4
    donor = at.Population(SPACE, n, seed=5).step(scores)
    for member in range(n):
        gift = generations.donor(member)
        assert donor[member] == (member if gift is None else best - 1 - gift[0])


def test_a_donor_takes_over_or_is_not_finite() -> None:
    n = 5000
    pop = at.Population(SPACE, n, quantile_fraction=0.5)
    for generation in range(3):
        scores = scores_of(n, generation)
        donor = pop.step(scores)
        donors = np.unique(donor[donor != np.arange(n)])
        assert len(donors) > n // 10
        assert np.array_equal(donor[donors], donors)
        assert np.isfinite(scores[donors]).all()


def test_nobody_has_a_finite_score_and_somebody_gives() -> None:
    pop = at.Population(SPACE, 100)
    before = copied(pop)
    assert np.array_equal(pop.step(np.full(100, np.nan)), np.arange(100))
    assert same(copied(pop), before)
    one = np.full(100, -np.inf)
    one[17] = -5.0
    donor = pop.step(one)
    assert np.count_nonzero(donor == 17) == 26 and pop.generation == 2


def test_a_population_of_one_exploits_itself() -> None:
    pop = at.Population(SPACE, 1)
    before = copied(pop)
    assert pop.step([math.nan]).tolist() == [0]
    assert same(copied(pop), before)


def test_scores_of_another_kind_decide_otherwise() -> None:
    scores = np.random.default_rng(0).permutation(64)
    donors = [
        at.Population(SPACE, 64).step(given).tolist()
        for given in (
            scores,
            scores.tolist(),
            scores.astype(np.float16),
            scores.astype(np.uint8),
            np.repeat(scores, 2)[::2],
            torch.from_numpy(scores),
            torch.from_numpy(scores).float(),
        )
    ]
    assert all(donor == donors[0] for donor in donors)
    assert at.Population(SPACE, 64, mode="min").step(-scores).tolist() == donors[0]


# Hyperparameters.


def test_a_member_does_not_begin_as_the_trial_of_its_number() -> None:
    pop = at.Population(SPACE, 300, seed=2**64 - 3)
    for member in range(300):
        row = draw(pop.space.table, 2**64 - 3, member)
        assert np.array_equal([values[member] for values in pop.values.values()], row, equal_nan=True)
        assert pop.config(member) == pop.space.decode(row)


def test_values_leave_the_space_or_stand_still() -> None:
    """Twelve generations of what decides nothing but who takes over."""
    n = 4000
    pop = at.Population(SPACE, n, quantile_fraction=0.5, resample_probability=0.0, perturbation_factor=1.5)
    for generation in range(12):
        before = copied(pop)
        donor = pop.step(scores_of(n, generation))
        taking = donor != np.arange(n)
        for member in range(generation, n, 97):
            pop.space.check(pop.config(member))
        for name, step in (("layers", 1), ("width", 1), ("margin", 0.25), ("patience", 2)):
            assert (np.abs(pop.values[name] - before[name][donor])[taking] >= step).all()
        assert (np.abs(pop.values["batch_size"] - before["batch_size"][donor])[taking] == 1).all()
        assert np.array_equal(pop.values["activation"], before["activation"][donor])
        for name in ("lr", "dropout", "shift", "noise"):
            assert np.mean((pop.values[name] != before[name][donor])[taking]) > 0.9  # at a bound it may stand still
        pop.load_state_dict(pop.state_dict())  # checks every value


def test_zero_or_a_sign_is_absorbing() -> None:
    n = 2000
    pop = at.Population(
        {"zero": at.uniform(0.0, 1.0), "sign": at.uniform(-1.0, 1.0), "integer": at.randint(-3, 4)},
        n,
        quantile_fraction=0.5,
        resample_probability=0.0,
    )
    for name, start in (("zero", 0.0), ("sign", -0.3), ("integer", 0)):
        pop.values[name][:] = start
    for generation in range(40):
        pop.step(np.random.default_rng(generation).normal(size=n))
    assert (pop.values["zero"] > 0).mean() > 0.5
    assert (pop.values["sign"] > 0).mean() > 0.05
    assert {*pop.values["integer"]} == {-3, -2, -1, 0, 1, 2, 3}


def test_a_branch_is_active_without_its_parent() -> None:
    n = 3000
    pop = at.Population(SPACE, n, quantile_fraction=0.5)
    for generation in range(4):
        pop.step(scores_of(n, generation))
        sgd, adam = (pop.values["optimizer"] == branch for branch in (0, 1))
        warm = pop.values["optimizer.warmup"] == 1
        for name, on in (
            ("momentum", sgd),
            ("nesterov", sgd),
            ("beta1", adam),
            ("warmup", adam),
            ("warmup.steps", warm),
        ):
            assert np.array_equal(~np.isnan(pop.values[f"optimizer.{name}"]), on)
        assert sgd.any() and adam.any() and warm.any()


def test_an_array_is_replaced_or_has_gaps() -> None:
    pop = at.Population(SPACE, 50)
    held = dict(pop.values)
    pop.step(np.arange(50))
    pop.load_state_dict(pop.state_dict())
    assert all(pop.values[name] is values for name, values in held.items())
    assert all(values.flags.c_contiguous and values.dtype == np.float64 for values in held.values())
    assert tuple(held) == pop.space.names
    with pytest.raises(TypeError):
        pop.values["lr"] = held["lr"]  # type: ignore[index]


# Reproducible.


def run(pop: at.Population, first: int, last: int) -> list[list[int]]:
    return [pop.step(scores_of(pop.size, generation)).tolist() for generation in range(first, last)]


def test_result_depends_on_the_number_of_threads() -> None:
    pops = [at.Population(SPACE, 1001, seed=4, num_threads=threads) for threads in (1, 1, 2, 3, None)]
    donors = [run(pop, 0, 4) for pop in pops]
    assert all(other == donors[0] for other in donors)
    assert all(same(copied(pop), copied(pops[0])) for pop in pops)
    other = at.Population(SPACE, 1001, seed=5)
    assert run(other, 0, 4) != donors[0]


def test_more_threads_than_members() -> None:
    for n in (1, 2, 3):
        pops = [at.Population(SPACE, n, num_threads=threads) for threads in (1, 16)]
        assert run(pops[0], 0, 3) == run(pops[1], 0, 3) and same(copied(pops[0]), copied(pops[1]))


def test_generations_draw_the_same() -> None:
    pop = at.Population(SPACE, 200)
    donors = [pop.step(np.arange(200)).tolist() for _ in range(3)]
    assert all(one != other for one, other in pairwise(donors))


def through_numpy(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return np.load(file)


def through_torch(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save({key: torch.from_numpy(array) for key, array in state.items()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_torch_as_it_is(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [dict, through_numpy, through_torch, through_torch_as_it_is])
def test_a_restored_population_goes_on_otherwise(way: Callable[[Any], Any]) -> None:
    pop = at.Population(SPACE, 333, seed=2**64 - 9)
    run(pop, 0, 2)
    state = pop.state_dict()
    expected = run(pop, 2, 5)
    again = at.Population(SPACE, 333)
    again.load_state_dict(way(state))
    assert again.generation == 2
    assert run(again, 2, 5) == expected
    assert same(copied(again), copied(pop))


def test_a_saved_state_changes_with_the_population() -> None:
    pop = at.Population(SPACE, 100)
    state = pop.state_dict()
    lr = state["values.lr"].copy()
    pop.step(np.arange(100))
    assert np.array_equal(state["values.lr"], lr) and state["generation"] == 0
    pop.load_state_dict(state)
    state["values.lr"][:] = 1.0
    assert np.array_equal(pop.values["lr"], lr)


# Refusals.


def test_two_threads_are_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pop = at.Population(SPACE, 10)
    inside, leave = threading.Event(), threading.Event()
    best = _core.best

    def slow(*arguments: Any) -> Any:
        inside.set()
        assert leave.wait(10)
        return best(*arguments)

    monkeypatch.setattr(_core, "best", slow)
    thread = threading.Thread(target=pop.step, args=(np.arange(10),))
    thread.start()
    assert inside.wait(10)
    state = at.Population(SPACE, 10).state_dict()
    for call in (lambda: pop.step(np.arange(10)), pop.state_dict, lambda: pop.load_state_dict(state)):
        with pytest.raises(at.AsynctuneError, match="another thread is in a step of this population"):
            call()
    leave.set()
    thread.join()
    assert pop.generation == 1
    monkeypatch.undo()
    pop.step(np.arange(10))
    expected = at.Population(SPACE, 10)
    expected.step(np.arange(10))
    expected.step(np.arange(10))
    assert same(copied(pop), copied(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be an integer >= 1, got 0"),
        ({"size": 8.0}, "size must be an integer >= 1, got 8.0"),
        ({"size": True}, "size must be an integer >= 1, got True"),
        ({"size": 2**31 - 1}, "size must be an integer <= 2147483646, got 2147483647"),
        ({"mode": "up"}, "mode must be 'min' or 'max', got 'up'"),
        ({"quantile_fraction": 0.6}, "quantile_fraction must be a number in [0, 0.5], got 0.6"),
        ({"quantile_fraction": math.nan}, "quantile_fraction must be a number in [0, 0.5], got nan"),
        ({"resample_probability": -0.1}, "resample_probability must be a number in [0, 1], got -0.1"),
        ({"perturbation_factor": 1}, "perturbation_factor must be > 1 and finite, got 1"),
        ({"perturbation_factor": math.inf}, "perturbation_factor must be > 1 and finite, got inf"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"num_threads": 0}, "num_threads must be an integer >= 1, got 0"),
        ({"space": {}}, "a space must have at least one hyperparameter"),
    ],
)
def test_bad_argument_is_accepted(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(at.InvalidArgument) as caught:
        at.Population(**{"space": SPACE, "size": 8, **arguments})
    assert message in str(caught.value)


def test_good_argument_is_refused() -> None:
    numpys: dict[str, Any] = {"size": np.int32(9), "num_threads": np.int64(2), "seed": 2**70}
    pop = at.Population(at.Space(SPACE), quantile_fraction=Fraction(1, 3), **numpys)  # type: ignore[arg-type]
    assert np.count_nonzero(pop.step(range(9)) != np.arange(9)) == 3
    assert pop.config(np.argmax(pop.values["lr"])).keys() == SPACE.keys()  # type: ignore[arg-type]


class OnAnotherDevice:
    """What a CUDA tensor does when NumPy asks for its numbers."""

    def __array__(self, *arguments: Any, **more: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(7), "scores must be (8,) real numbers, got shape (7,)"),
        (np.zeros((8, 1)), "got shape (8, 1)"),
        (0.5, "got shape ()"),
        (np.zeros(8, dtype=complex), "dtype complex128"),
        (np.zeros(8, dtype=bool), "dtype bool"),
        (np.zeros(8, dtype=object), "dtype object"),
        ([None] * 8, "dtype object"),
        (["a"] * 8, "dtype <U1"),
        ([[1], [2, 3]], "scores must be an array: "),
        (torch.zeros(8, requires_grad=True), "requires grad"),
        (torch.zeros(8, dtype=torch.bfloat16), "BFloat16"),
        (OnAnotherDevice(), "Use Tensor.cpu()"),
    ],
)
def test_bad_scores_change_something(scores: Any, message: str) -> None:
    pop = at.Population(SPACE, 8)
    before = copied(pop)
    with pytest.raises(at.InvalidArgument) as caught:
        pop.step(scores)
    assert message in str(caught.value)
    assert same(copied(pop), before) and pop.generation == 0
    pop.step(np.arange(8))


def test_a_member_out_of_range_has_a_configuration() -> None:
    pop = at.Population(SPACE, 8)
    for member in (8, -1, 1.0, None):
        with pytest.raises(at.InvalidArgument, match="member must be"):
            pop.config(member)  # type: ignore[arg-type]


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state | {key: value}


def at_member(name: str, value: float) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> Any:
        state[f"values.{name}"][3] = value
        return state

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {k: v for k, v in state.items() if k != "values.lr"},
            "it lacks ['values.lr'] and has [] beside",
        ),
        (changed("values.momentum", np.zeros(8)), "it lacks [] and has ['values.momentum'] beside"),
        (
            changed("values.lr", np.full(9, 1e-3)),
            "values.lr must have shape (8,) and dtype float64, got (9,) and float64",
        ),
        (changed("values.lr", np.full(8, 1e-3, dtype=np.float32)), "got (8,) and float32"),
        (changed("values.lr", [[1], [2, 3]]), "values.lr must be an array"),
        (changed("generation", np.array(-1)), "generation must be an integer in 0..2^62 - 1"),
        (changed("generation", np.array(2**63, dtype=np.uint64)), "generation must be an integer in 0..2^62 - 1"),
        (changed("generation", np.array([1])), "generation must be an integer in"),
        (changed("seed", np.array(1.0)), "seed must be an integer in 0..2^64 - 1"),
        (
            at_member("lr", 0.2),
            "values.lr must be of loguniform(1e-05, 0.1), NaN where that is not active, got 0.2 for",
        ),
        (at_member("lr", math.nan), "got nan for member 3"),
        (at_member("noise", math.inf), "values.noise must be of normal(0.0, 2.0)"),
        (at_member("layers", 2.5), "values.layers must be of randint(1, 9)"),
        (at_member("layers", math.inf), "values.layers must be of randint(1, 9)"),
        (at_member("margin", 0.3), "values.margin must be of quniform(0.0, 1.0, 0.25)"),
        (at_member("batch_size", 4), "values.batch_size must be of ordinal([32, 64, 128, 256])"),
        (at_member("activation", -1), "values.activation must be of choice(['relu', 'tanh', 'gelu'])"),
        (at_member("optimizer", 2), "values.optimizer must be of choice("),
        (at_member("optimizer.warmup.steps", 3.5), "values.optimizer.warmup.steps must be of randint(1, 100)"),
    ],
)
def test_a_state_of_another_population_is_taken(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    pop = at.Population(SPACE, 8, seed=1)
    before = copied(pop)
    with pytest.raises(at.InvalidArgument) as caught:
        pop.load_state_dict(change(at.Population(SPACE, 8, seed=2).state_dict()))
    assert message in str(caught.value)
    assert same(copied(pop), before) and pop.generation == 0


def test_a_branch_that_is_not_active_has_a_value_in_a_state() -> None:
    pop = at.Population(SPACE, 8)
    state = pop.state_dict()
    off = np.flatnonzero(state["values.optimizer"] == 1)
    state["values.optimizer.momentum"][off] = 0.5
    with pytest.raises(at.InvalidArgument, match=r"values.optimizer.momentum must be of uniform\(0.0, 0.99\), NaN"):
        pop.load_state_dict(state)
