"""One measurement: quantize a network with a tool, then evaluate it. The worker processes import this module."""

import argparse
import time
from collections.abc import Callable
from typing import Any

from bench.peers import TOOLS, adapter
from bench.peers.networks import CALIBRATION_IMAGES, WIDTHS, calibration_images, load, top1
from ptq_exp.runs.device import pick_device

SEED = 0
REASON_LENGTH = 200  # characters of an exception that are kept

Task = tuple[str, str, str]  # tool, network, widths


def ready(arguments: argparse.Namespace) -> Callable[[Task], dict[str, Any]]:
    """The function that measures one task."""
    device = pick_device("auto")
    loaded: dict[str, Any] = {}

    def measure(task: Task) -> dict[str, Any]:
        tool, name, width = task
        if name not in loaded:
            loaded.clear()
            found = load(name, arguments, device)
            images = calibration_images(found, SEED)
            test = found.dataset.test_images, found.dataset.test_labels, found.normalize
            loaded[name] = found.model, images, test, top1(found.model, *test)
        model, images, test, top1_float = loaded[name]
        line = {
            "task": list(task), "settings": adapter(tool).SETTINGS, "images": CALIBRATION_IMAGES, "seed": SEED,
            "version": TOOLS[tool].version(), "top1_float": top1_float,
        }  # fmt: skip
        started = time.perf_counter()
        try:
            network = adapter(tool).quantize(model, images, *WIDTHS[width])
            line["seconds"] = time.perf_counter() - started
            line["top1"] = top1(network, *test)
        except Exception as error:  # of a tool, whatever it is, is a result: the tool cannot do this
            line["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH]
        return line

    return measure
