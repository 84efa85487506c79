"""Traces: operations in place, layers called in several places, sizes that the code asks for, optional arguments."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ptq_exp
from ptq_exp.networks.graph import Graph, blocks, check_trace
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.traced import Traced
from ptq_exp.quantization.units import units


class Net(nn.Module):
    """`compute` maps the network and 16 channels (N, 16, 8, 8) to the same."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.compute = compute
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.act = nn.SiLU(inplace=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.compute(self, self.stem(x)).mean((2, 3)))


def activated_shortcut(net: Any, x: Tensor) -> Tensor:
    return x + net.a(net.act(x))  # both operands are activated


def statements(net: Any, x: Tensor) -> Tensor:
    x.mul_(torch.sigmoid(x.mean((2, 3), keepdim=True)))
    y = net.a(x)
    y.add_(x)
    return y


def of_a_view(net: Any, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    flat.mul_(torch.sigmoid(flat.mean(2, keepdim=True)))
    return x + net.a(x)


def in_a_function(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.silu(y, inplace=True)
    return net.b(y) + y


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def made(compute: Callable[[Any, Tensor], Tensor], kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind(compute).eval()


def error(found: nn.Module, wanted: nn.Module) -> float:
    """The error of the logits, relative to their size."""
    with torch.no_grad():
        given, right = found(images(32)), wanted(images(32))
    return float((given - right).norm() / right.norm())


@pytest.mark.parametrize("compute", [activated_shortcut, statements, of_a_view, in_a_function])
@pytest.mark.parametrize(
    "coverage", [{"act_coverage": "all"}, {"act_residual": True}, {"act_coverage": "all", "method": "quick"}]
)
def test_operations_in_place_change_what_others_read(compute: Any, coverage: dict[str, Any]) -> None:
    net = made(compute)
    options: dict[str, Any] = {"method": "mse", "act_bits": 8} | coverage
    if options["method"] == "quick":
        options["reconstruction"] = {"steps": 5, "distill_steps": 0}
    found = ptq_exp.quantize(net, images(), bits=8, **options)
    assert found.report.limits == []
    assert error(found.network, net) < 0.05


@torch.no_grad()
def test_a_graph_depends_on_operations_in_place() -> None:
    (block,) = blocks(Graph(made(statements)))
    assert block.layers == ("a",)
    assert block.entry == "mul_"


def test_a_layer_called_in_and_outside_a_block_is_learned_on_all_calls() -> None:
    def compute(net: Any, x: Tensor) -> Tensor:
        x = F.relu(x)
        y = 30 * F.relu(x + net.b(net.a(x)))
        return net.a(y) + 0.1 * F.avg_pool2d(y, 3, 1, 1)  # inputs of `a` that are 30 times as large

    net = made(compute)
    found = ptq_exp.quantize(
        net, images(), bits=8, method="best", act_bits=8,
        reconstruction={"steps": 100, "act_lr": 0.1, "distill_steps": 0},
    )  # fmt: skip
    names = [unit.name for unit in units(Traced(found.network), "block")]
    assert names == ["stem", "a", "relu_1", "fc"]
    shared = quantized_layers(found.network)["a"].activation
    assert shared is not None
    assert shared.alpha > 5
    assert error(found.network, net) < 0.05


def test_a_recurrent_layer_is_learned_on_what_it_is_given_in_the_end() -> None:
    """The inputs of later calls change with the weights that are learned."""

    def compute(net: Any, x: Tensor) -> Tensor:
        for _ in range(5):
            x = torch.tanh(3 * net.a(x)) + 0.5 * x
        return x

    net, learning = made(compute), {"steps": 100, "distill_steps": 0}
    nearest = ptq_exp.quantize(net, images(256), bits=3, method="quick", rounding="nearest")
    learned = ptq_exp.quantize(net, images(256), bits=3, method="quick", reconstruction=learning)
    assert error(learned.network, net) < 0.6 * error(nearest.network, net)


class Asks(Net):
    """Asks for sizes, which are known, and has arguments that nobody gives."""

    def forward(self, x: Tensor, targets: Tensor | None = None, features: bool = False) -> Tensor:
        assert x.shape[1] == 3, "three channels"
        _, _, height, width = x.shape
        if height != width:
            raise ValueError("no square")
        assert len(x.shape) == len(x.size()) == 4
        assert [side for side in x.shape if side is not None][2] == height
        x = F.relu(self.stem(x))
        half = int(x.size(1) * 0.5)
        x = torch.cat([x[:, half:], x[:, :half]], 1) + self.a(x)
        side = int(math.sqrt(height * width))
        for _ in range(x.dim() - 3):
            x = x.reshape(-1, x.shape[1], side, side) + self.b(x)
        if features:
            return x
        x = self.fc(x.mean((2, 3)))
        return x if targets is None else F.cross_entropy(x, targets)


def test_sizes_are_known_and_optional_arguments_have_their_defaults(tmp_path: Path) -> None:
    net = made(activated_shortcut, Asks)
    found = ptq_exp.quantize(net, images(), bits=8, method="mse", act_bits=8, act_coverage="all")
    assert found.report.limits == []
    assert error(found.network, net) < 0.05
    path = found.save(tmp_path / "q.safetensors")
    assert error(ptq_exp.load(path, network=made(activated_shortcut, Asks)), found.network) < 1e-5
    check_trace(net, images())
    graph = Graph(net)
    assert [node.name for node in graph.nodes if node.op == "placeholder"] == ["x"]
    assert [block.layers for block in blocks(graph)] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda net, x: net.a(x) if x.shape[0] > 2 else net.b(x), "the number of images"),
        (lambda net, x: net.a(x) if x.shape[0] < 1000 else net.b(x), "the number of images"),
        (lambda net, x: net.a(x) if math.sqrt(x.shape[0]) > 2 else net.b(x), "the number of images"),
        (lambda net, x: net.a(x) if x.sum() > 2 else net.b(x), "the values of tensors"),
    ],
)  # fmt: skip
def test_what_depends_on_the_images_is_not_traced(compute: Any, reason: str) -> None:
    found = ptq_exp.quantize(made(compute), images(), bits=8, method="quick", reconstruction={"steps": 1})
    (sentence,) = found.report.limits
    assert f"its forward function depends on {reason} (test_traces.py, line" in sentence


