"""What other tools answer to the question of `search=fewest`. See `python -m bench.search_peers --help`.

Each tool has one file here with two names:

* `QUESTION` is the question that the tool takes, in one sentence.
* `answer(material, margin) -> result` runs the tool. The result has at least `answer`, a sentence, and `top1` (percent
  of the 10,000 test images). Both are None where the tool did not return a network within the margin.
"""

from importlib import import_module
from typing import Any

from bench import peers
from bench.peers import Tool

TOOLS = {
    "nncf": peers.TOOLS["nncf"],
    "aimet": peers.TOOLS["aimet"],
    "modelopt": peers.TOOLS["modelopt"],
    "neural_compressor": Tool(
        "Neural Compressor", ("neural-compressor-pt", "torchao"), ("neural_compressor", "torchao")
    ),
}


def asked(tool: str) -> Any:
    """The module that asks `tool`. The tool itself is imported by `answer`."""
    return import_module(f"bench.search_peers.{tool}")
