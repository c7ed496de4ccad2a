"""Reference: the rules of ASHA and of PBT's truncation selection, written to be read. The specification of the core.

Everything is a list that is sorted anew for each question. Scores are oriented: larger is better; those that are not
finite are the worst; ties go to the earlier report.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


def rank(results: dict[int, float]) -> list[int]:
    """Trials from the best to the worst; `results` maps trials to scores in the order of arrival, and sorting is stable."""
    return sorted(results, key=lambda trial: -results[trial])


def oriented(score: float) -> float:
    return score if math.isfinite(score) else -math.inf


class ASHA:
    """Asynchronous successive halving (Li et al., MLSys 2020), both types; a trial is compared within its bracket only."""

    def __init__(
        self,
        levels: list[int],
        reduction_factor: int,
        promotion: bool,
        bracket: Callable[[int], int] = lambda trial: 0,  # of a trial; bracket j starts at rung j
    ) -> None:
        self.levels = levels
        self.eta = reduction_factor
        self.promotion = promotion
        self.bracket = bracket
        self.results: list[dict[int, float]] = [{} for _ in levels]  # by rung: trial -> score
        self.promoted: set[tuple[int, int]] = set()  # (trial, rung)
        self.offered: set[tuple[int, int]] = set()
        self.stopped: set[int] = set()
        self.ended: set[int] = set()

    def recorded(self, trial: int) -> bool:
        return any(trial in rung for rung in self.results)

    def behind(self, trial: int) -> int:
        """How many rungs the trial has behind it: those where it is recorded and those below its bracket."""
        return self.bracket(trial) + sum(trial in rung for rung in self.results)

    def goes_on(self, trial: int) -> bool:
        rung = self.behind(trial) - 1
        if trial in self.ended or trial in self.stopped or rung == len(self.levels) - 1 and self.recorded(trial):
            return False
        return not self.recorded(trial) or not self.promotion or (trial, rung) in self.promoted

    def due(self, trial: int) -> int:
        """The level that the trial is on its way to, or where it is held."""
        return self.levels[self.behind(trial) - (not self.goes_on(trial) and self.recorded(trial))]

    def report(self, trial: int, step: int, score: float) -> list[int]:
        """Record a score. Return the levels at which it now counts."""
        if trial in self.ended or trial in self.stopped:
            return []
        reached: list[int] = []
        for rung in range(self.behind(trial), len(self.levels)):
            if self.levels[rung] > step:
                break
            self.results[rung][trial] = oriented(score)
            reached.append(self.levels[rung])
            if self.promotion:
                self.promoted |= {(trial, below) for below in range(rung)}
            elif not self.among_best(trial, rung, at_least=1):
                self.stopped.add(trial)
                break
        return reached

    def among_best(self, trial: int, rung: int, at_least: int) -> bool:
        bracket = self.bracket(trial)
        results = {other: score for other, score in self.results[rung].items() if self.bracket(other) == bracket}
        best = rank(results)[: max(at_least, len(results) // self.eta)]
        return trial in best and math.isfinite(results[trial])

    def offer(self, trial: int) -> None:
        """The trial is saved: it may be promoted from here on."""
        if self.promotion and self.recorded(trial) and not self.goes_on(trial):
            self.offered.add((trial, self.behind(trial) - 1))

    def promotable(self) -> int | None:
        """Algorithm 2: from the top rung down, the best of all ever recorded, less those already promoted.

        At one rung the lowest bracket goes first.
        """
        for rung in reversed(range(len(self.levels) - 1)):
            for trial in sorted(rank(self.results[rung]), key=self.bracket):
                waits = (trial, rung) in self.offered - self.promoted and trial not in self.ended
                if waits and self.among_best(trial, rung, at_least=0):
                    return trial
        return None

    def promote(self, trial: int) -> None:
        self.promoted.add((trial, self.behind(trial) - 1))

    def finish(self, trial: int, failed: bool) -> list[int]:
        """The trial has ended. Return the levels at which it now counts as the worst: the one that it was on its way to."""
        levels = []
        if failed and self.goes_on(trial):
            rung = self.behind(trial)
            self.results[rung][trial] = -math.inf
            levels = [self.levels[rung]]
        self.ended.add(trial)
        return levels


@dataclass
class Triple:
    """What is known of a member at a depth. `step` is that of the checkpoint."""

    score: float
    checkpoint: str | None = None
    step: int = 0


@dataclass
class PBT:
    """Population-based training: truncation selection at equal depth, decided when a member's turn comes."""

    population: int
    interval: int
    max_resource: int
    quantile_fraction: float
    burn_in: int
    barrier: bool
    draw: Callable[[int, int, int], int]  # (depth, how many have gone on from there, n) -> one of 0..n-1
    triples: dict[int, dict[int, Triple]] = field(default_factory=dict)  # depth -> trial -> triple
    rows: dict[int, list[int]] = field(default_factory=dict)  # depth -> who waits there
    decided: Counter[int] = field(default_factory=Counter)  # depth -> how many have gone on from there
    gone: set[int] = field(default_factory=set)
    passed: dict[int, int] = field(default_factory=dict)  # trial -> the depth at which it was last decided on
    kept: dict[str, int] = field(default_factory=dict)  # checkpoint -> depth

    def recorded(self, trial: int) -> int:
        return max((depth for depth, triples in self.triples.items() if trial in triples), default=0)

    def undecided(self, trial: int) -> bool:
        return self.recorded(trial) > self.passed.get(trial, 0)

    def due(self, trial: int) -> int:
        """The next step at which the member is decided on."""
        depth = self.recorded(trial) if self.undecided(trial) else self.passed.get(trial, 0) + 1
        while depth * self.interval < self.burn_in:
            depth += 1
        return min(depth * self.interval, self.max_resource)

    def report(self, trial: int, step: int, score: float) -> list[int]:
        """Record a score. Return the levels at which it now counts."""
        depth = step // self.interval
        level = depth * self.interval
        if step >= self.max_resource or level < max(self.burn_in, self.interval):
            return []
        if trial in self.waiting() | self.gone or depth <= self.recorded(trial):
            return []
        self.triples.setdefault(depth, {})[trial] = Triple(oriented(score))
        return [level]

    def saved(self, trial: int, step: int, checkpoint: str | None) -> None:
        waits = self.undecided(trial) and trial not in self.waiting() | self.gone
        if checkpoint is not None:
            self.kept[checkpoint] = self.recorded(trial) if waits else 0
        if waits:
            triple = self.triples[self.recorded(trial)][trial]
            triple.checkpoint, triple.step = checkpoint, step
            self.rows.setdefault(self.recorded(trial), []).append(trial)

    def waiting(self) -> set[int]:
        return {trial for row in self.rows.values() for trial in row}

    def part(self, trial: int) -> None:
        """It waits no more; the last in the row takes its place."""
        row = self.rows[self.recorded(trial)]
        row[row.index(trial)] = row[-1]
        row.pop()

    def live(self) -> set[int]:
        return set(range(self.population)) - self.gone

    def resumable(self, warm: int | None) -> int | None:
        """One of the least trained that wait, `warm` or drawn; at a barrier only when everyone alive has arrived there."""
        waiting = self.waiting()
        if not waiting:
            return None
        depth = min(map(self.recorded, waiting))
        arrived = [self.recorded(t) if t in waiting else self.passed.get(t, 0) for t in self.live()]
        if self.barrier and min(arrived) < depth:
            return None
        row = self.rows[depth]
        return warm if warm in row else row[self.draw(depth, self.decided[depth], len(row))]

    def donors(self, trial: int) -> dict[int, Triple]:
        """From whom a waiting member takes over, each as likely; nobody: it goes on unchanged."""
        triples = self.triples[self.recorded(trial)]
        # At a barrier the results of one depth are simultaneous: ties go to the lower member.
        order = sorted(triples) if self.barrier else list(triples)
        ranks = rank({member: triples[member].score for member in order})
        n = len(ranks)
        k = min(n // 2, max(1, math.floor(self.quantile_fraction * n)))
        if trial not in ranks[n - k :]:
            return {}
        best = {member: triples[member] for member in ranks[:k]}
        return {m: t for m, t in best.items() if t.checkpoint is not None and math.isfinite(t.score)}

    def resume(self, trial: int) -> None:
        self.part(trial)
        self.passed[trial] = self.recorded(trial)
        self.decided[self.recorded(trial)] += 1

    def finish(self, trial: int) -> None:
        if trial in self.waiting():
            self.part(trial)
        self.gone.add(trial)

    def released(self) -> set[str]:
        """The checkpoints of depths that everyone alive has passed, each once."""
        floor = min((self.passed.get(trial, 0) for trial in self.live()), default=math.inf)
        released = {checkpoint for checkpoint, depth in self.kept.items() if depth <= floor}
        for checkpoint in released:
            del self.kept[checkpoint]
        return released


def truncation(scores: list[float], mode: str, quantile_fraction: float) -> tuple[list[int], list[int]]:
    """A whole generation at once: who may give, and who takes over. Ties go to the lower member."""
    sign = 1 if mode == "max" else -1
    ranks = rank({member: oriented(sign * score) for member, score in enumerate(scores)})
    n = len(ranks)
    k = min(n // 2, max(1, math.floor(quantile_fraction * n)))
    return sorted(member for member in ranks[:k] if math.isfinite(scores[member])), sorted(ranks[n - k :])
