"""Does the advice of the diagnosis help? `python -m bench.advice --images ARCHIVE [--checkpoint FILE ...]`.

The networks are the one in checkpoints/, each `--checkpoint`, and two that are trained on the digits of scikit-learn.
Every situation in which the diagnosis gives advice is provoked on each network. Then each applicable change in
`CHANGES` is made, at the same stored bits per weight, and top-1 on the test images is compared. Lines are appended to
bench/results/advice.jsonl one by one; existing ones are not measured again. The table is written to docs/methods.md.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import write_between
from bench.harness import on_images, preset
from bench.workers import read_lines, share_out
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config
from ptq_exp.config.compose import compose
from ptq_exp.config.presets import parse
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.diagnosis import ACTIVATIONS, CLIPPING, FEW_LEVELS, ONE_RANGE, WIDE_RANGE, find
from ptq_exp.quantization.grids import stored_bits
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.quantization.report import Report
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.float_model import load_or_train

RESULTS = PROJECT_ROOT / "bench" / "results" / "advice.jsonl"
PAGE = PROJECT_ROOT / "docs" / "methods.md"
SHIPPED = PROJECT_ROOT / "checkpoints" / "resnet20-cifar10.safetensors"
DIGITS = {"digits, ResNet-20": 20, "digits, ResNet-8": 8}  # name -> depth
Task = tuple[str, str, str]  # network, situation, change
HELPED = 0.5  # points of top-1: five images of a thousand
LOST = 1.0  # points: situations with a smaller loss do not count

OF_TENSOR = {"alpha_rule": "std", "granularity": "tensor"}
# Situation: the preset, the bits, and the changes to the preset.
SITUATIONS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "notebook, 3 bits": ("notebook", 3, {}),
    "notebook, 4 bits": ("notebook", 4, {}),
    "one alpha, its largest weight, 4 bits": ("notebook", 4, {"alpha_rule": "max"}),
    "one alpha, 1 std, 6 bits": ("notebook", 6, {"alpha_multiplier": 1.0}),
    "a range for each tensor, 2 std, 4 bits": ("signed", 4, OF_TENSOR | {"alpha_multiplier": 2.0}),
    "a range for each channel, 90th percentile, 4 bits": ("mse", 4, {"alpha_rule": "percentile", "percentile": 90.0}),
    "mse, 2 bits": ("mse", 2, {}),
    "mse, 3 bits": ("mse", 3, {}),
    "lp, 2 bits": ("mse", 2, {"alpha_rule": "lp"}),
    "lp, 3 bits": ("mse", 3, {"alpha_rule": "lp"}),
    "mse for each tensor, 3 bits": ("mse", 3, {"granularity": "tensor"}),
    "mse for the network, 4 bits": ("mse", 4, {"granularity": "model"}),
    "a range for each tensor, 8 std, 5 bits": ("signed", 5, OF_TENSOR | {"alpha_multiplier": 8.0}),
    "per_channel, 3 bits": ("per_channel", 3, {}),
    "per_channel on an asymmetric grid, 3 bits": ("per_channel", 3, {"grid": "asymmetric"}),
    "per_channel, 8 bits, activations 3": ("per_channel", 8, {"act_bits": 3}),
    "mse, 8 bits, activations 3": ("mse", 8, {"act_bits": 3}),
    "adaround, 2 bits": ("adaround", 2, {}),
}  # fmt: skip
LEARNING = "quant=best"
BY_CHANNEL = "quant.granularity=channel"
RULES = ("quant.alpha_rule=mse", "quant.alpha_rule=lp", "quant.alpha_rule=max")
# The changes that are tried in addition to the advice, by the cause that the diagnosis names.
CHANGES: dict[str, tuple[str, ...]] = {
    ONE_RANGE: (*(f"{BY_CHANNEL} {rule}" for rule in RULES), "quant.alpha_rule=mse"),
    CLIPPING: (*RULES, BY_CHANNEL),
    WIDE_RANGE: (*RULES, BY_CHANNEL),
    ACTIVATIONS: ("quant.act_rule=mse", "quant.act_rule=percentile"),
    FEW_LEVELS: (*RULES, "quant.grid=asymmetric"),
}


def main() -> None:
    """Measure the missing results, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", required=True, help="an archive or folder of CIFAR-10's train/ and test/")
    parser.add_argument("--checkpoint", action="append", default=[], help="another CIFAR-10 network; may be repeated")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--calibration", type=int, default=512, help="number of calibration images")
    parser.add_argument(
        "--steps", type=int, default=100, help="steps of learned rounding (per layer or block) and of distillation"
    )
    parser.add_argument("--cache", default=None, help="folder of decoded images and trained networks")
    parser.add_argument("--workers", type=int, default=1, help="number of parallel processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new measurement after this many minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    networks = [*DIGITS, SHIPPED.name, *(Path(name).name for name in arguments.checkpoint)]
    starts = [(network, situation, "") for network in networks for situation in SITUATIONS]
    measure_missing(starts, arguments)
    tasks = [
        (line["network"], line["situation"], change)
        for line in read_lines(arguments.results) if not line["change"]
        for change in dict.fromkeys([line["advice"], *CHANGES[line["cause"]]]) if applies(line["situation"], change)
    ]  # fmt: skip
    measure_missing(sorted(tasks, key=lambda task: LEARNING in task[2]), arguments)  # fast changes first
    table = table_of(read_lines(arguments.results))
    print(table)
    if arguments.results == RESULTS:
        write_between(PAGE, "advice", table)


def measure_missing(tasks: list[Task], arguments: argparse.Namespace) -> None:
    """Measure the tasks that the results do not contain yet."""
    done = {(line["network"], line["situation"], line["change"]) for line in read_lines(arguments.results)}
    if missing := [task for task in tasks if task not in done]:
        share_out(missing, arguments.workers, ready, arguments, arguments.results, arguments.minutes)


def applies(situation: str, change: str) -> bool:
    """Whether the change, which may be empty, has an effect."""
    name, _, changes = SITUATIONS[situation]
    before = changed(preset(name, **changes), "", 1)
    return changed(before, change, 1) != before


def changed(config: QuantConfig, change: str, steps: int) -> QuantConfig:
    """The configuration after the change; all learning takes `steps` steps."""
    values = dict(part.split("=", 1) for part in change.split())
    values.pop("quant.bits", None)  # passed separately
    base = preset(values.pop("quant"), act_bits=config.act_bits) if "quant" in values else config
    how = {"steps": steps} | ({"distill_steps": steps} if base.reconstruction.distill_steps else {})
    found = {key.removeprefix("quant."): parse(value) for key, value in values.items()}
    return dataclasses.replace(base, **found, reconstruction=dataclasses.replace(base.reconstruction, **how))


def ready(arguments: argparse.Namespace) -> Callable[[Task], dict[str, Any]]:
    """Return the function that measures one change in one situation of one network."""
    device, kept = pick_device("auto"), {}

    def network(name: str) -> Any:
        if name not in kept:
            kept.clear()
            config = _config(arguments, name)
            dataset = load_dataset(config.data, config.cache, device)
            model = load_or_train(config, dataset, device)
            test = dataset.test_images, dataset.test_labels, model.normalize
            order = torch.randperm(len(dataset.train_images), generator=torch.Generator().manual_seed(0))
            calibration = model.normalize(dataset.train_images[order[: arguments.calibration].to(device)])
            kept[name] = model.model, calibration, test, evaluate(model.model, *test).top1
        return kept[name]

    def measure(task: Task) -> dict[str, Any]:
        name, situation, change = task
        model, calibration, test, top1_float = network(name)
        preset_name, bits, changes = SITUATIONS[situation]
        before = changed(preset(preset_name, **changes), "", arguments.steps)
        config = changed(before, change, arguments.steps)
        # Keep the stored bits equal: a grid without a separate sign bit gets one more bit.
        more = sign_on_top(before) - sign_on_top(config)
        quantized = quantize(model, config, bits + more, Calibration(calibration))
        report = quantized.report
        line = {"network": name, "situation": situation, "change": change, "bits_mean": report.bits_mean}
        line |= {"top1": evaluate(quantized.network, *test).top1, "top1_float": top1_float}
        return line | ({} if change else _found(report, config))

    return measure


def sign_on_top(config: QuantConfig) -> int:
    """The bits that are stored in addition to `quant.bits`."""
    return int(stored_bits(1, config.sign_bit, config.grid)) - 1


def _found(report: Report, config: QuantConfig) -> dict[str, Any]:
    finding = find(report, config)
    return {"cause": finding.cause, "advice": " ".join(finding.advice)}


def _config(arguments: argparse.Namespace, name: str) -> Config:
    if name in DIGITS:
        return dataclasses.replace(compose("data=digits", f"model.depth={DIGITS[name]}"), cache_dir=arguments.cache)
    paths = {Path(path).name: path for path in (str(SHIPPED), *arguments.checkpoint)}
    config = on_images(arguments.images, arguments.cache, paths[name])
    config.data.test_limit = arguments.test_images
    return config


def table_of(lines: list[dict[str, Any]]) -> str:
    """For every cause, the effect of each change on top-1: how often it helped and harmed, and the median in points.

    The table counts the situations in which more than `LOST` points were lost.
    """
    starts = {
        (line["network"], line["situation"]): line
        for line in lines if not line["change"] and line["top1_float"] - line["top1"] > LOST
    }  # fmt: skip
    rows = ["| cause | change | helped | harmed | median, points |", "|---|---|---|---|---|"]
    for cause, changes in CHANGES.items():
        pairs = [
            (starts[place], line) for line in lines
            if line["change"] and (place := (line["network"], line["situation"])) in starts
            and starts[place]["cause"] == cause
        ]  # fmt: skip
        for advice in dict.fromkeys(start["advice"] for start, _ in pairs if start["advice"]):
            advised = [pair for pair in pairs if pair[1]["change"] == pair[0]["advice"] == advice]
            rows.append(row_of(cause, f"**advised**: `{advice}`", advised))
        for change in changes:
            rows.append(row_of(cause, f"`{change}`", [pair for pair in pairs if pair[1]["change"] == change]))
    return "\n".join(filter(None, rows))


def row_of(cause: str, change: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The row of one change; `pairs` are the lines before and after it. Empty if there are no pairs."""
    gains = [after["top1"] - start["top1"] for start, after in pairs]
    if not gains:
        return ""
    helped, harmed = sum(gain > HELPED for gain in gains), sum(gain < -HELPED for gain in gains)
    return f"| {cause} | {change} | {helped} of {len(gains)} | {harmed} | {statistics.median(gains):+.2f} |"


if __name__ == "__main__":
    main()
