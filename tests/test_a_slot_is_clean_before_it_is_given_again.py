"""A slot is clean before it is given again: what one trial leaves behind, the next one never meets."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import asynctune as at
from asynctune import slots as hardware
from asynctune import tuner
from asynctune.journal import read
from asynctune.records import Failed, Record, Started
from asynctune.worker.faults import breaks_process, is_out_of_memory
from tests.proctable import marked
from tests.runs import climb, local, options

ONE = {"x": at.uniform(0.0, 1.0)}


def log(tmp_path: Path, slot: int = 0) -> str:
    return (tmp_path / "run" / f"slot-{slot}.log").read_text()


def processes(tmp_path: Path, train: Callable[[at.Trial], object], **more: Any) -> list[float | None]:
    """The process in which each of a few trials ran, one after the other: what `train` returns is its pid."""
    result = at.run(train, ONE, **options(tmp_path, **{"slots": 1, "num_trials": 3} | more))
    return [trial.value for trial in result.trials]


# What an exception says.


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "OutOfMemoryError",
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
        ),
        ("RuntimeError", "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ("RuntimeError", "HIP out of memory. Tried to allocate 2.00 GiB"),
        ("XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        ("MemoryError", ""),
        ("RuntimeError", "CUDA driver error: out of memory"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        ("RuntimeError", "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        ("OSError", "[Errno 12] Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_known_by_what_libraries_say(kind: str, text: str) -> None:
    error = MemoryError(text) if kind == "MemoryError" else type(kind, (RuntimeError,), {})(text)
    assert is_out_of_memory(error)
    assert breaks_process(error) == "it was out of memory"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
        "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error",
        "cudaErrorIllegalAddress: an illegal memory access was encountered",
        "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure",
        "HIP error: invalid device function",
    ],
)
def test_a_failed_device_is_known_by_what_libraries_say(text: str) -> None:
    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            raise ValueError("training failed") from error  # as wrapped by a training framework
    except ValueError as error:
        assert breaks_process(error) == "a device failed in it"
        assert not is_out_of_memory(error)


def test_the_kinds_that_torch_raises_today_are_known() -> None:
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(torch.OutOfMemoryError("no room"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_an_error_of_the_program_costs_no_worker() -> None:
    circle = ValueError("a")
    circle.__context__ = KeyError("cuda:0")
    circle.__context__.__context__ = circle
    for error in (circle, RuntimeError("shape mismatch"), RuntimeError("no CUDA devices")):
        assert breaks_process(error) is None


# What it costs the worker.


@local
def pid(trial: at.Trial) -> int:
    return os.getpid()


@local
def runs_out_of_memory(trial: at.Trial) -> int:
    if trial.id == 0:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    return os.getpid()


@local
def asserts_on_the_device(trial: at.Trial) -> int:
    if trial.id == 0:
        raise RuntimeError("CUDA error: device-side assert triggered")
    return os.getpid()


@local
def raises(trial: at.Trial) -> int:
    if trial.id == 0:
        raise ValueError(os.getpid())
    return os.getpid()


@local
def leaves_a_thread(trial: at.Trial) -> int:
    import threading

    threading.Thread(target=threading.Event().wait, name=f"of trial {trial.id}", daemon=True).start()
    return os.getpid()


@local
def leaves_a_child(trial: at.Trial) -> int:
    import time

    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return os.getpid()


@local
def leaves_a_dead_child(trial: at.Trial) -> int:
    if os.fork() == 0:
        os._exit(0)
    return os.getpid()


@local
def leaves_memory(trial: at.Trial) -> int:
    import sys

    kept: Any = sys.modules.setdefault("kept by the test", [])  # type: ignore[arg-type]
    kept.append(bytearray(2**29))
    return os.getpid()


@pytest.mark.parametrize(
    ("train", "cause"),
    [
        (runs_out_of_memory, "it was out of memory"),
        (asserts_on_the_device, "a device failed in it"),
    ],
)
def test_a_worker_whose_device_failed_gets_another_trial(
    tmp_path: Path, train: Callable[[at.Trial], object], cause: str
) -> None:
    first, *others = processes(tmp_path, train)
    assert first is None
    assert len(set(others)) == 1
    assert log(tmp_path).count(f"asynctune: the worker was replaced: {cause}\n") == 1


@pytest.mark.parametrize(
    ("train", "cause"),
    [
        (leaves_a_thread, "threads were left running in it: of trial 0\n"),
        (leaves_a_child, "it was left with child processes: "),
        (leaves_a_dead_child, "it was left with child processes: "),
    ],
)
def test_a_trial_meets_what_the_last_one_left_running(
    tmp_path: Path, train: Callable[[at.Trial], object], cause: str
) -> None:
    assert len(set(processes(tmp_path, train))) == 3
    assert f"asynctune: the worker was replaced: {cause}" in log(tmp_path)


def test_an_error_of_the_program_replaces_no_worker(tmp_path: Path) -> None:
    result = at.run(raises, ONE, **options(tmp_path, slots=1, num_trials=3))
    failed, *others = result.trials
    assert {f"ValueError: {trial.value:.0f}" for trial in others} == {failed.error}


def test_memory_that_grows_from_trial_to_trial_ends_with_its_process(tmp_path: Path) -> None:
    # The first trial tells what they need; the second one grows by half a gigabyte, and the third is handed to another worker.
    first, second, third, fourth = processes(tmp_path, leaves_memory, num_trials=4)
    assert first == second != third == fourth
    assert log(tmp_path).count("it has grown by ") == 1
    assert [type(r) for r in read(tmp_path / "run" / "journal.jsonl")].count(
        Started
    ) == 4  # handed over, not started twice


@local
def leaves_what_harms_nobody(trial: at.Trial) -> int:
    import subprocess
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from multiprocessing import shared_memory

    class Library(threading.Thread):
        def run(self) -> None:
            threading.Event().wait()

    Library.__module__ = "tqdm.std"  # whose monitor stays
    Library(daemon=True).start()
    memory = shared_memory.SharedMemory(create=True, size=10)  # starts the resource tracker, which stays
    memory.close()
    memory.unlink()
    ThreadPoolExecutor(1).submit(int).result()  # its thread ends with it
    subprocess.run(["true"], check=True)
    return os.getpid()


def test_what_libraries_keep_costs_a_worker(tmp_path: Path) -> None:
    assert len(set(processes(tmp_path, leaves_what_harms_nobody))) == 1
    assert "replaced" not in log(tmp_path)


def test_a_fresh_process_for_each_trial_is_shared(tmp_path: Path) -> None:
    assert len(set(processes(tmp_path, pid, slots=at.Slots(gpus_per_trial=0, count=1, fresh=True)))) == 3


@pytest.mark.parametrize("type", ["promotion", "stopping"])
def test_fresh_processes_keep_what_trials_save(tmp_path: Path, type: Any) -> None:
    scheduler = at.ASHA(max_resource=9, reduction_factor=3, type=type)
    slots = at.Slots(gpus_per_trial=0, count=2, fresh=True)
    result = at.run(climb, ONE, scheduler=scheduler, **options(tmp_path, slots=slots, num_trials=9))
    for trial in result.trials:
        assert trial.reports[-1]["score"] == pytest.approx(trial.config["x"] * trial.step)
    assert result.best.checkpoint is not None


def test_modules_to_preload_are_imported_by_the_first_trial(tmp_path: Path) -> None:
    @local
    def loaded(trial: at.Trial) -> int:
        import sys

        return "colorsys" in sys.modules

    slots = at.Slots(gpus_per_trial=0, count=1, preload=("colorsys",))
    assert processes(tmp_path, loaded, slots=slots) == [1, 1, 1]


def test_a_module_to_preload_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    slots = at.Slots(gpus_per_trial=0, count=1, preload=("nowhere.to_be_found",))
    with pytest.raises(at.RunFailed, match="No module named 'nowhere'"):
        processes(tmp_path, pid, slots=slots)


# Slots that share a GPU.


def share(monkeypatch: pytest.MonkeyPatch, *gpus: str) -> None:
    """Let there be a slot on each of these GPUs, or two where one is named twice."""
    specs = hardware.resolve(len(gpus))
    shared = [replace(spec, gpus=(gpu,)) for spec, gpu in zip(specs, gpus, strict=True)]
    monkeypatch.setattr(tuner, "resolve", lambda slots: shared)


@local
def needs_room(trial: at.Trial) -> float:
    """Trial 0 goes through only if no other has a process; `trial.dir`'s parent is where each says that it is there."""
    import time

    there = trial.dir.parent / f"{trial.id} is there"
    there.write_text(str(os.getpid()))
    for _ in range(10):
        time.sleep(0.02)
        others = [path for path in there.parent.glob("* is there") if path != there]
        if trial.id == 0 and any(os.path.exists(f"/proc/{path.read_text()}") for path in others):
            there.unlink()
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    there.unlink()
    return 1.0


