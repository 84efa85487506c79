"""Networks that call their layers in odd ways: the same function with quantizers as without, from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import FEW as FEW_IMAGES
from torch import Tensor, nn

import ptq_exp
from ptq_exp.networks import custom
from ptq_exp.networks.graph import Graph
from ptq_exp.quantization.layers import OPAQUE
from ptq_exp.runs.api.calling import ready_copy

FEW = {"steps": 2, "batch_size": 4}
EVERYTHING = {"act_bits": 8, "act_coverage": "all", "act_zero_point": True}


class Net(nn.Module):
    """`compute` maps the network and 8 channels (N, 8, 8, 8) to the same."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor], **modules: Any):
        super().__init__()
        self.compute, self.stem = compute, nn.Conv2d(3, 8, 3, padding=1)
        for name, module in modules.items():
            setattr(self, name, module)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.compute(self, F.relu(self.stem(x))).mean((2, 3)))


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Activated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def asks_for_the_type(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.conv(x)) * 2 if isinstance(x, Tensor) else net.conv(x)


def tokens_first(net: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).permute(2, 0, 1)  # (tokens, N, channels)
    return (tokens + net.layer(tokens)).permute(1, 2, 0).unflatten(2, (8, 8))


def in_depth(net: Any, x: Tensor) -> Tensor:
    return x + net.depth(x[:, None]).mean(1)


def conv(kind: type[nn.Conv2d] = nn.Conv2d, **options: Any) -> nn.Conv2d:
    return kind(8, 8, 3, **options)


NETS: dict[str, Callable[[], Net]] = {
    "attributes of a layer": lambda: Net(lambda net, x: x.reshape(-1, net.fc.in_features, 8, 8)),
    "a parameter called mul": lambda: Net(lambda net, x: x + x * net.mul, mul=nn.Parameter(torch.rand(8, 1, 1))),
    "weights of five dimensions": lambda: Net(in_depth, depth=nn.Conv3d(1, 2, 3, padding=1)),
    "the type of the input": lambda: Net(asks_for_the_type, conv=conv(padding=1)),
    "tokens first": lambda: Net(tokens_first, layer=nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)),
    "pads itself": lambda: Net(lambda net, x: net.conv(x), conv=conv(Padded, padding=(1, 1))),
    "activates itself": lambda: Net(lambda net, x: net.conv(x) - 1, conv=conv(Activated, padding=1)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return NETS[name]().eval(), torch.randn(32, 3, 8, 8)


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["weights", "everything"])
@pytest.mark.parametrize("name", NETS)
def test_eight_bits_change_little(name: str, changes: dict[str, Any]) -> None:
    network, x = made(name)
    with torch.no_grad():
        wanted = network(x)
        for method in ("mse", "quick"):
            learning = {"reconstruction": FEW} if method == "quick" else {}
            found = ptq_exp.quantize(network, x, bits=8, method=method, **changes, **learning).network(x)
            assert (found - wanted).abs().max() < 0.02 * wanted.abs().max(), method


@pytest.mark.parametrize("name", ["attributes of a layer", "pads itself", "activates itself"])
def test_files_compute_the_same(name: str, tmp_path: Path) -> None:
    network, x = made(name)
    quantized = ptq_exp.quantize(network, x, bits=4, method="mse")
    files = ptq_exp.export(quantized, tmp_path / "q", ["onnx", "program", "packed"], x, network(x).argmax(1))
    assert [file.agreement for file in files if file.agreement is not None] == [100.0] * len(files)


def test_a_trace_that_computes_something_else_is_not_used() -> None:
    network, x = made("the type of the input")
    quantized = ptq_exp.quantize(network, x, bits=8, method="mse", **EVERYTHING)
    assert "its trace computes something else" in quantized.report.limits[0]
    assert "only the inputs of layers are quantized" in quantized.report.limits[0]


def test_the_trace_of_a_quantized_network_is_used() -> None:
    network, x = made("a parameter called mul")
    quantized = ptq_exp.quantize(network, x, bits=8, method="mse", **EVERYTHING)
    Graph(ready_copy(quantized.network, x), OPAQUE)  # raises where the trace computes something else


def test_units_without_the_images_in_front_keep_their_rounding(caplog: pytest.LogCaptureFixture) -> None:
    network, x = made("tokens first")
    ptq_exp.quantize(network, x, bits=3, method="quick", reconstruction=FEW)
    assert "keeps its rounding to nearest: the first dimension of its input is not the image" in caplog.text


def test_hooks_of_the_user_change_what_a_layer_computes() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    body[0].register_forward_hook(lambda module, given, output: output * 2)
    body[1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    network, x = body.eval(), torch.randn(16, 3, 8, 8)
    network.register_forward_pre_hook(lambda module, given: None)  # such as one that counts calls
    graph = Graph(network)
    assert not graph.own(body[0])
    with torch.no_grad():
        found = ptq_exp.quantize(network, x, bits=8, method="quick", act_bits=8, reconstruction=FEW)
        assert (found.network(x) - network(x)).abs().max() < 0.1
        assert ptq_exp.evaluate(network, x, network(x).argmax(1)).top1 == 100


def test_lazy_layers_are_named(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))\n"
    )
    with pytest.raises(ptq_exp.UserError, match=r"layers without a size: 1\.weight.*call the network once"):
        custom.build(3, f"{tmp_path / 'nets.py'}:net")


def test_an_edited_module_that_the_file_imports_is_another_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(folder: Path, size: int) -> None:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        (folder / "parts" / "__init__.py").write_text("from .sizes import SIZE\n")
        (folder / "parts" / "sizes.py").write_text(f"SIZE = {size}\n")
        (folder / "other.py").write_text(f"SIZE = {size}\n")
        (folder / "nets.py").write_text("import torch\nfrom parts import SIZE\nnet = torch.nn.Linear\n")

    monkeypatch.chdir(tmp_path)
    written(tmp_path, 3)
    written(tmp_path / "copy", 3)
    for target, copied in ((f"{tmp_path / 'nets.py'}:net", f"{tmp_path / 'copy' / 'nets.py'}:net"), ("nets.net", "")):
        options = {"target": target, "args": {}}
        written(tmp_path, 3)
        before = custom.identity(options)
        assert not copied or custom.identity({"target": copied, "args": {}}) == before
        (tmp_path / "other.py").write_text("SIZE = 5\n")  # which is not imported
        assert custom.identity(options) == before
        (tmp_path / "parts" / "sizes.py").write_text("SIZE = 5\n")
        assert custom.identity(options) != before
    library = {"target": "torchvision.models.resnet18", "args": {}}
    assert custom.identity(library) == library


def test_the_channels_that_a_network_takes_are_tried(tmp_path: Path, cli: Callable[..., Any]) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.blur, self.stem, self.fc = nn.Conv2d(1, 1, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 10)\n"
        "    def forward(self, x):\n"
        "        x = self.blur(x.flatten(0, 1)[:, None])[:, 0].unflatten(0, (-1, 3))\n"
        "        return self.fc(self.stem(x).relu().mean((2, 3)))\n"
    )
    outcome = cli("model=custom", f"model.target={tmp_path / 'nets.py'}:Net", *FEW_IMAGES, "quant=mse", "quant.bits=8")
    assert outcome.code == 0, outcome.err
