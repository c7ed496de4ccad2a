"""Trials of several ranks, on CPUs over gloo: real processes, trained with DistributedDataParallel."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asynctune as at
from asynctune.errors import InvalidArgument
from asynctune.records import TrialState
from asynctune.torch import distributed
from tests.proctable import marked
from tests.runs import local, options

pytestmark = pytest.mark.timeout(400)  # each rank imports torch

SPACE: dict[str, Any] = {"lr": at.uniform(0.01, 0.1), "momentum": at.uniform(0.1, 0.9)}
COMPLETED, STOPPED, FAILED = TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED


def run(tmp_path: Path, train: Callable[[at.Trial], object], **more: Any) -> at.Result:
    result = at.run(train, SPACE, **options(tmp_path, **more))
    assert marked(f"ASYNCTUNE_TEST={tmp_path}") == set()
    return result


@pytest.fixture(autouse=True)
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests start carries a marker; this process does not, since its environment was made before."""
    monkeypatch.setenv("ASYNCTUNE_TEST", str(tmp_path))


@local
def regression(trial: at.Trial) -> None:
    """Learns to add three numbers, in every rank from others; each rank notes what it sees."""
    import torch
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from tests.proctable import listening

    rank = dist.get_rank()
    torch.manual_seed(rank)  # so that they agree on the weights only since DDP sees to it
    linear = torch.nn.Linear(3, 1, bias=False).to(trial.device)
    optimizer = torch.optim.SGD(linear.parameters(), lr=trial.config["lr"], momentum=trial.config["momentum"])
    trial.track(linear=linear, optimizer=optimizer)
    model = DistributedDataParallel(linear)
    notes = (trial.dir / f"rank-{rank}").open("a", buffering=1)
    notes.write(
        json.dumps(
            {
                "begin": trial.step,
                "restored": trial.restored and trial.restored.name,
                "weights": linear.weight.tolist(),
                "momentum": [optimizer.state[p]["momentum_buffer"].tolist() for p in optimizer.state],
                "trial": [trial.id, trial.seed, trial.config, trial.device],
                "world": [os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "RANK", "MASTER_ADDR")],
                "listening": listening([os.getpid()]),
            }
        )
        + "\n"
    )

    def batch(rank: int, step: int) -> torch.Tensor:
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(100 * step + rank))

    for step in trial.steps():
        optimizer.zero_grad()
        x = batch(rank, step)
        loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
        loss.backward()
        mean = [
            2 * (y @ linear.weight.T - y.sum(1, keepdim=True)).T @ y / len(y) for y in (batch(0, step), batch(1, step))
        ]
        averaged = torch.allclose(linear.weight.grad, (mean[0] + mean[1]) / 2, rtol=1e-4)  # type: ignore[arg-type]
        optimizer.step()
        notes.write(json.dumps({"step": step, "weights": linear.weight.tolist(), "averaged": averaged}) + "\n")
        trial.report(score=-loss.item())


def notes(tmp_path: Path, trial: int) -> list[list[dict[str, Any]]]:
    """What each rank of a trial noted."""
    paths = [tmp_path / "run" / "trials" / str(trial) / f"rank-{rank}" for rank in range(2)]
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


in_two = distributed(regression, processes=2)


@pytest.mark.slow
def test_ranks_do_not_train_as_one(tmp_path: Path) -> None:
    scheduler = at.ASHA(max_resource=9, reduction_factor=3)
    result = run(tmp_path, in_two, scheduler=scheduler, num_trials=3, slots=2)
    assert {trial.state for trial in result.trials} == {COMPLETED, STOPPED}
    for trial in result.trials:
        (begin, *steps), (other_begin, *other_steps) = notes(tmp_path, trial.id)
        # Of one trial, in one place each, and nowhere to be reached from outside.
        assert begin["trial"] == other_begin["trial"] == [trial.id, begin["trial"][1], trial.config, "cpu"]
        assert begin["world"] == ["2", "0", "0", "127.0.0.1"]
        assert other_begin["world"] == ["2", "1", "1", "127.0.0.1"]
        sockets = begin["listening"] + other_begin["listening"]
        assert len(sockets) == 3  # the store's, and gloo's of both
        assert all(line.split()[2].startswith("0100007F:") for line in sockets), sockets
        # All see the end of the trial after the same step, and the same weights after each.
        assert [note["step"] for note in steps] == [report["step"] for report in trial.reports]
        assert steps == other_steps
        assert all(note["averaged"] for note in steps)


@local
def failing(trial: at.Trial) -> None:
    import torch
    from torch import distributed as dist

    rank = dist.get_rank()
    for step in trial.steps(2):
        if step == 2:
            if trial.id == 0 and rank == 1:
                raise ValueError("of rank 1 alone")
            if trial.id == 1 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))
        trial.report(score=1.0)


@local
def tidy(trial: at.Trial) -> object:
    """The same, in a worker that is to be after each trial as it was before the first."""
    import sys
    import threading

    import torch

    from tests.proctable import family, listening

    here = os.getpid()
    threads = (threading.enumerate(), torch.get_num_threads())
    state = [family(here), listening([here]), dict(os.environ), threads, sys.excepthook]
    states.append(state)
    assert state == states[0]
    return 0.5 if trial.id == 3 else failing_in_two(trial)


states: list[Any] = []
failing_in_two = distributed(failing, processes=2)


