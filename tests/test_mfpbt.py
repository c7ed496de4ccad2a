"""MF-PBT: who takes over what from whom is what the paper says, and nobody moves ahead or back."""

import math
import random
from collections import defaultdict
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune._core import SAMPLE, Stream
from asynctune.errors import InvalidArgument
from asynctune.records import Finished, Reported, Saved, Started, Suggested
from asynctune.space import Rows
from asynctune.study import Release, Suggest

SPACE = {"x": at.uniform(0.0, 1.0), "kind": at.choice(["a", {"depth": at.randint(1, 9)}])}


class Noise:
    """Steps whose scores are drawn; some fail."""

    space = SPACE
    metric = "score"
    mode: Literal["max"] = "max"

    def __init__(self, max_resource: int, failures: float, levels: int) -> None:
        self.max_resource = max_resource
        self._failures = failures
        self._levels = levels

    def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[float, float, float]:
        draws = random.Random(seed)
        if draws.random() < self._failures:
            raise RuntimeError("drawn")
        score = math.inf if draws.random() < 0.05 else float(draws.randrange(self._levels))
        return (state or 0.0) + 1.0, score, draws.choice([1.0, 2.0, 9.0])


Plan = tuple[
    set[int], str | int
]  # from whom it may take over, and whose hyperparameters it takes: "perturbed", or a member