def test_a_trial_that_ran_out_of_memory_is_tried_again_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(monkeypatch, "GPU-a", "GPU-a", "GPU-a")
    result = at.run(needs_room, ONE, **options(tmp_path, slots=3, num_trials=12, max_failures=5))
    failures = [record for record in read(tmp_path / "run" / "journal.jsonl") if isinstance(record, Failed)]
    assert [(failed.trial, failed.retry) for failed in failures] == [(0, True)]
    assert {trial.value for trial in result.trials} == {1.0}
    assert "asynctune: the worker was replaced: a trial needs its GPU alone" in log(tmp_path, 1) + log(tmp_path, 2)


def test_a_trial_that_once_ran_out_of_memory_clears_its_gpu_at_every_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @local
    def at_first_too_large(trial: at.Trial) -> None:
        mark = trial.dir / "again"
        if trial.id == 0 and not mark.exists():
            mark.touch()
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        trial.on_save(lambda directory: None)
        for step in trial.steps():
            trial.report(score=step * trial.config["x"])

    share(monkeypatch, "GPU-a", "GPU-a")
    scheduler = at.PBT(perturbation_interval=2, max_resource=12)
    at.run(at_first_too_large, ONE, scheduler=scheduler, **options(tmp_path, num_trials=4, max_failures=1))
    assert (log(tmp_path, 0) + log(tmp_path, 1)).count("a trial needs its GPU alone") <= 2


