"""The files that quantization tools write, and what runs them: `python -m bench.export_peers`.

Brevitas, AIMET, NNCF, torchao, ONNX Runtime's quantizer and ptq_exp quantize one ResNet-20 with the same 1,024 JPEG
calibration images and write their files. Then every runtime runs the files that it may read: top-1 on the 10,000 JPEG
test images, agreement with the tool's own simulation, and the speed relative to the float network in the same runtime,
in turns. Every tool and every runtime has a process of its own, and one thread.

Writes bench/results/export_peers.json and the table of docs/export.md. With `--folder`, the files stay there, and a
later call writes only those that are missing. `--network` quantizes one of bench.foreign instead, which has a file and
a table of its own. Needs neither Hydra nor MLflow.
"""

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from bench.accuracy import write_between
from bench.export_peers import WIDTHS
from bench.export_peers.measuring import Line, folder_of, run_in, size_of, write_files, write_references
from bench.export_peers.running import RUNTIMES
from bench.export_peers.table import table_of
from bench.export_peers.writers import TOOLS
from bench.peers.__main__ import SHARED
from bench.peers.networks import NETWORKS
from bench.workers import read_lines
from ptq_exp.base.machine import installed
from ptq_exp.base.paths import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "bench" / "results"
RESNET = "resnet20"
PAGE = PROJECT_ROOT / "docs" / "export.md"
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "aimet-torch", "brevitas", "qonnx", "nncf", "torchao")


def main() -> None:
    """Let every tool write its files, run them, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tool", nargs="*", choices=TOOLS, default=list(TOOLS), help="default: all")
    parser.add_argument("--widths", nargs="*", choices=WIDTHS, default=list(WIDTHS), help="default: all")
    parser.add_argument("--network", choices=NETWORKS, default=RESNET)
    parser.add_argument("--networks", type=Path, default=SHARED / "checkpoints" / "foreign")
    parser.add_argument("--limit", type=int, help="number of test images; default: all")
    parser.add_argument("--checkpoint", default=str(SHARED / "checkpoints" / "resnet20-12fca82f.th"))
    parser.add_argument("--jpeg", default=str(SHARED / "data" / "cifar10-jpeg.tar.gz"))
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--folder", type=Path, help="folder for the files; default: a temporary one")
    parser.add_argument("--write-only", action="store_true", help="write the files, and run none")
    parser.add_argument("--results", type=Path, help="default: export_peers.json in bench/results")
    arguments = parser.parse_args()
    other = "" if arguments.network == RESNET else f" {arguments.network}"
    default = RESULTS / f"export_peers{other.replace(' ', '_')}.json"
    arguments.results = arguments.results or default
    with tempfile.TemporaryDirectory() as scratch:
        arguments.folder = arguments.folder or Path(scratch)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        lines = written(arguments)
        if arguments.write_only:
            return
        runs = run_all(arguments, [line for line in lines if "error" not in line])
    result = about() | {"written": lines, "runs": runs}
    arguments.results.write_text(json.dumps(result, indent=1) + "\n")
    table = table_of(result)
    print(table)
    if arguments.results == default:
        write_between(PAGE, f"export peers{other}", table)


def written(arguments: argparse.Namespace) -> list[Line]:
    """What every tool wrote, in this call or an earlier one."""
    notes = arguments.folder / "written.jsonl"
    done = {tuple(line["task"]) for line in read_lines(notes) if "error" not in line}
    for tool in arguments.tool:
        possible = [width for width in arguments.widths if width not in TOOLS[tool][1]]
        tasks = [(tool, width) for width in possible if (tool, width) not in done]
        if tasks:
            apart(write_files, tasks, arguments, notes)
    found = {tuple(line["task"]): line for line in read_lines(notes)}
    return [line for (tool, _), line in found.items() if tool in arguments.tool]


def run_all(arguments: argparse.Namespace, lines: list[Line]) -> list[Line]:
    """Run all files in all runtimes, and add their sizes to `lines`."""
    for line in lines:
        for file in line["files"]:
            file["size_bytes"] = size_of(folder_of(arguments.folder, *line["task"]), file["paths"])
    apart(write_references, arguments)
    needed = {key for line in lines for file in line["files"] for key in file["runtimes"]}
    runs: list[Line] = []
    for key in [key for key in RUNTIMES if key in needed]:
        results = arguments.folder / f"runs-{key}.json"
        apart(run_in, key, arguments, lines, results)
        runs += json.loads(results.read_text())
    return runs


def apart(function: Callable[..., None], *values: object) -> None:
    """Call `function` in a process of its own: the tools patch torch and register operators."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=values)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed.")


def about() -> dict[str, Any]:
    """The command, the date, the hardware and the versions."""
    return {
        "command": " ".join(["python -m bench.export_peers", *option_names(sys.argv[1:])]),
        "date": date.today().isoformat(),
        "hardware": f"one thread of a shared {processor()}",
        "versions": {"Python": platform.python_version()} | installed(PACKAGES),
    }


def option_names(words: list[str]) -> list[str]:
    """The options of the command line that are no paths of this machine."""
    shown = {*TOOLS, *NETWORKS, *WIDTHS, "--tool", "--network", "--widths", "--limit"}
    return [word for word in words if word in shown or word.isdigit()]


def processor() -> str:
    """The processor, with the instructions that matter for 8-bit products."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vnni = any("vnni" in flag for flag in fields.get("flags", "").split())
    return f"{fields.get('model name', platform.machine())} ({'with' if vnni else 'without'} VNNI)"


if __name__ == "__main__":
    main()
