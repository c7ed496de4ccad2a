"""Compare: random search, HyperOpt, HyperOpt with ASHA, and population-based training on one search space of a DCGAN.

    python examples/gan/compare.py --out results                                      # 8x8 digits, offline, minutes
    python examples/gan/compare.py --out results --data mnist --data-dir FOLDER --trials-per-gpu 4     # on every visible GPU

What ends up in `--out`: a JSON file for each arm and seed, pictures, `table.md` and `report.html`. Arms that have
their file are not run again, so the same command with more seeds adds to an experiment, and without any summarises it.
"""

import argparse
import functools
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import asynctune as at
import bare
import model
import pictures
import score
import table
from asynctune.slots import resolve
from outcome import Outcome, Run, Setting


@dataclass(frozen=True)
class Plan:
    """What is the same for all runs."""

    data: str
    data_dir: str | None
    cache: str
    steps: int  # iterations of a full run

    @property
    def every(self) -> int:
        """Iterations from one score to the next: 5 of 300."""
        return max(1, self.steps // 60)


def train(trial: at.Trial, plan: Plan) -> None:
    """Train one DCGAN, scoring it every few iterations."""
    bench = score.bench(plan.data, plan.data_dir, plan.cache, trial.device)
    torch.manual_seed(trial.seed)  # the initial weights
    gan = model.GAN(bench.size, trial.device, **trial.config)
    trial.track(
        generator=gan.generator,
        discriminator=gan.discriminator,
        generator_adam=gan.generator_adam,
        discriminator_adam=gan.discriminator_adam,
    )
    rng = torch.Generator(trial.device)
    for step in trial.steps(plan.steps):
        # Of the seed and the step alone, so that a resumed run draws what it would have drawn.
        rng.manual_seed((trial.seed * 1_000_003 + step) % 2**32)
        gan.iterate(bench.images, rng)
        if step % plan.every == 0 or step == plan.steps:
            trial.report(score=bench.score(gan.generator))


def search_space(lr_scale: str) -> dict[str, Any]:
    rate = at.uniform(1e-5, 1e-2) if lr_scale == "uniform" else at.loguniform(1e-5, 1e-2)
    return {"netG_lr": rate, "netD_lr": rate, "beta1": at.choice([0.3, 0.5, 0.8])}


def methods(steps: int) -> dict[str, dict[str, Any]]:
    """The four arms, by name, in the words of `at.run`."""
    return {
        "random": {"searcher": at.Random(), "scheduler": at.FIFO()},
        "hyperopt": {"searcher": at.HyperOpt(), "scheduler": at.FIFO()},
        "asha": {
            "searcher": at.HyperOpt(),
            "scheduler": at.ASHA(max_resource=steps, min_resource=max(1, steps // 30), reduction_factor=4),
        },
        "pbt": {
            "searcher": at.Random(),
            "scheduler": at.PBT(perturbation_interval=max(1, steps // 12), max_resource=steps),
        },
    }


def compare(
    plan: Plan, setting: Setting, slots: int | at.Slots, seeds: list[int], out: Path, *, measure_bare: bool
) -> None:
    """Run every arm with every seed, but for those that have their file in `out`."""
    space = search_space(setting.lr_scale)
    trainable = functools.partial(train, plan=plan)
    for seed in seeds:
        for arm, method in methods(plan.steps).items():
            file = out / f"{arm}-{seed}.json"
            if file.exists():
                outcome = Outcome.load(file)
                if outcome.setting != setting:
                    raise SystemExit(f"{file} is of another experiment: {outcome.setting}; this one is {setting}")
            else:
                print(f"{arm}, seed {seed}", flush=True)
                run_dir = out / "runs" / f"{arm}-{seed}"
                shutil.rmtree(run_dir, ignore_errors=True)  # of a comparison that was broken off
                result = at.run(
                    trainable,
                    space,
                    metric="score",
                    mode="max",
                    num_trials=setting.runs,
                    slots=slots,
                    run_dir=run_dir,
                    seed=seed,
                    **method,
                )
                runs = [Run.of(trial, at.Space(space)) for trial in result.trials]
                outcome = Outcome(setting, arm, seed, result.wall - (result.startup or 0.0), runs)
                outcome.save(file)
            if measure_bare and outcome.bare is None:
                print(f"{arm}, seed {seed}, bare", flush=True)
                jobs: list[bare.Job] = [(run.lineage[-1][1], run.trained) for run in outcome.runs]
                outcome.with_bare(bare.seconds(trainable, jobs, setting.slots)).save(file)


def summarise(out: Path) -> None:
    """Write and print the tables, and draw the pictures, of all that is in `out`."""
    order = list(methods(300))
    outcomes = sorted(map(Outcome.load, out.glob("*-*.json")), key=lambda o: (o.seed, order.index(o.arm)))
    if not outcomes:
        raise SystemExit(f"{out} holds no outcomes")
    images = []
    for seed in dict.fromkeys(outcome.seed for outcome in outcomes):
        of_seed = [outcome for outcome in outcomes if outcome.seed == seed]
        images.append(out / f"scores-{seed}.png")
        pictures.curves(of_seed, images[-1])
        for outcome in of_seed:
            if outcome.arm == "pbt":
                images.append(out / f"pbt-{seed}.png")
                pictures.moves(outcome, images[-1])
    setting = outcomes[0].setting
    what = (
        f"A DCGAN on {setting.data}: {setting.runs} runs of {setting.steps} iterations ({model.MINIBATCHES} minibatches of "
        f"{model.BATCH} each) on {setting.slots} slots, learning rates {setting.lr_scale} in 1e-5 to 1e-2. The inception score "
        f"of {score.IMAGES} images is {setting.untrained} before training, and {setting.real} for real images."
    )
    words = (
        "Flat: a run that ended within a tenth of the way from untrained to real. Ideal: the runs' own training seconds, "
        "given in their order to whichever slot is free. Bare: the same runs in plain processes without a tuner."
    )
    tables = [table.by_arm(outcomes), table.by_seed(outcomes)]
    text = "\n\n".join([what, words, *(each.markdown() for each in tables)])
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n")
    for outcome in outcomes:
        for number, run in enumerate(outcome.runs):
            if run.error is not None:
                print(f"{outcome.arm}, seed {outcome.seed}, run {number} failed: {run.error}")
    pictures.page("Four ways to tune a GAN", [what, words], tables, images, out / "report.html")
    print(f"the same with pictures: {out / 'report.html'}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder for everything that is written (default: in runs/)")
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits", help="default: %(default)s")
    parser.add_argument("--data-dir", help="where MNIST's four idx gzip files are")
    parser.add_argument("--runs", type=int, default=20, help="runs of each arm (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=300, help="iterations of a full run, at least 2 (default: %(default)s)"
    )
    parser.add_argument("--slots", type=int, default=2, help="runs at a time, a CPU core each (default: %(default)s)")
    parser.add_argument("--trials-per-gpu", type=int, help="instead: so many at a time on every visible GPU")
    parser.add_argument("--seeds", default="0", help="as in 0,1,2; empty: only summarise (default: %(default)s)")
    parser.add_argument("--lr-scale", choices=["uniform", "log"], default="uniform", help="default: %(default)s")
    parser.add_argument("--bare", action="store_true", help="also time the same runs in processes without a tuner")
    return parser.parse_args()


def measured(plan: Plan, lr_scale: str, runs: int, slots: int) -> Setting:
    """The setting, with the scores between which all others lie."""
    bench = score.bench(plan.data, plan.data_dir, plan.cache)
    untrained = []
    for seed in range(5):
        torch.manual_seed(seed)
        untrained.append(bench.score(model.generator(bench.size)))
    return Setting(
        data=plan.data,
        lr_scale=lr_scale,
        runs=runs,
        steps=plan.steps,
        slots=slots,
        untrained=round(statistics.fmean(untrained), 2),
        real=round(bench.score_images(bench.images[: score.IMAGES]), 2),
    )


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)  # here as in the slots: networks this small are quicker on one
    name = f"gan-{args.data}-{args.runs}x{args.steps}-{args.lr_scale}"
    out = (args.out or Path("runs", name)).absolute()
    plan = Plan(args.data, args.data_dir, str(out / "cache"), args.steps)
    slots: int | at.Slots = args.slots
    if args.trials_per_gpu is not None:
        slots = at.Slots(trials_per_gpu=args.trials_per_gpu)
        if args.bare:
            raise SystemExit("--bare compares with processes on CPU cores: not with --trials-per-gpu")
    setting = measured(plan, args.lr_scale, args.runs, len(resolve(slots)))
    seeds = [int(seed) for seed in args.seeds.split(",") if seed]
    compare(plan, setting, slots, seeds, out, measure_bare=args.bare)
    summarise(out)


if __name__ == "__main__":
    main()
