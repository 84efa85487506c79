"""What calls of the Python API leave as it was, and what their results must not lack."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ptq_exp
from ptq_exp.quantization.steps.correct_biases import output_means
from ptq_exp.runs.resume import _copy

FEW = {"steps": 2, "batch_size": 4, "distill_steps": 2}


class Net(nn.Module):
    """`extra` are parameters and layers with names of their own."""

    def __init__(self, **extra: Any):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        for name, value in extra.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(F.relu(self.conv(x))).mean((2, 3)))

    def after(self, x: Tensor) -> Tensor:
        return x


class Named(Net):
    """Parameters called like those that a packed file need not store."""

    def __init__(self) -> None:
        super().__init__(
            num_batches_tracked=nn.Parameter(torch.rand(8, 1, 1)), zero_point=nn.Parameter(torch.zeros(8, 1, 1))
        )

    def after(self, x: Tensor) -> Tensor:
        return x * self.num_batches_tracked + self.zero_point


class ChannelsLast(Net):
    """A linear layer on maps (N, H, W, C), as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__(inner=nn.Linear(8, 8))

    def after(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attending(Net):
    def after(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).unflatten(2, (8, 8))


def ready(network: nn.Module) -> tuple[Any, Tensor]:
    return network.eval(), torch.randn(64, 3, 8, 8)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_load_leaves_the_instance_as_it_is(tmp_path: Path) -> None:
    network, x = ready(Net())
    ptq_exp.quantize(network, x, bits=2, method="mse").save(tmp_path / "q.safetensors")
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first, second = (ptq_exp.load(tmp_path / "q.safetensors", network=network) for _ in range(2))
    assert network.training
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(first.network(x), second.network(x))


@pytest.mark.parametrize("changes", [{}, {"act_bits": 4}], ids=["weights", "activations"])
def test_a_loaded_network_computes_the_same_bits(changes: dict[str, Any], tmp_path: Path) -> None:
    network, x = ready(
        nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    )
    quantized = ptq_exp.quantize(network, x, bits=4, method="mse", **changes)
    quantized.save(tmp_path / "q.safetensors")
    loaded = ptq_exp.load(tmp_path / "q.safetensors", network=network)
    assert torch.equal(loaded(x), quantized.network(x))


def test_learning_leaves_the_random_numbers_of_the_caller() -> None:
    network, x = ready(Net())
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(torch.rand(3))
        torch.manual_seed(1)
        ptq_exp.quantize(network, x, bits=2, method="best", reconstruction=FEW)
        drawn.append(torch.rand(3))
    assert all(torch.equal(numbers, drawn[0]) for numbers in drawn)


def test_images_with_a_gradient_and_inference_mode_are_no_obstacle() -> None:
    network, x = ready(Net())
    wanted = ptq_exp.quantize(network, x, bits=2, method="best", reconstruction=FEW).network(x)
    found = ptq_exp.quantize(network, x.clone().requires_grad_(), bits=2, method="best", reconstruction=FEW)
    assert torch.equal(found.network(x), wanted)
    with torch.inference_mode():
        found = ptq_exp.quantize(network, x.clone(), bits=2, method="best", reconstruction=FEW)
    assert torch.equal(found.network(x), wanted)


def test_a_quantized_network_is_not_quantized_again() -> None:
    network, x = ready(Net())
    quantized = ptq_exp.quantize(network, x, bits=4, method="mse")
    for given in (quantized, quantized.network):
        with pytest.raises(ptq_exp.UserError, match="quantized already"):
            ptq_exp.quantize(given, x, bits=4, method="mse")  # type: ignore[arg-type]


def test_parameters_with_names_of_ours_are_stored(tmp_path: Path) -> None:
    network, x = ready(Named())
    quantized = ptq_exp.quantize(network, x, bits=4, method="mse")
    assert quantized.size_bytes_float == 4 * sum(p.numel() for p in network.parameters())
    quantized.save(tmp_path / "q.safetensors")
    loaded = ptq_exp.load(tmp_path / "q.safetensors", network=Named())
    assert torch.allclose(loaded.network(x), quantized.network(x), atol=1e-6)


def test_biases_of_linear_layers_on_maps_are_corrected_by_channel() -> None:
    network, x = ready(ChannelsLast())
    wanted = output_means(network, ["inner"], x)["inner"]

    def error(corrected: bool) -> float:
        found = ptq_exp.quantize(network, x, bits=2, method="mse", bias_correction=corrected)
        return float((output_means(found.network, ["inner"], x)["inner"] - wanted).abs().max())

    assert error(corrected=True) < 1e-4 < error(corrected=False)


def test_biases_that_no_accumulator_holds_are_named(caplog: pytest.LogCaptureFixture) -> None:
    network, x = ready(Net())
    ptq_exp.quantize(network, x, bits=8, method="integer", integer_biases=True)
    assert "of an accumulator" not in caplog.text
    network.fc.weight.data[2] *= 1e-12  # a dead output
    ptq_exp.quantize(network, x, bits=8, method="integer", integer_biases=True)
    assert "fc: 1 biases need more than the 32 bits of an accumulator." in caplog.text


def test_attention_in_one_operation_is_said_to_stay_float_inside() -> None:
    network, x = ready(Attending())
    everything = {"act_bits": 8, "act_coverage": "all", "act_zero_point": True}
    assert (
        "scaled_dot_product_attention"
        in ptq_exp.quantize(network, x, bits=8, method="mse", **everything).report.limits[0]
    )


@pytest.mark.parametrize("alpha", [float("inf"), float("nan")])
def test_impossible_ranges_and_labels_are_refused(alpha: float) -> None:
    network, x = ready(Net())
    with pytest.raises(ptq_exp.UserError, match="act_alpha"):
        ptq_exp.quantize(network, x, bits=8, method="mse", act_bits=8, act_alpha=alpha)
    with pytest.raises(ptq_exp.UserError, match="integer labels"):
        ptq_exp.evaluate(network, x, torch.ones(len(x), dtype=torch.bool))


def test_a_resumed_job_replaces_the_files_of_another_one(tmp_path: Path) -> None:
    for name, files in (("a", ["w4", "config"]), ("b", ["w3", "config"])):
        (tmp_path / name / "artifacts").mkdir(parents=True)
        for file in files:
            (tmp_path / name / "artifacts" / file).write_text(name)
    _copy(tmp_path / "a", tmp_path / "a")
    _copy(tmp_path / "a", tmp_path / "b")
    assert {file.name: file.read_text() for file in (tmp_path / "b" / "artifacts").iterdir()} == {
        "w4": "a",
        "config": "a",
    }