def test_a_trial_alone_on_its_gpu_that_runs_out_of_memory_is_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @local
    def never_enough(trial: at.Trial) -> float:
        if trial.id == 1:
            raise MemoryError
        return 1.0

    share(monkeypatch, "GPU-a", "GPU-a", "GPU-b")
    at.run(never_enough, ONE, **options(tmp_path, slots=3, num_trials=12, max_failures=5))
    failures = [record for record in read(tmp_path / "run" / "journal.jsonl") if isinstance(record, Failed)]
    assert [(failed.trial, failed.retry) for failed in failures] == [(1, True), (1, False)]


def test_two_trials_that_need_a_gpu_alone_wait_for_each_other_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @local
    def at_first_too_large(trial: at.Trial) -> float:
        mark = trial.dir / "again"
        if not mark.exists():
            mark.touch()
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return 1.0

    share(monkeypatch, "GPU-a", "GPU-a", "GPU-b", "GPU-b")
    result = at.run(at_first_too_large, ONE, **options(tmp_path, slots=4, num_trials=8, max_failures=1))
    assert {trial.value for trial in result.trials} == {1.0}


# Fifty trials.


@local
def leaves_loaders(trial: at.Trial) -> int:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.zeros(8, 2))
    loader = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True)
    for _ in range(2):
        assert sum(len(batch) for (batch,) in loader) == 8
    return os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "most"),
    [
        (leaves_memory, 2),
        (leaves_a_thread, 1),
        (leaves_a_child, 2),
        (leaves_loaders, 3),
    ],
)
def test_fifty_trials_that_leave_something_behind_fill_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[[at.Trial], object], most: int
) -> None:
    monkeypatch.setenv("TEST_FIFTY", str(tmp_path))
    before = marked(f"TEST_FIFTY={tmp_path}")
    counts, sizes, threads = [], [], []

    def look(record: Record) -> None:
        if record.kind == "finished":
            found = marked(f"TEST_FIFTY={tmp_path}") - before
            counts.append(len(found))
            status = [_status(pid) for pid in found]
            sizes.append(sum(each.get("RssAnon", 0) for each in status) // 1024)
            threads.append(max(each.get("Threads", 0) for each in status))

    slots = at.Slots(gpus_per_trial=0, count=1)
    at.run(train, ONE, callbacks=[look], **options(tmp_path, slots=slots, num_trials=50))
    assert len(counts) == 50
    print(f"{train.__name__}: processes {max(counts)}, MiB {sizes[0]} to {max(sizes)}, threads {max(threads)}")
    assert max(counts) <= most + 1  # the supervisor
    assert max(sizes) <= sizes[0] + 600
    assert max(threads) <= threads[0] + 1


def _status(pid: int) -> dict[str, int]:
    """Numbers of /proc/PID/status: RssAnon in KiB, Threads."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split(":", 1) for line in lines)
    return {name: int(text.split()[0]) for name, text in fields if name in ("RssAnon", "Threads")}
