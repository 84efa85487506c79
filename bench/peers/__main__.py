"""Other quantization tools on the same networks, images and bit widths: `python -m bench.peers [--tool NAME ...]`.

Every tool quantizes the networks of bench.foreign and ResNet-20 with the same 1,024 calibration images (seed 0), the
first and the last layer at the same bits, and is evaluated on the 10,000 JPEG test images. Lines are appended to
bench/results/peers.jsonl; existing results are not measured again. Then the table of docs/results.md is written. A tool
that is not installed is skipped. Needs neither Hydra nor MLflow. The settings of each tool are in its file.
"""

import argparse
import time
from pathlib import Path

from bench import foreign
from bench.accuracy import RESULTS_PAGE, write_between
from bench.harness import selected
from bench.peers import TOOLS, adapter
from bench.peers.measuring import Task, ready
from bench.peers.networks import NETWORKS, WIDTHS
from bench.peers.table import current, table_of
from bench.workers import read_lines, share_out
from ptq_exp.base.paths import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "bench" / "results" / "peers.jsonl"
SHARED = PROJECT_ROOT.parent / "shared"


def main() -> None:
    """Measure the missing results tool by tool, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tool", nargs="*", choices=TOOLS, default=list(TOOLS), help="default: all")
    parser.add_argument("--only", nargs="*", default=[], help="networks or widths to measure, such as densenet W4")
    parser.add_argument("--networks", type=Path, default=SHARED / "checkpoints" / "foreign")
    parser.add_argument("--checkpoint", default=str(SHARED / "checkpoints" / "resnet20-12fca82f.th"), help="resnet20")
    parser.add_argument("--jpeg", default=str(SHARED / "data" / "cifar10-jpeg.tar.gz"))
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new measurement after this many minutes")
    parser.add_argument("--again", action="store_true", help="also repeat measurements that raised an exception")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    deadline = time.time() + 60 * arguments.minutes
    for tool in arguments.tool:
        if not TOOLS[tool].installed():
            label, needed = TOOLS[tool].label, " ".join(TOOLS[tool].distributions)
            print(f"{label} is not installed, so its cells are skipped. To install it: pip install {needed}")
        elif tasks := missing(tool, arguments):
            # one process per tool, because the tools patch torch
            share_out(tasks, 1, ready, arguments, arguments.results, (deadline - time.time()) / 60)
    table = table_of(current(read_lines(arguments.results)), foreign.read(foreign.RESULTS))
    print(table)
    if arguments.results == RESULTS:
        write_between(RESULTS_PAGE, "peers", table)


def missing(tool: str, arguments: argparse.Namespace) -> list[Task]:
    """The tasks of `tool` without a result, those of one network together."""
    lines = current(read_lines(arguments.results))
    done = {tuple(line["task"]) for line in lines if not (arguments.again and "error" in line)}
    return [
        (tool, name, width)
        for name in selected(NETWORKS, arguments.only) for width in selected(WIDTHS, arguments.only)
        if width not in adapter(tool).CANNOT and (tool, name, width) not in done
    ]  # fmt: skip


if __name__ == "__main__":
    main()
