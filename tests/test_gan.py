"""The GAN example: its networks, its score, and what it tells of a comparison."""

import dataclasses
import gzip
import math
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "gan"
sys.path.insert(0, str(EXAMPLE))

import asynctune as at
import compare
import data
import model
import outcome
import pictures
import score
import table
from bare import BareTrial
from outcome import Outcome, Run, Setting

GOOD = {"netG_lr": 2e-3, "netD_lr": 2e-3, "beta1": 0.3}
SETTING = Setting("digits", "uniform", runs=3, steps=300, slots=2, untrained=2.0, real=10.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are quicker on one, and far quicker where other processes want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("cache"))
    score.bench("digits", None, folder)
    return folder


@pytest.fixture
def plan(cache: str) -> compare.Plan:
    return compare.Plan("digits", None, cache, steps=8)


@pytest.mark.parametrize(("size", "nz"), [(8, 32), (32, 100)])
def test_networks_do_not_fit_their_images(size: int, nz: int) -> None:
    images = model.generator(size)(torch.randn(3, nz, 1, 1))
    assert images.shape == (3, 1, size, size)
    assert images.abs().max() <= 1
    verdicts = model.discriminator(size)(images)
    assert verdicts.shape == (3, 1, 1, 1)
    assert ((verdicts >= 0) & (verdicts <= 1)).all()


@pytest.mark.parametrize("size", [8, 32])
def test_initial_weights_are_not_those_of_dcgan(size: int) -> None:
    for net in (model.generator(size), model.discriminator(size)):
        for layer in net:
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                assert layer.bias is None
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.eye(10).repeat(3, 1), 10.0),  # sure of each, and all classes alike
        (torch.eye(10)[[4] * 30], 1.0),  # sure, but always of the same
        (torch.full((30, 10), 0.1), 1.0),  # never sure
        (torch.eye(10)[[1, 7] * 15], 2.0),
        (torch.tensor([[0.8, 0.2], [0.2, 0.8]]), math.exp(0.8 * math.log(1.6) + 0.2 * math.log(0.4))),
    ],
)
def test_inception_score_is_not_the_formulas(rows: torch.Tensor, expected: float) -> None:
    assert score.inception_score(rows) == pytest.approx(expected, rel=1e-6)


def test_real_digits_score_no_better_than_noise(cache: str) -> None:
    bench = score.bench("digits", None, cache)
    assert 9.7 < bench.score_images(bench.images[: score.IMAGES]) < 10
    torch.manual_seed(0)
    assert 1 < bench.score(model.generator(8)) < 3


def test_score_of_one_generator_changes(cache: str) -> None:
    bench = score.bench("digits", None, cache)
    generator = model.generator(8)
    assert bench.score(generator) == bench.score(generator)


def test_classifier_is_trained_again_by_the_next_process(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [file.name for file in Path(cache).iterdir()] == ["digits.pt"]  # complete or not there at all
    monkeypatch.setattr(data, "read", lambda *arguments: pytest.fail("the sources were read again"))
    score.bench.cache_clear()  # as in a new process
    score.bench("digits", None, cache)


def test_mnist_is_read_upside_down(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        pixels = bytes([0] * 14 * 28 + [255] * 14 * 28) * 2  # dark above, bright below
        header = struct.pack(">IIII", 0x803, 2, 28, 28)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels))
        labels = struct.pack(">II", 0x801, 2) + bytes([3, 9])
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    images, labels_read, *_ = data.read("mnist", str(tmp_path))
    assert images.shape == (2, 1, 32, 32)
    assert images[:, :, :15].unique().tolist() == [-1]
    assert images[:, :, 17:].unique().tolist() == [1]
    assert labels_read.tolist() == [3, 9]


def test_mnist_without_a_folder_is_a_riddle() -> None:
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        data.read("mnist")


class RestartedTrial(BareTrial):
    """A trial that is paused after `until`, and goes on in another process."""

    def __init__(self, until: int, state: dict[str, Any] | None = None, done: int = 0) -> None:
        super().__init__(GOOD, stop=until, seed=5)
        self._state = state
        self._done = done

    def track(self, **objects: Any) -> None:
        self.objects = objects
        for name, thing in objects.items() if self._state else ():
            assert self._state is not None
            thing.load_state_dict(self._state[name])

    def steps(self, stop: int) -> Any:
        return (step for step in super().steps(stop) if step > self._done)


