"""The fewest bits of several networks: `python -m bench.search --networks FOLDER --jpeg ...`.

Runs `search=fewest quant=best` (or `--preset quick`) on the ResNet-20 of docs/results.md and on the networks of
bench.foreign, with a margin of one point, over weights alone and over both. The test images are the JPEG files;
ResNet-20 may have other calibration images (`--resnet20-images`). Lines are appended to bench/results/search.jsonl, and
the table of docs/how-to/fewest-bits.md is written. Existing results are not measured again. Needs neither Hydra nor
MLflow.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import write_between
from bench.foreign import NETWORKS, config_of, images
from bench.workers import add_line, read_lines
from ptq_exp.base.console import duration
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config.compose import compose
from ptq_exp.data import load_dataset
from ptq_exp.reporting.search import answer_cells
from ptq_exp.reporting.tables.markdown import markdown_cells
from ptq_exp.results.files import from_json, to_json
from ptq_exp.results.records import SearchRecord
from ptq_exp.results.search import effort, sentence
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.search import Searching

RESULTS = PROJECT_ROOT / "bench" / "results" / "search.jsonl"
PAGE = PROJECT_ROOT / "docs" / "how-to" / "fewest-bits.md"
OVER = {"weights": ["weights"], "both": ["weights", "activations"]}
TABLE = ["network", "quant=", "float %", "top-1 %", "bits/weight", "act. bits", "kB", "× smaller", "drop at most"]


def main() -> None:
    """Run the missing searches, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    shared = PROJECT_ROOT.parent / "shared"
    parser.add_argument("--networks", type=Path, default=shared / "checkpoints" / "foreign")
    parser.add_argument("--resnet20", type=Path, default=shared / "checkpoints" / "resnet20-12fca82f.th")
    parser.add_argument("--jpeg", default=str(shared / "data" / "cifar10-jpeg.tar.gz"))
    parser.add_argument("--resnet20-images", default=None, help="archive or folder with other training images")
    parser.add_argument("--only", nargs="*", default=None, help="networks or axes to search, such as resnet20 both")
    parser.add_argument("--preset", default="best", help="the method")
    parser.add_argument("--threads", type=int, default=None, help="torch threads")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=Path("outputs/search"), help="folder of the trials and reports")
    parser.set_defaults(cache=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    done = {(line["network"], line["over"], line["preset"], line["device"]) for line in read_lines(arguments.results)}
    device, only, names = pick_device(arguments.device), set(arguments.only or []), ["resnet20", *NETWORKS]
    chosen = [name for name in names if name in only or not only & set(names)]
    for name, over in itertools.product(chosen, [over for over in OVER if over in only or not only & OVER.keys()]):
        if (name, over, arguments.preset, device.type) not in done:
            measure(name, over, device, arguments)
    text = table_of(read_lines(arguments.results))
    print(text)
    if arguments.results == RESULTS:
        write_between(PAGE, "search", text)


def measure(name: str, over: str, device: torch.device, arguments: argparse.Namespace) -> None:
    """Search once and append the record."""
    config = configuration(name, arguments)
    words = [f"search.over={json.dumps(OVER[over])}"]
    folder = arguments.output / f"{name}-{over}-{arguments.preset}"
    shutil.rmtree(folder, ignore_errors=True)
    chosen = compose("search=fewest", f"quant={arguments.preset}", "tracking=none", *words)
    config = dataclasses.replace(
        config, quant=chosen.quant, search=chosen.search, tracking=chosen.tracking, output_dir=str(folder),
        overrides=f"{name} {over}", method=arguments.preset, cache_dir=str(folder / "cache"),
    )  # fmt: skip
    config.quant.name = arguments.preset
    # The cache is the search's own, or another search would have learned for it. Images are decoded before the start.
    load_dataset(config.data, config.cache, torch.device("cpu"))
    started = time.perf_counter()
    record = Searching(config, device).run()
    line = {
        "network": name, "over": over, "preset": arguments.preset, "device": device.type, "record": to_json(record),
        "seconds": time.perf_counter() - started, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    add_line(line, arguments.results)
    print(f"{name}, {over}: {sentence(record)} {effort(record, duration(record.seconds))}", flush=True)


def configuration(name: str, arguments: argparse.Namespace) -> Any:
    """The configuration that reads a network and its images."""
    if name != "resnet20":
        return config_of(name, arguments)
    config = images(arguments, None)
    root = arguments.resnet20_images or config.data.root
    model = config.model | {"name": "resnet20"}
    data = dataclasses.replace(config.data, root=root)
    return dataclasses.replace(config, data=data, model=model, checkpoint=str(arguments.resnet20))


def table_of(lines: list[dict[str, Any]]) -> str:
    """One line per search, with the trials and the time that it took."""
    cells = answer_cells([from_json(SearchRecord, line["record"]) for line in lines])
    rows = [
        [f"{line['network']}, {line['over']}", line["preset"], *row[1:], str(len(line["record"]["trials"])),
         f"{line['seconds']:.0f}", f"{line['record']['hardware']}, {line['date']}"]
        for line, row in zip(lines, cells.lines, strict=False)
    ]  # fmt: skip
    headings = [*TABLE, "trials", "seconds", "hardware and date"]
    return markdown_cells(dataclasses.replace(cells, headings=headings, lines=rows))


if __name__ == "__main__":
    main()
