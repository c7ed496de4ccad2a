"""The vmap example: gathering, what its arms have in common, and what it prints."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.func import functional_call, stack_module_state

import asynctune as at
from examples import vmap_population as example

Members = npt.NDArray[np.int64]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the example, which sets it itself; for the tests after these it is as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_members_do_not_carry_their_donors_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[dict[str, torch.Tensor]] = []  # of each generation, as gathered
    after: list[dict[str, torch.Tensor]] = []  # as trained
    donors: list[Members] = []
    train, step = example.train, at.Population.step

    def watched_train(weights: example.Stack, momentum: example.Stack, *rest: object) -> None:
        state = {**weights, **{f"momentum.{name}": rows for name, rows in momentum.items()}}
        before.append({name: rows.clone() for name, rows in state.items()})
        train(weights, momentum, *rest)  # type: ignore[arg-type]
        after.append({name: rows.clone() for name, rows in state.items()})

    def watched_step(population: at.Population, scores: npt.ArrayLike) -> Members:
        donors.append(step(population, scores))
        return donors[-1]

    monkeypatch.setattr(example, "train", watched_train)
    monkeypatch.setattr(at.Population, "step", watched_step)
    example.run("pbt", 0, size=16, generations=4, steps=2, device="cpu")
    assert len(donors) == 3
    for donor, trained, gathered in zip(donors, after, before[1:], strict=False):
        assert (donor != np.arange(16)).sum() == 4
        assert all(torch.equal(gathered[name], trained[name][torch.from_numpy(donor)]) for name in trained)


def test_vmap_does_not_train_as_one_member_alone_would() -> None:
    training, _, _ = example.digits(0, "cpu")
    torch.manual_seed(0)
    networks = [example.network() for _ in range(3)]
    stacked, _ = stack_module_state(networks)
    weights = {name: rows.detach().clone() for name, rows in stacked.items()}
    momentum = {name: torch.zeros_like(rows) for name, rows in weights.items()}
    values = {"lr": [0.1, 0.01, 0.5], "momentum": [0.0, 0.9, 0.5], "weight_decay": [0.1, 0.0, 0.01]}
    smoothing = [0.0, 0.3, 0.1]
    batches = torch.arange(3 * example.BATCH).view(3, -1)
    as_tensors = {name: torch.tensor(column) for name, column in (values | {"label_smoothing": smoothing}).items()}
    example.train(weights, momentum, as_tensors, training, batches)
    for member, network in enumerate(networks):
        lr, momentum_of_one, decay = (values[name][member] for name in ("lr", "momentum", "weight_decay"))
        sgd = torch.optim.SGD(network.parameters(), lr, momentum_of_one, weight_decay=decay)
        for batch in batches:
            sgd.zero_grad()
            logits = network(training.pixels[batch])
            torch.nn.functional.cross_entropy(
                logits, training.labels[batch], label_smoothing=smoothing[member]
            ).backward()
            sgd.step()
        alone = network(training.pixels)
        own = {name: rows[member] for name, rows in weights.items()}
        torch.testing.assert_close(functional_call(example.STRUCTURE, own, (training.pixels,)), alone)


def test_parts_of_the_data_overlap() -> None:
    parts = example.digits(0, "cpu")
    assert [len(part.labels) for part in parts] == [500, 500, 797]
    together = torch.cat([part.pixels for part in parts])
    assert len(together.unique(dim=0)) == len(together)


def test_arms_do_not_begin_alike() -> None:
    first = [example.run(arm, 0, size=8, generations=2, steps=2, device="cpu").scores[0] for arm in example.ARMS]
    assert first[0] == first[1] == first[2]


def test_example_prints_no_table_and_draws_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figure.png"
    small = ["--size", "32", "--generations", "3", "--steps", "2", "--seeds", "0,1", "--device", "cpu"]
    example.main([*small, "--plot", str(file)])
    printed = capsys.readouterr().out
    assert all(f"\n| {arm} | " in printed for arm in example.ARMS)
    assert "nan" not in printed
    assert file.stat().st_size > 0
