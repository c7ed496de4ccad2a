"""The GAN of examples/gan on Ray Tune: the same networks, judge, space and budget, so that scores can be compared with ours.

    .venv-peers/bin/python -m pip install --constraint bench/constraints.txt --editable '.[bench,demo]'
    .venv-peers/bin/python bench/peers_gan.py --out results-ray [--runs 20] [--steps 300] [--seeds 0,1]

Writes what `examples/gan/compare.py` writes, and prints the same tables. Ray's PBT moves the two learning rates only, since it takes
`beta1` for an ordered or a continuous number. Ray names trials at random, so an initial network is never the same twice.
"""

import argparse
import os
import random
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search.hyperopt import HyperOptSearch

sys.path.append(str(Path(__file__).parent.parent / "examples" / "gan"))
import asynctune as at
import compare
import model
import score
from outcome import Outcome, Run, Setting


def trainable(plan: compare.Plan) -> type:
    """`compare.train` as one of Ray's classes: a step is the iterations from one score to the next."""

    class Train(tune.Trainable):  # type: ignore[misc]  # Ray is not installed where types are checked
        def setup(self, config: dict[str, float]) -> None:
            torch.set_num_threads(1)
            self.bench = score.bench(plan.data, plan.data_dir, plan.cache, "cpu")
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, float]) -> bool:
            self.hyperparameters = new_config
            self.seed = zlib.crc32(self.trial_id.encode())
            torch.manual_seed(self.seed)
            self.gan = model.GAN(self.bench.size, "cpu", **new_config)
            self.done = 0
            return True

        def step(self) -> dict[str, float]:
            began, before = time.time(), self.done
            rng = torch.Generator()
            for self.done in range(before + 1, min(before + plan.every, plan.steps) + 1):
                rng.manual_seed((self.seed * 1_000_003 + self.done) % 2**32)
                self.gan.iterate(self.bench.images, rng)
            value = self.bench.score(self.gan.generator)
            return {"score": value, "iteration": self.done, "before": before, "began": began, "ended": time.time()}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            states = {name: part.state_dict() for name, part in vars(self.gan).items()}
            torch.save(states | {"done": self.done}, Path(checkpoint_dir, "state.pt"))

        def load_checkpoint(self, checkpoint: str) -> None:
            states = torch.load(Path(checkpoint, "state.pt"))
            self.done = states.pop("done")
            for name, state in states.items():
                getattr(self.gan, name).load_state_dict(state)
            for adam, rate in ((self.gan.generator_adam, "netG_lr"), (self.gan.discriminator_adam, "netD_lr")):
                adam.param_groups[0]["lr"] = self.hyperparameters[rate]  # the donor's came with its state

    return Train


class Results(tune.Callback):  # type: ignore[misc]
    """Every result by trial, in the order in which they came: from Ray's own result.json lines go missing when a trial is paused."""

    def __init__(self) -> None:
        self.of: dict[str, list[dict[str, Any]]] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.of.setdefault(trial.trial_id, []).append(result)


def methods(steps: int, seed: int, rate: Any) -> dict[str, dict[str, Any]]:
    """The four arms, by name, in the words of `tune.TuneConfig`: those of `compare.methods`."""
    asha = ASHAScheduler(time_attr="iteration", max_t=steps, grace_period=max(1, steps // 30), reduction_factor=4)
    pbt = PopulationBasedTraining(
        time_attr="iteration",
        perturbation_interval=max(1, steps // 12),
        hyperparam_mutations={"netG_lr": rate, "netD_lr": rate},
    )
    return {
        "random": {},
        "hyperopt": {"search_alg": HyperOptSearch(n_initial_points=5, random_state_seed=seed)},
        "asha": {"search_alg": HyperOptSearch(n_initial_points=5, random_state_seed=seed), "scheduler": asha},
        "pbt": {"scheduler": pbt},
    }


def run(arm: str, seed: int, plan: compare.Plan, setting: Setting, out: Path) -> Outcome:
    """One arm with one seed."""
    rate = tune.uniform(1e-5, 1e-2) if setting.lr_scale == "uniform" else tune.loguniform(1e-5, 1e-2)
    random.seed(seed)
    np.random.seed(seed)
    method = methods(plan.steps, seed, rate)[arm]
    results = Results()
    grid = tune.Tuner(
        trainable(plan),
        param_space={"netG_lr": rate, "netD_lr": rate, "beta1": tune.choice([0.3, 0.5, 0.8])},
        tune_config=tune.TuneConfig(metric="score", mode="max", num_samples=setting.runs, reuse_actors=True, **method),
        run_config=tune.RunConfig(
            name=f"{arm}-{seed}",
            storage_path=str(out / "ray"),
            stop={"iteration": plan.steps},
            callbacks=[results],
            verbose=0,
        ),
    ).fit()
    if grid.errors:
        raise grid.errors[0]
    lines = [line for of_trial in results.of.values() for line in of_trial]
    space = at.Space(compare.search_space(setting.lr_scale))
    runs = [_run(of_trial, space) for of_trial in results.of.values()]
    return Outcome(setting, arm, seed, max(x["ended"] for x in lines) - min(x["began"] for x in lines), runs)


def _run(results: list[dict[str, Any]], space: at.Space) -> Run:
    lineage: list[tuple[int, dict[str, float]]] = []
    for result in results:
        if not lineage or lineage[-1][1] != result["config"]:
            lineage.append((result["before"], result["config"]))
    return Run(
        steps=[result["iteration"] for result in results],
        scores=[result["score"] for result in results],
        lineage=lineage,
        trained=sum(result["iteration"] - result["before"] for result in results),
        outside=sum(not _inside(space, config) for _, config in lineage),
        busy=sum(result["ended"] - result["began"] for result in results),
        error=None,
    )


def _inside(space: at.Space, config: dict[str, float]) -> bool:
    try:
        space.check(config)
    except at.InvalidArgument:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for everything that is written")
    parser.add_argument("--runs", type=int, default=20, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="iterations of a full run (default: %(default)s)")
    parser.add_argument("--seeds", default="0", help="as in 0,1,2 (default: %(default)s)")
    parser.add_argument("--lr-scale", choices=["uniform", "log"], default="uniform", help="default: %(default)s")
    args = parser.parse_args()
    out = args.out.absolute()
    torch.set_num_threads(1)
    plan = compare.Plan("digits", None, str(out / "cache"), args.steps)
    setting = compare.measured(plan, args.lr_scale, args.runs, slots=2)
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=setting.slots, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    for seed in map(int, args.seeds.split(",")):
        for arm in compare.methods(plan.steps):
            run(arm, seed, plan, setting, out).save(out / f"{arm}-{seed}.json")
    compare.summarise(out)


if __name__ == "__main__":
    main()