def test_resumed_run_goes_another_way(plan: compare.Plan) -> None:
    straight = RestartedTrial(until=6)
    compare.train(straight, plan)  # type: ignore[arg-type]
    first = RestartedTrial(until=3)
    compare.train(first, plan)  # type: ignore[arg-type]
    state = {name: thing.state_dict() for name, thing in first.objects.items()}
    torch.manual_seed(99)
    second = RestartedTrial(until=6, state=state, done=3)
    compare.train(second, plan)  # type: ignore[arg-type]
    assert first.reports + second.reports == straight.reports


def test_seed_makes_no_difference(plan: compare.Plan) -> None:
    trials = [BareTrial(GOOD, stop=2, seed=seed) for seed in (1, 1, 2)]
    for trial in trials:
        compare.train(trial, plan)  # type: ignore[arg-type]
    assert trials[0].reports == trials[1].reports != trials[2].reports


def test_good_learning_rates_learn_nothing(cache: str) -> None:
    trial = BareTrial(GOOD, stop=25)
    compare.train(trial, compare.Plan("digits", None, cache, steps=300))  # type: ignore[arg-type]
    assert [report["step"] for report in trial.reports] == [5, 10, 15, 20, 25]
    assert max(report["score"] for report in trial.reports) > 4


def test_full_run_is_not_the_articles() -> None:
    methods = compare.methods(300)
    assert compare.Plan("digits", None, "", 300).every == 5
    assert methods["pbt"]["scheduler"].perturbation_interval == 25
    assert methods["asha"]["scheduler"].min_resource == 10
    for steps in (2, 7, 20):  # short ones are possible too
        compare.methods(steps)


@pytest.mark.parametrize("scale", ["uniform", "log"])
def test_search_space_of_another_experiment(scale: str) -> None:
    space = at.Space(compare.search_space(scale))
    assert set(space.names) == {"netG_lr", "netD_lr", "beta1"}
    for rate in (1e-5, 1e-2):
        space.check({"netG_lr": rate, "netD_lr": rate, "beta1": 0.5})


def run(final: float, steps: int = 300, busy: float = 1.0, outside: int = 0) -> Run:
    config = {"netG_lr": 1e-3, "netD_lr": 2e-3, "beta1": 0.5}
    moved = {"netG_lr": 2e-3, "netD_lr": 2e-3, "beta1": 0.3}
    return Run([5, steps], [2.0, final], [(0, config), (5, moved)], steps, outside, busy, None)


def arm(*runs: Run, name: str = "pbt", seed: int = 0, bare: float | None = None) -> Outcome:
    return Outcome(SETTING, name, seed, wall=2.1, runs=list(runs), bare=bare)


def test_flat_run_is_not_told_apart() -> None:
    assert arm(run(2.79), run(2.8), run(math.nan)).flat == 2


def test_failed_run_has_no_score() -> None:
    assert Run([], [], [(0, GOOD)], 0, 0, 0.0, "ValueError").final == 1.0


def test_makespan_is_not_that_of_greedy_slots() -> None:
    assert outcome.makespan([3, 1, 1, 2], slots=2) == 4  # 3 | 1 1 2
    assert outcome.makespan([1, 1, 2, 3], slots=2) == 4  # 1 2 | 1 3
    assert outcome.makespan([5, 1], slots=4) == 5


def test_donors_training_is_counted_as_a_runs_own() -> None:
    """Trial 1 trains to 25, takes over a donor's weights of step 50, and trains to 75: 50 steps of its own."""
    inside = {"netG_lr": 1e-3, "netD_lr": 1e-3, "beta1": 0.5}
    trial = SimpleNamespace(
        reports=[
            {"step": 25, "segment": 0, "score": 2.0},
            {"step": 60, "segment": 1, "score": 4.0},
            {"step": 75, "segment": 1, "score": 5.0},
        ],
        lineage=[
            SimpleNamespace(segment=0, step=0, config=inside),
            SimpleNamespace(segment=1, step=50, config=inside | {"netG_lr": 0.1}),
            SimpleNamespace(segment=2, step=75, config=inside | {"beta1": 0.4}),
        ],
        busy=1.5,
        error=None,
    )
    found = Run.of(trial, at.Space(compare.search_space("uniform")))  # type: ignore[arg-type]
    assert found.trained == 25 + 25 + 0
    assert found.outside == 2
    assert found.final == 5.0


