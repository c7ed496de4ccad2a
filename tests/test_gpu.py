"""What only a GPU can show: `make test-gpu`. Without one, these tests are skipped."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import asynctune as at
from asynctune.journal import read
from asynctune.records import Failed, TrialState
from asynctune.rundir import JOURNAL
from asynctune.slots import resolve, used_memory, visible_gpus
from tests.faults import wait_until
from tests.runs import local, options

GPUS = visible_gpus()
COMPLETED, FAILED = TrialState.COMPLETED, TrialState.FAILED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason="NVML finds no GPU that this process may use"),
    pytest.mark.timeout(600),
]

ONE = {"x": at.uniform(0.0, 1.0)}


def failures(tmp_path: Path) -> list[tuple[int, str, bool]]:
    records = read(tmp_path / "run" / JOURNAL)
    return [(record.trial, record.error, record.retry) for record in records if isinstance(record, Failed)]


def notes(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "run").glob("trials/*/seen.json"))]


@local
def looks(trial: at.Trial) -> float:
    """Writes down what a trial sees of the box."""
    import time

    import torch

    began = time.time()
    time.sleep(1.0)
    properties = torch.cuda.get_device_properties(0)
    total = float(torch.ones(10, device=trial.device).sum())
    seen = {
        "count": torch.cuda.device_count(),
        "uuid": f"GPU-{properties.uuid}",
        "device": trial.device,
        "sum": total,
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "began": began,
        "ended": time.time(),
    }
    (trial.dir / "seen.json").write_text(json.dumps(seen))
    return total


# Which GPU a trial has.


def test_a_trial_sees_more_than_its_own_gpu(tmp_path: Path) -> None:
    at.run(looks, ONE, **options(tmp_path, slots=at.Slots(), num_trials=2 * len(GPUS)))
    seen = notes(tmp_path)
    assert {(note["count"], note["device"], note["sum"]) for note in seen} == {(1, "cuda:0", 10.0)}
    for note in seen:
        assert note["visible"] == note["uuid"]
    by_gpu = defaultdict(list)
    for note in seen:
        by_gpu[note["uuid"]].append((note["began"], note["ended"]))
    assert set(by_gpu) == {gpu for spec in resolve(at.Slots()) for gpu in spec.gpus}
    for spans in by_gpu.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_trials_that_share_a_gpu_run_one_after_the_other(tmp_path: Path) -> None:
    slots = at.Slots(trials_per_gpu=2, count=2 * len(GPUS))
    at.run(looks, ONE, **options(tmp_path, slots=slots, num_trials=2 * len(GPUS)))
    spans = [(note["began"], note["ended"]) for note in notes(tmp_path)]
    assert max(began for began, _ in spans) < min(ended for _, ended in spans)


# What a trial does to its GPU.


@local
def takes_all(trial: at.Trial) -> float:
    import torch

    free, _ = torch.cuda.mem_get_info()
    if trial.id == 1:
        held = [torch.empty(2**30, dtype=torch.uint8, device="cuda") for _ in range(free // 2**30 + 2)]
        return float(len(held))
    return float(os.getpid())


def test_a_trial_without_enough_memory_takes_others_along(tmp_path: Path) -> None:
    result = at.run(takes_all, ONE, **options(tmp_path, slots=at.Slots(count=1), num_trials=3, max_failures=3))
    found = failures(tmp_path)
    assert [(trial, retry) for trial, _, retry in found] == [(1, True), (1, False)]
    assert all(error.startswith("OutOfMemoryError: CUDA out of memory") for _, error, _ in found)
    assert [trial.state for trial in result.trials] == [COMPLETED, FAILED, COMPLETED]
    assert result.trials[0].value != result.trials[2].value
    assert "the worker was replaced: it was out of memory" in (tmp_path / "run" / "slot-0.log").read_text()


@local
def asserts(trial: at.Trial) -> float:
    import torch

    if trial.id == 0:
        torch.zeros(10, device="cuda")[torch.tensor([100], device="cuda")]
        torch.cuda.synchronize()
    return float(torch.ones(10, device="cuda").sum())


@local
def reads_elsewhere(trial: at.Trial) -> float:
    import torch

    class Beyond:
        def __init__(self, pointer: int) -> None:
            self.__cuda_array_interface__ = {
                "shape": (2**36,),
                "typestr": "<f4",
                "data": (pointer, False),
                "version": 3,
            }

    if trial.id == 0:
        real = torch.zeros(1, device="cuda")
        torch.as_tensor(Beyond(real.data_ptr()), device="cuda")[-1].item()
    return float(torch.ones(10, device="cuda").sum())


@pytest.mark.parametrize("train", [asserts, reads_elsewhere])
def test_a_broken_context_serves_the_next_trial(tmp_path: Path, train: Any) -> None:
    result = at.run(train, ONE, **options(tmp_path, slots=at.Slots(count=1), num_trials=3))
    assert [trial.state for trial in result.trials] == [FAILED, COMPLETED, COMPLETED]
    assert [trial.value for trial in result.trials[1:]] == [10.0, 10.0]
    assert "the worker was replaced: a device failed in it" in (tmp_path / "run" / "slot-0.log").read_text()


@local
def is_killed_with_memory(trial: at.Trial) -> float:
    import torch

    free, total = torch.cuda.mem_get_info()
    (trial.dir / "free").write_text(str(free))
    if trial.id == 0:
        held = torch.ones(int(total * 0.6), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        os.kill(os.getpid(), signal.SIGKILL)
        del held
    return float(free)


def test_the_memory_of_a_killed_trial_is_missing_to_the_next(tmp_path: Path) -> None:
    gpus = resolve(at.Slots(count=1))[0].gpus
    before = used_memory(gpus)
    result = at.run(is_killed_with_memory, ONE, **options(tmp_path, slots=at.Slots(count=1), num_trials=3))
    assert [trial.state for trial in result.trials] == [FAILED, COMPLETED, COMPLETED]
    free = [int((tmp_path / "run" / "trials" / str(number) / "free").read_text()) for number in range(3)]
    assert min(free[1:]) > free[0] - 2**30
    wait_until(lambda: all(used_memory(gpus)[gpu] < before[gpu] + 2**28 for gpu in gpus))


@local
def keeps_memory(trial: at.Trial) -> float:
    import sys

    import torch

    kept: Any = sys.modules.setdefault("kept by the test", [])  # type: ignore[arg-type]
    kept.append(torch.empty(2**30, dtype=torch.uint8, device="cuda"))
    return float(torch.cuda.memory_allocated())


def test_device_memory_that_is_left_allocated_piles_up(tmp_path: Path) -> None:
    result = at.run(keeps_memory, ONE, **options(tmp_path, slots=at.Slots(count=1), num_trials=4))
    assert max(trial.value or 0.0 for trial in result.trials) < 1.5 * 2**30
    assert "of its device were left allocated" in (tmp_path / "run" / "slot-0.log").read_text()


# What goes on elsewhere.


@local
def trains(trial: at.Trial) -> None:
    """A network with dropout, whose weights' sum is what must not depend on pauses."""
    import torch

    torch.manual_seed(trial.seed)
    torch.backends.cudnn.deterministic = True
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 1)).to(trial.device)
    optimizer = torch.optim.SGD(net.parameters(), trial.config["x"] * 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    trial.track(net=net, optimizer=optimizer, scheduler=scheduler)
    for _ in trial.steps(9):
        optimizer.zero_grad()
        net(torch.randn(16, 32, device=trial.device)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        trial.report(score=float(sum(parameter.double().sum() for parameter in net.parameters())))


def test_a_trial_that_paused_on_a_gpu_ends_elsewhere(tmp_path: Path) -> None:
    slots = at.Slots(count=1, fresh=True)
    straight = at.run(trains, ONE, **options(tmp_path / "straight", slots=slots, num_trials=9))
    scheduler = at.ASHA(max_resource=9, reduction_factor=3, type="promotion")
    paused = at.run(trains, ONE, scheduler=scheduler, **options(tmp_path / "paused", slots=slots, num_trials=9))
    assert any(trial.step == 9 for trial in paused.trials)
    for one, other in zip(straight.trials, paused.trials, strict=True):
        assert [report["score"] for report in other.reports] == [report["score"] for report in one.reports][
            : other.step
        ]


def test_an_exploit_does_not_move_weights_between_gpus(tmp_path: Path) -> None:
    scheduler = at.PBT(perturbation_interval=3, max_resource=9)
    slots = at.Slots(trials_per_gpu=max(1, 4 // len(GPUS)))
    result = at.run(trains, ONE, scheduler=scheduler, **options(tmp_path, slots=slots, num_trials=8))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 8
    assert any(len(trial.lineage) > 1 for trial in result.trials)


# The comparison of docs/gan.md, at full size: 32x32 images.


def test_the_four_methods_do_not_run_on_gpus(tmp_path: Path) -> None:
    folder = os.environ.get("ASYNCTUNE_MNIST")
    if folder is None:
        pytest.skip("ASYNCTUNE_MNIST must name the folder of MNIST's four idx gzip files")
    script = Path(__file__).parent.parent / "examples" / "gan" / "compare.py"
    options = ["--data", "mnist", "--data-dir", folder, "--runs", "8", "--steps", "60", "--trials-per-gpu", "4"]
    subprocess.run([sys.executable, script, "--out", tmp_path, *options], check=True, timeout=600)
    table = (tmp_path / "table.md").read_text()
    for arm in ("random", "hyperopt", "asha", "pbt"):
        runs = json.loads((tmp_path / f"{arm}-0.json").read_text())["runs"]
        assert [run["error"] for run in runs] == [None] * 8
        assert arm in table


@local
def trains_in_ranks(trial: at.Trial) -> None:
    import torch
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(trial.seed)
    model = DistributedDataParallel(torch.nn.Linear(8, 1).to(trial.device))
    trial.track(model=model.module)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in trial.steps(9):
        optimizer.zero_grad()
        model(torch.full((4, 8), float(dist.get_rank()), device=trial.device)).square().mean().backward()
        optimizer.step()
        weights = [torch.empty_like(model.module.weight) for _ in range(dist.get_world_size())]
        dist.all_gather(weights, model.module.weight.detach())
        assert all(torch.equal(each, weights[0]) for each in weights)
        trial.report(score=float(model.module.weight.sum()) * trial.config["x"])


@pytest.mark.skipif(len(GPUS) < 2, reason="needs two GPUs")
def test_ranks_of_a_trial_do_not_train_one_model(tmp_path: Path) -> None:
    import asynctune.torch

    train = asynctune.torch.distributed(trains_in_ranks)
    scheduler = at.ASHA(max_resource=9, reduction_factor=3, type="promotion")
    slots = at.Slots(gpus_per_trial=2)
    result = at.run(train, ONE, scheduler=scheduler, **options(tmp_path, slots=slots, num_trials=9))
    assert {trial.state for trial in result.trials} <= {COMPLETED, TrialState.STOPPED}
