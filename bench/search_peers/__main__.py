"""What other tools answer to the question of `search=fewest`: `python -m bench.search_peers --tool NAME`.

The question is for the fewest bits within a margin of the top-1 of the float network. Each tool takes a question of
its own, see its file. All of them get the ResNet-20 of docs/results.md, the 1,024 JPEG calibration images of
bench.peers and the 10,000 JPEG test images, on the CPU. The answer becomes the entry of the tool in
bench/results/search_peers.json. An exception becomes an entry, too. Needs neither Hydra nor MLflow.
"""

import argparse
import json
import platform
import time
import traceback
from datetime import date
from pathlib import Path

import torch

from bench.peers.__main__ import SHARED
from bench.search_peers import TOOLS, asked
from bench.search_peers.material import material_of
from ptq_exp.base.machine import installed
from ptq_exp.base.paths import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "bench" / "results" / "search_peers.json"


def main() -> None:
    """Ask one tool and write its entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tool", choices=TOOLS, required=True)
    parser.add_argument("--checkpoint", default=str(SHARED / "checkpoints" / "resnet20-12fca82f.th"))
    parser.add_argument("--jpeg", default=str(SHARED / "data" / "cifar10-jpeg.tar.gz"))
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--margin", type=float, default=1.0, help="points of top-1")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tool, module = TOOLS[arguments.tool], asked(arguments.tool)
    if not tool.installed():
        parser.error(f"{tool.label} is not installed. To install it: pip install {' '.join(tool.distributions)}")
    material = material_of(arguments)
    started = time.perf_counter()
    try:
        result = module.answer(material, arguments.margin)
    except Exception as error:
        traceback.print_exc()
        result = {"answer": None, "top1": None, "error": f"{type(error).__name__}: {error}"}
    entry = {
        "tool": tool.label, "versions": installed((*tool.distributions, "torch")), "question": module.QUESTION,
        "margin": arguments.margin, "float_top1": material.float_top1, **result,
        "seconds": round(time.perf_counter() - started, 1), "date": date.today().isoformat(),
        "hardware": f"{torch.get_num_threads()} CPU threads ({platform.machine()}, {platform.system()})",
        "command": f"python -m bench.search_peers --tool {arguments.tool}",
    }  # fmt: skip
    print(json.dumps(entry, indent=1))
    entries = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    arguments.results.write_text(json.dumps(entries | {arguments.tool: entry}, indent=1) + "\n")


if __name__ == "__main__":
    main()