def evolve(scores: dict[int, float], depth: int, frequencies: tuple[int, ...], fraction: float) -> dict[int, Plan]:
    """What the authors' code does with scores at one depth, written anew with k for a quarter: sub-population i % S evolves if its frequency divides."""
    worst = {member: score if math.isfinite(score) else -math.inf for member, score in scores.items()}
    ranking = sorted(worst, key=lambda member: (-worst[member], member))
    plans: dict[int, Plan] = {}
    for place, frequency in enumerate(frequencies):
        if depth % frequency != 0:
            continue
        own = [member for member in ranking if member % len(frequencies) == place]
        k = min(len(own) // 2, max(1, int(fraction * len(own))))
        best = {member for member in own[:k] if math.isfinite(worst[member])}
        if best:
            for member in own[len(own) - k :]:
                plans[member] = best, "perturbed"
        external = [m for m in ranking if m % len(frequencies) != place and math.isfinite(worst[m])]
        for member in own[max(k, len(own) - 2 * k) : len(own) - k]:
            if external and ranking.index(external[0]) < ranking.index(member):
                migrant = external.pop(0)
                plans[member] = {migrant}, migrant if migrant % len(frequencies) > place else own[0]
    return plans


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    population=st.integers(3, 40),
    slots=st.integers(1, 14),
    frequencies=st.sampled_from([(1,), (1, 2), (1, 3), (2, 3), (1, 2, 4)]),
    fraction=st.sampled_from([0.0, 0.25, 0.5]),
    failures=st.sampled_from([0.0, 0.03]),
    levels=st.sampled_from([2, 1000]),
)
def test_a_member_takes_over_from_another_than_the_papers(
    seed: int,
    population: int,
    slots: int,
    frequencies: tuple[int, ...],
    fraction: float,
    failures: float,
    levels: int,
) -> None:
    interval, max_resource = 2, 14
    scheduler = at.MFPBT(interval, max_resource, frequencies, quantile_fraction=fraction)
    benchmark = Noise(max_resource, failures, levels)
    try:
        result = at.simulate(benchmark, scheduler=scheduler, num_trials=population, num_slots=slots, seed=seed)
    except at.RunFailed:
        return
    configs: dict[int, dict[str, Any]] = {}
    scores: defaultdict[int, dict[int, float]] = defaultdict(dict)  # depth -> member -> score
    trained: defaultdict[int, dict[int, dict[str, Any]]] = defaultdict(dict)  # with which configuration it got there
    taken: defaultdict[int, dict[int, Started]] = defaultdict(dict)
    for record in result.events():
        if isinstance(record, Suggested):
            configs[record.trial] = record.config
        elif isinstance(record, Reported) and record.step % interval == 0 and record.step < max_resource:
            scores[record.step // interval][record.trial] = record.metrics["score"]
            trained[record.step // interval][record.trial] = configs[record.trial]
        elif isinstance(record, Started) and record.config is not None:
            assert record.step % interval == 0
            taken[record.step // interval][record.trial] = record
            configs[record.trial] = record.config
    for depth, known in scores.items():
        gone = {trial for trial, result_ in enumerate(result.trials) if result_.step == depth * interval} - known.keys()
        assert not gone
        plans = evolve(known, depth, frequencies, fraction)
        # A recipient may fail, or the run end, only before it goes on.
        assert taken[depth].keys() == plans.keys()
        for member, (donors, whose) in plans.items():
            start = taken[depth][member]
            assert start.donor in donors
            assert start.config is not None
            at.Space(SPACE).check(start.config)
            if isinstance(whose, int):
                assert start.config == trained[depth][whose]
    if failures == 0.0:
        assert [trial.step for trial in result.trials] == [max_resource] * population
        assert sum(1 for record in result.events() if isinstance(record, Reported)) == population * max_resource


@settings(deadline=None)
@given(
    scores=st.lists(st.sampled_from([*range(12), math.nan]), min_size=4, max_size=40),
    ahead=st.lists(
        st.integers(-8, 8), min_size=3, max_size=3
    ),  # by how much the members of a sub-population are better
    frequencies=st.sampled_from([(1,), (1, 2), (1, 2, 3)]),
    fraction=st.sampled_from([0.25, 0.34, 0.5]),
)
def test_a_member_behind_one_that_keeps_its_weights_keeps_its_own(
    scores: list[float], ahead: list[int], frequencies: tuple[int, ...], fraction: float
) -> None:
    space = at.Space(SPACE)
    rows = Rows(len(space.names))
    for trial in range(len(scores)):
        rows.append(space.table.sample(Stream(1, SAMPLE, trial)))
    bound = at.MFPBT(1, 5, frequencies, fraction).bind(num_trials=len(scores), space=space, rows=rows)
    known = {trial: score + ahead[trial % len(frequencies)] for trial, score in enumerate(scores)}
    for trial, score in known.items():
        bound.begin(trial)
        assert bound.report(trial, 1, score).action is at.Action.PAUSE
        bound.saved(trial, 1, f"{trial}-0-1")
    taken = {}
    while (resumption := bound.resumable()) is not None:
        if resumption.donor is not None:
            taken[resumption.trial] = resumption.donor
        bound.resume(resumption)
    plans = evolve(known, 1, frequencies, fraction)
    assert taken.keys() == plans.keys()
    assert all(taken[trial] in donors for trial, (donors, _) in plans.items())


def test_the_number_of_slots_changes_who_takes_over() -> None:
    lineages = []
    for slots in (1, 3, 16):
        result = at.simulate(
            Noise(12, 0.0, 1000),
            scheduler=at.MFPBT(1, 12, (1, 2, 4)),
            num_trials=16,
            num_slots=slots,
            seed=7,
        )
        lineages.append([trial.lineage for trial in result.trials])
    assert lineages[0] == lineages[1] == lineages[2]
    assert {segment.donor for lineage in lineages[0] for segment in lineage} > {None}


def test_a_checkpoint_that_nobody_needs_any_more_is_kept() -> None:
    population = 12
    study = at.Study(SPACE, metric="score", mode="max", num_trials=population, scheduler=at.MFPBT(1, 9, (1, 2)), seed=1)
    kept: set[str] = set()
    draws = random.Random(5)
    most = 0

    def happen(record: Any) -> None:
        due = [record]
        for each in due:
            for effect in study.apply(each):
                if isinstance(effect, Release):
                    kept.discard(effect.checkpoint)
                elif not isinstance(effect, tuple):
                    due.append(effect)

    while not study.done:
        offer = study.offer()
        if isinstance(offer, Suggest):
            trial = len(study)
            happen(Suggested(trial=trial, config=study.space.decode(study.suggestion(trial)())))
            continue
        assert isinstance(offer, Started)
        happen(offer)
        trial = offer.trial
        for step in range(offer.step + 1, 10):
            happen(Reported(trial=trial, segment=offer.segment, step=step, metrics={"score": draws.random()}))
            if study.told(trial) is not at.Action.CONTINUE:
                break
        if study.told(trial) is at.Action.PAUSE:
            name = f"{trial}-{offer.segment}-{step}"
            kept.add(name)
            happen(Saved(trial=trial, segment=offer.segment, step=step, checkpoint=name))
        else:
            happen(Finished(trial=trial, state=study.final_state(trial)))
        most = max(most, len(kept))
    assert population <= most <= 2 * population + 2
    assert all(name.startswith(f"{study.best}-") for name in kept)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"frequencies": ()}, r"frequencies must be a sequence of integers, got \(\)"),
        ({"frequencies": 3}, "frequencies must be a sequence of integers, got 3"),
        ({"frequencies": (0, 2)}, "frequencies, which increase, must be an integer >= 1, got 0"),
        ({"frequencies": (2, 2)}, "frequencies, which increase, must be an integer >= 3, got 2"),
        ({"frequencies": (1, 2.5)}, "frequencies, which increase, must be an integer >= 2, got 2.5"),
        ({"frequencies": (1, 10)}, "frequencies must be <= 9, the intervals before max_resource, got 10"),
        ({"perturbation_interval": 0}, "perturbation_interval must be an integer >= 1, got 0"),
        ({"quantile_fraction": 0.6}, "quantile_fraction must be"),
        ({"perturbation_factor": 1.0}, "perturbation_factor must be > 1"),
    ],
)
def test_a_bad_argument_is_taken(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        defaults: dict[str, Any] = {"perturbation_interval": 1, "max_resource": 10, "frequencies": (1, 2)}
        at.MFPBT(**defaults | arguments)


def test_a_population_smaller_than_its_parts_is_taken() -> None:
    with pytest.raises(InvalidArgument, match="num_trials must be >= 3, the number of sub-populations, got 2"):
        at.Study(SPACE, metric="score", mode="max", num_trials=2, scheduler=at.MFPBT(1, 9, (1, 2, 3)))
