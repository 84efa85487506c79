"""Other quantization tools on the networks of bench.foreign. See `python -m bench.peers --help`.

Each tool has one file here, an adapter with three names:

* `quantize(model, images, bits, act_bits) -> network` returns a quantized copy of the float `model`, calibrated on
  normalized `images` (N, 3, H, W). `act_bits` is None if the activations stay float.
* `SETTINGS` holds what the result depends on. It is stored with every result.
* `CANNOT` maps widths, such as "W3", to the reason why the tool does not offer them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from ptq_exp import __version__

Quantize = Callable[[nn.Module, Tensor, int, int | None], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Tool:
    """A tool: its name in the table, the distributions to install (none for this project), the packages to import."""

    label: str
    distributions: tuple[str, ...]
    packages: tuple[str, ...]

    def installed(self) -> bool:
        """Whether the tool can be imported."""
        return all(find_spec(package) is not None for package in self.packages)

    def version(self) -> str:
        """The version of the tool, or of this project."""
        return version(self.distributions[0]) if self.distributions else __version__


TOOLS = {
    "ptq_exp_quick": Tool("ptq_exp, quick", (), ()),
    "aimet": Tool("AIMET", ("aimet-torch",), ("aimet_torch",)),
    "brevitas": Tool("Brevitas", ("brevitas",), ("brevitas", "brevitas_examples")),
    "modelopt": Tool("ModelOpt", ("nvidia-modelopt",), ("modelopt",)),
    "nncf": Tool("NNCF", ("nncf", "openvino"), ("nncf", "openvino")),
    "torchao": Tool("torchao", ("torchao",), ("torchao",)),
}


def adapter(tool: str) -> Any:
    """The module that adapts `tool`. The tool itself is imported by `quantize`."""
    return import_module(f"bench.peers.{tool}")