def test_outcome_is_another_after_it_was_saved(tmp_path: Path) -> None:
    before = arm(run(6.0), run(7.0), bare=2.0)
    before.save(tmp_path / "pbt-0.json")
    after = Outcome.load(tmp_path / "pbt-0.json")
    assert (after.setting, after.wall, after.bare, after.ideal) == (before.setting, 2.1, 2.0, 1.0)
    assert [r.final for r in after.runs] == [6.0, 7.0]


def test_table_tells_other_numbers() -> None:
    outcomes = [
        arm(run(6.0), run(7.0), run(2.0, steps=10), name="asha"),
        arm(run(6.0, steps=310), run(7.0, outside=1), run(8.0), seed=0, bare=2.0),
        arm(run(6.0), run(7.0), run(9.0), seed=1),
    ]
    head, rows = table.by_seed(outcomes).head, table.by_seed(outcomes).rows
    asha, pbt, _ = (dict(zip(head, row, strict=True)) for row in rows)
    assert (asha["best"], asha["mean"], asha["worst"]) == ("7.00", "5.00", "2.00")
    assert (asha["flat runs"], asha["full length"], asha["iterations"]) == ("1", "2", "610")
    assert (asha["wall / ideal"], asha["wall / bare"]) == ("1.050", "-")
    assert (pbt["beyond runs x steps"], pbt["outside the space"], pbt["wall / bare"]) == ("10", "1", "1.050")

    spread = table.by_arm(outcomes)
    pbt = dict(zip(spread.head, spread.rows[1], strict=True))
    assert (pbt["seeds"], pbt["best"], pbt["worst"]) == ("2", "8.50 ± 0.71", "6.00 ± 0.00")
    assert spread.markdown().splitlines()[2].startswith("| asha | 1 | 7.00 | 5.00 | 2.00 |")


def test_summary_leaves_something_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in compare.methods(300):
        arm(run(6.0), run(math.nan, steps=10), name=name).save(tmp_path / f"{name}-0.json")
    compare.summarise(tmp_path)
    written = {file.name for file in tmp_path.iterdir() if file.suffix != ".json"}
    assert written == {"scores-0.png", "pbt-0.png", "table.md", "report.html"}
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


def test_page_runs_a_strangers_markup(tmp_path: Path) -> None:
    pictures.page("<b>", ["$x & <script>"], [table.Table(["<i>"], [["<u>"]])], [], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not any(tag in text for tag in ("<b>", "<script>", "<i>", "<u>"))
    assert "$x &amp; &lt;script&gt;" in text


def test_another_experiment_is_mixed_in(tmp_path: Path, plan: compare.Plan) -> None:
    arm(run(6.0), name="random").save(tmp_path / "random-0.json")
    with pytest.raises(SystemExit, match="another experiment"):
        compare.compare(plan, dataclasses.replace(SETTING, runs=4), 1, [0], tmp_path, measure_bare=False)


def test_summary_of_nothing_is_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no outcomes"):
        compare.summarise(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_script_does_not_go_on_where_it_was_broken_off(tmp_path: Path, cache: str) -> None:
    (tmp_path / "cache").symlink_to(cache)
    setting = compare.measured(compare.Plan("digits", None, cache, 12), "uniform", runs=4, slots=2)
    for name in ("random", "hyperopt", "asha"):
        Outcome(setting, name, 0, wall=2.0, runs=[run(7.0)] * 4, bare=2.0).save(tmp_path / f"{name}-0.json")
    (tmp_path / "runs" / "pbt-0").mkdir(parents=True)
    (tmp_path / "runs" / "pbt-0" / "journal.jsonl").touch()
    command = [sys.executable, str(EXAMPLE / "compare.py"), "--out", str(tmp_path)]
    command += ["--runs", "4", "--steps", "12", "--bare"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pbt = Outcome.load(tmp_path / "pbt-0.json")
    assert pbt.bare is not None
    assert [r.error for r in pbt.runs] == [None] * 4
    assert sum(r.outside for r in pbt.runs) == 0
    assert pbt.trained == 4 * 12
    assert Outcome.load(tmp_path / "asha-0.json").wall == 2.0