@torch.no_grad()
def test_torchs_own_transformer_is_traced() -> None:
    net = made(lambda net, x: net.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8)))
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    options: dict[str, Any] = {"act_bits": 8, "act_coverage": "all", "method": "quick"}
    found = ptq_exp.quantize(net.eval(), images(), bits=8, reconstruction={"steps": 5, "distill_steps": 2}, **options)
    assert found.report.limits == []
    assert error(found.network, net) < 0.3
    attention, linear = (
        (f"encoder.layers.0.self_attn.{part}" for part in ("query", "key", "value", "output")),
        (f"encoder.layers.0.linear{part}" for part in (1, 2)),
    )
    assert {tuple(attention), tuple(linear)} <= {unit.layers for unit in units(Traced(found.network), "block")}


def test_a_network_that_asks_for_its_size_says_so_about_other_sizes() -> None:
    net = made(lambda net, x: F.adaptive_avg_pool2d(net.a(x) + x, int(x.shape[2] * 0.5)))
    found = ptq_exp.quantize(net, images(), bits=8, method="mse", act_bits=8, act_coverage="all")
    assert error(found.network, net) < 0.05
    with pytest.raises(ValueError, match=r"size of its images, which was \(3, 8, 8\)"):
        found.network(torch.randn(2, 3, 16, 16))
    flexible = ptq_exp.quantize(
        made(activated_shortcut), images(), bits=8, method="mse", act_bits=8, act_coverage="all"
    )
    assert flexible.network(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@torch.no_grad()
def test_the_memory_format_is_not_a_size() -> None:
    net = made(lambda net, x: net.a(x) if x.is_contiguous() else net.b(x))
    check_trace(net, images())
    with pytest.raises(ptq_exp.UserError, match="depends on the values of tensors"):
        Graph(net)


class Named(nn.Conv2d):
    """Called `inplace`, but it is not."""

    inplace = True


@torch.no_grad()
def test_only_torchs_own_operations_are_taken_to_work_in_place() -> None:
    net = made(lambda net, x: net.named(x) + x)
    net.named = Named(16, 16, 3, padding=1)
    check_trace(net, images())
    (block,) = blocks(Graph(net))
    assert block.layers == ("named",)


def test_running_statistics_stay_as_they_are_while_sizes_are_asked_for() -> None:
    def compute(net: Any, x: Tensor) -> Tensor:
        x = net.norm(net.a(x))
        assert x.shape[1] == 16
        return x

    net = made(compute)
    net.norm = nn.BatchNorm2d(16)
    check_trace(net.eval(), images())
    for training in (True, False):
        before = {key: value.clone() for key, value in net.train(training).state_dict().items()}
        if training:
            with pytest.raises(ptq_exp.UserError, match="depends on its input"):
                Graph(net)
        else:
            Graph(net)
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class Experts(Net):
    """Convolutions that are mixed image by image, as in CondConv (Yang et al. 2019)."""

    def __init__(self, compute: Any):
        super().__init__(compute)
        self.experts = nn.Parameter(0.1 * torch.randn(2, 16, 16, 3, 3))
        self.gate = nn.Linear(16, 2)


def mixed(net: Any, x: Tensor) -> Tensor:
    weights = torch.sigmoid(net.gate(x.mean((2, 3)))) @ net.experts.flatten(1)
    number, channels, height, width = x.shape
    weights = weights.view(number * 16, channels, 3, 3)
    return F.conv2d(x.reshape(1, -1, height, width), weights, padding=1, groups=number).view(number, 16, height, width)


def test_parameters_of_five_dimensions() -> None:
    net, labels = made(mixed, Experts), torch.zeros(32, dtype=torch.long)
    found = ptq_exp.quantize(net, images(), bits=8, method="mse")
    assert error(found.network, net) < 0.05
    assert 0 <= ptq_exp.evaluate(net, images(32), labels).top1 <= 100


def stacked(net: Any, x: Tensor) -> Tensor:
    """Columns that are averaged, as in FractalNet (Larsson et al. 2017)."""
    return torch.stack([net.a(x), net.b(F.relu(x))]).mean(0)


@torch.no_grad()
def test_a_stack_of_tensors_is_no_end_of_a_block() -> None:
    (block,) = blocks(Graph(made(stacked)))
    assert (block.layers, block.exit) == (("a", "b"), "mean")


class Split(nn.Module):
    """Has nothing to quantize, and cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone() if x.sum() > 0 else x


def split(net: Any, x: Tensor) -> Tensor:
    return net.a(net.split(x))


def test_only_modules_that_lose_something_are_named() -> None:
    net = made(split)
    net.split = Split()
    assert ptq_exp.quantize(net, images(), bits=8, method="quick", reconstruction={"steps": 1}).report.limits == []
    (sentence,) = ptq_exp.quantize(net, images(), bits=8, act_bits=8, act_coverage="all", method="mse").report.limits
    assert sentence.startswith("split cannot be traced: its forward function depends on the values of tensors")


class Mixer(Net):
    """Mixes tokens by a convolution over one dimension, and channels by efficient channel attention."""

    def __init__(self, compute: Any):
        super().__init__(compute)
        self.tokens = nn.Conv1d(64, 64, 1)
        self.channels = nn.Conv1d(1, 1, 3, padding="same", bias=False)
        self.grouped = nn.Conv1d(16, 16, 5, padding=2, groups=4, padding_mode="circular")


def mix(net: Any, x: Tensor) -> Tensor:
    x = x + net.tokens(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))
    gate = net.channels(x.mean((2, 3))[:, None]).transpose(1, 2)
    return net.grouped(x.flatten(2)).unflatten(2, (8, 8)) * torch.sigmoid(gate)[..., None]


@pytest.mark.parametrize("options", [{"bits": 4, "method": "quick"}, {"bits": 8, "method": "integer"}])
def test_convolutions_over_one_dimension_are_quantized(options: dict[str, Any], tmp_path: Path) -> None:
    net = made(mix, Mixer)
    found = ptq_exp.quantize(net, images(), reconstruction={"steps": 5, "distill_steps": 2}, **options)
    assert found.report.quantized_percent == 100
    assert {layer.layer for layer in found.layers} - {"a", "b"} == {
        "stem",
        "tokens.layer",
        "channels.layer",
        "grouped.layer",
        "fc",
    }
    assert error(found.network, net) < (0.3 if options["bits"] == 4 else 0.05)
    path = found.save(tmp_path / "q.safetensors")
    assert error(ptq_exp.load(path, network=made(mix, Mixer)), found.network) < 1e-5


def test_float_tensors_have_the_names_of_the_network() -> None:
    net = made(lambda net, x: net.up(net.a(x)))
    net.up = nn.ConvTranspose2d(16, 16, 2, 2)
    report = ptq_exp.quantize(net, images(), bits=8, act_bits=8, act_coverage="all", method="mse").report
    assert report.float_tensors == {"up.weight": "ConvTranspose2d is not supported"}


def test_a_torchscript_program_is_refused() -> None:
    program = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(ptq_exp.UserError, match="TorchScript program"):
        ptq_exp.quantize(program, images(), bits=8, method="mse")