def test_the_failure_of_a_rank_is_lost_or_passes_for_rank_0s(tmp_path: Path) -> None:
    result = run(tmp_path, tidy, num_trials=4, slots=1)
    raised, killed, whole, alone = result.trials
    assert raised.error == "RankFailed: rank 1: ValueError: of rank 1 alone"
    assert "in failing" in raised.traceback
    assert "Connection closed" not in raised.traceback
    assert killed.error == "RankFailed: rank 1: killed by SIGKILL"
    assert (whole.error, alone.error) == (None, None)  # in the same worker
    assert len(raised.reports) == len(killed.reports) == 1


@local
def odd(trial: at.Trial) -> object:
    """What two ranks may do that they should not, or need not, by the trial's number."""
    import torch
    from torch import distributed as dist

    rank = dist.get_rank()
    match trial.id:
        case 0:
            raise ValueError("of both")
        case 1:
            if rank == 0:
                raise RuntimeError("of rank 0, for which the other waits")
            dist.all_reduce(torch.ones(1))
        case 2:
            for step in trial.steps(3):
                if step == 2 and rank == 0:
                    break
                trial.report(score=1.0)
        case 3:
            if rank == 0:
                trial.report(score=1.0)
            for _ in trial.steps(2):
                pass
        case 4:
            for _ in range(3):
                trial.report(score=1.0)
        case 5:
            dist.all_reduce(torch.ones(1))
            if rank == 1:
                dist.destroy_process_group()  # as scripts for torchrun do
            return 0.5
        case 6:
            if rank == 1:
                raise ValueError("of rank 1, and rank 0 does not come back")
            time.sleep(600)
    return None


@pytest.mark.slow
def test_ranks_that_go_ways_of_their_own_hang_or_hide_why(tmp_path: Path) -> None:
    result = run(tmp_path, distributed(odd, processes=2), num_trials=7, slots=1)
    assert [trial.error for trial in result.trials] == [
        "ValueError: of both",
        "RuntimeError: of rank 0, for which the other waits",
        None,
        "RankFailed: rank 1: InvalidArgument: all ranks must take the same steps and make the same reports, but this one is at step 1, rank 0 at 0",
        None,
        None,
        "RankFailed: rank 1: ValueError: of rank 1, and rank 0 does not come back",
    ]
    assert [len(trial.reports) for trial in result.trials] == [0, 0, 1, 1, 3, 1, 0]
    assert "in odd" in result.trials[6].traceback


@local
def one_ends(trial: at.Trial) -> None:
    """Rank 1 fails, or rank 0 is killed; rank 2 takes no notice."""
    import torch
    from torch import distributed as dist

    match dist.get_rank(), trial.id:
        case 1, 0:
            raise ValueError("of rank 1")
        case 0, 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case 2, _:
            time.sleep(600)
    dist.all_reduce(torch.ones(1))


@pytest.mark.slow
def test_a_rank_that_hangs_outlives_the_others(tmp_path: Path) -> None:
    with pytest.raises(
        at.RunFailed, match="every trial failed, the first with RankFailed: rank 1: ValueError: of rank 1"
    ):
        run(tmp_path, distributed(one_ends, processes=3), num_trials=2, slots=1)
    assert marked(f"ASYNCTUNE_TEST={tmp_path}") == set()
    second = at.Result.load(tmp_path / "run").trials[1]
    assert second.error == "WorkerDied: killed by SIGKILL that asynctune did not send (out of memory?)"


@pytest.mark.slow
def test_a_member_of_pbt_does_not_go_on_in_all_ranks_from_its_donor(tmp_path: Path) -> None:
    scheduler = at.PBT(perturbation_interval=2, max_resource=6)
    result = run(tmp_path, in_two, scheduler=scheduler, num_trials=2, slots=2)
    assert [trial.state for trial in result.trials] == [COMPLETED, COMPLETED]
    weights = {}  # after each step of a segment, by the name that its checkpoint would have
    begun = []
    for trial in (0, 1):
        segment = -1
        mine, other = notes(tmp_path, trial)
        for note, other_note in zip(mine, other, strict=True):
            if "begin" in note:
                segment += 1
                if note["restored"]:
                    assert note["momentum"] == other_note["momentum"] != []
                    begun.append((note["restored"], note["weights"], other_note["weights"]))
            else:
                assert note == other_note
                weights[f"{trial}-{segment}-{note['step']}"] = note["weights"]
    assert begun
    for name, ours, theirs in begun:
        assert ours == theirs == weights[name]


def test_what_cannot_be_distributed_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="train must be a function of one argument, the trial, got 3"):
        distributed(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="processes must be an integer >= 1, got 0"):
        distributed(failing, processes=0)
    with pytest.raises(InvalidArgument, match="backend must be the name of one, such as 'gloo', got 3"):
        distributed(failing, backend=3)  # type: ignore[arg-type]
    with pytest.raises(at.RunFailed, match="a distributed trial needs a worker, and slots='inline' has none"):
        at.run(distributed(failing, 2), SPACE, **options(tmp_path, slots="inline", num_trials=1))
    with pytest.raises(
        at.RunFailed, match=r"processes must be given where a trial has no GPUs, as in distributed\(train"
    ):
        at.run(distributed(failing), SPACE, **options(tmp_path, slots=1, num_trials=1, run_dir=tmp_path / "second"))
