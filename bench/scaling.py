"""Several workers: `python -m bench.scaling --checkpoint FILE --images ARCHIVE`.

Runs the same sweep of reconstruction jobs with Hydra's basic launcher, which uses all cores for one job after another,
and with the joblib launcher, one worker per core, each with its share of the threads. A third run on one thread shows
the possible gain: there is none if one job uses all cores as efficiently as one job per core. Needs the extra `joblib`.
"""

import argparse
import os
import time
from itertools import count
from pathlib import Path

from bench.harness import rows_of, save
from bench.sweep import sweep
from ptq_exp.runs.device import pick_device


def main() -> None:
    """Run the sweep with each launcher in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th")
    parser.add_argument("--images", default="../shared/data/cifar10-lossless-6k.zip")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="reconstruction steps per block")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    fresh = count(int(time.time()) % 100_000)  # a stored reconstruction would not be computed again
    jobs = [
        f"checkpoint={Path(arguments.checkpoint).absolute()}", "data=image_folder", "data.resize=32",
        f"data.root={Path(arguments.images).absolute()}", "quant=brecq", "quant.calibration_images=512",
        f"quant.reconstruction.steps={arguments.steps}",
    ]  # fmt: skip
    joblib = [*jobs, "hydra/launcher=joblib", f"hydra.launcher.n_jobs={arguments.workers}"]
    cases = {
        "basic launcher": jobs,
        f"joblib launcher, {arguments.workers} workers": joblib,
        "basic launcher, threads=1": [*jobs, "threads=1"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(arguments.rounds):
        for name in list(cases) if number % 2 else list(cases)[::-1]:
            penalties = ",".join(f"{0.001 + 1e-9 * next(fresh):.9f}" for _ in range(arguments.jobs))
            took = sweep([*cases[name], f"quant.reconstruction.penalty={penalties}"])["seconds"]
            seconds[name].append(took / arguments.jobs)
    rows = rows_of(seconds, "basic launcher")
    most = arguments.workers / rows[2]["ratio"]
    notes = [
        f"{1 / rows[1]['ratio']:.2f} times the jobs per second, including the startup of every process.",
        f"On one thread a job takes {rows[2]['ratio']:.2f} times as long as on all threads: "
        f"{arguments.workers} workers that do not slow each other down could be at most {most:.2f} times as fast.",
    ]
    content = {"unit": f"seconds per job, {arguments.jobs} jobs", "ratio_of": "relative to the basic launcher"}
    save("scaling", pick_device("auto"), content | {"rows": rows, "notes": notes})


if __name__ == "__main__":
    main()
