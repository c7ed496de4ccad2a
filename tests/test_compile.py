"""torch.compile in a worker that runs trial after trial."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asynctune as at
from tests.proctable import marked
from tests.runs import local, options

SPACE: dict[str, Any] = {"lr": at.uniform(0.01, 0.1)}


def results(tmp_path: Path, train: Callable[[at.Trial], object], **more: Any) -> list[Any]:
    result = at.run(train, SPACE, **options(tmp_path, slots=1, **more))
    return [trial.error or trial.reports[-1]["score"] for trial in result.trials]


@local
def deeper(trial: at.Trial) -> int:
    """Compiles a model that no trial before had; the result is how often the compiler was asked."""
    import torch
    from torch import nn

    graphs = []

    def backend(graph: Any, inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(1 + trial.id))

        def forward(self, x: Any) -> Any:  # of all trials, one code object, to which the compiler's limit applies
            for layer in self.layers:
                x = layer(x)
            return x

    torch.compile(Net(), backend=backend)(torch.ones(2, 4))
    return len(graphs)


def test_compilation_ends_with_the_ninth_model(tmp_path: Path) -> None:
    assert results(tmp_path, deeper, num_trials=10) == [1] * 10


@local
def compiled(trial: at.Trial) -> float:
    """Trains a model once as it is and once compiled; the result is how far apart they end."""
    import copy

    import torch
    from torch import nn
    from torch._inductor.async_compile import AsyncCompile

    from tests.proctable import family

    AsyncCompile.warm_pool()  # as with a GPU, where Triton compiles in processes of its own
    torch.manual_seed(trial.seed)
    width = 8 * (1 + trial.id % 2)
    plain = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 1))
    models: list[Any] = [plain, torch.compile(copy.deepcopy(plain))]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=trial.config["lr"])
        for step in range(3):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    others = family(os.getpid()) - {os.getpid()}
    commands = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in others]
    assert [command[1].partition("/site-packages/")[2] for command in commands] == [
        "torch/_inductor/compile_worker/__main__.py"
    ]
    parameters = zip(*(model.parameters() for model in models), strict=True)
    return max(float((one - other).abs().max()) for one, other in parameters)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler for CPUs"
)
def test_what_is_compiled_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ASYNCTUNE_TEST", str(tmp_path))
    differences = results(tmp_path, compiled, num_trials=4)
    assert all(difference < 1e-5 for difference in differences), differences
    assert any((tmp_path / "cache").iterdir())
    assert marked(f"ASYNCTUNE_TEST={tmp_path}") == set()
