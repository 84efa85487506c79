"""The Python API: what a notebook or a program of the user's sees."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, Outcome
from torch import Tensor, nn

import ptq_exp

Cli = Callable[..., Outcome]


class Pair(nn.Module):
    """A tuple as output, and `view` behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.norm(self.conv(x)).relu()
        return self.head(features.view(x.size(0), -1)), features


def pair() -> Pair:
    torch.manual_seed(0)
    return Pair().eval()


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(24) % 3


# quantize -----------------------------------------------------------------------------------------------------------


def test_the_result_is_the_network_of_the_job(cli: Cli, cache: Path, tmp_path: Path) -> None:
    assert cli(*TINY, "quant=mse", "quant.bits=3", "quant.act_bits=4", "quant.calibration_images=32").code == 0
    (folder,) = tmp_path.glob("outputs/*/*")
    (record,) = json.loads((folder / "results.json").read_text())["results"]
    digits = ptq_exp.float_network(*TINY, f"cache_dir={cache}")
    train, test = digits.normalize(digits.train_images), digits.normalize(digits.test_images)
    found = ptq_exp.quantize(digits, train, bits=3, method="mse", act_bits=4, calibration_images=32)
    of_job = ptq_exp.load(folder / "artifacts" / "quantized_w3.safetensors").network.state_dict()
    state = found.network.state_dict()
    assert state.keys() == of_job.keys()
    different = [name for name in state if not torch.equal(state[name], of_job[name])]
    assert not [name for name in different if not name.endswith("num_batches_tracked")]  # which is not stored
    assert (found.bits_mean, found.size_bytes) == (record["bits_mean"], record["size_bytes"])
    assert found.size_bytes_float == record["size_bytes_float"]
    measured = ptq_exp.evaluate(found, test, digits.test_labels, digits)
    for name in (
        "top1", "top1_ci_low", "top1_ci_high", "top1_drop", "top1_drop_ci_low", "top1_drop_ci_high", "agreement",
        "loss", "diagnosis",
    ):  # fmt: skip
        assert getattr(measured, name) == record[name], name


def test_a_module_of_the_users_stays_as_it_is() -> None:
    network = pair().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantized = ptq_exp.quantize(network, images(), bits=8, method="mse")
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert isinstance(network(images())[1], Tensor)  # still a tuple
    expected = network.eval()(images())[0]
    with torch.no_grad():
        assert torch.allclose(quantized.network(images()), expected, atol=0.05)
    assert repr(quantized).startswith("mse: 8 bits per weight, 2 layers, 100.0 % of the weights, ")
    assert [line.split()[0] for line in quantized.table().splitlines()] == ["layer", "conv", "head"]


def test_nested_keys_change_only_themselves() -> None:
    quantized = ptq_exp.quantize(pair(), images(), 4, "best", reconstruction={"steps": 2, "distill_steps": 1})
    learned = quantized.options.reconstruction
    assert (learned.steps, learned.distill_steps, learned.distill_lr) == (2, 1, 0.0025)  # the last is the preset's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "bst"}, r"method=bst is not known. Did you mean 'best'\? Allowed: adaround, best"),
        ({"act_bit": 4}, r"no key 'act_bit'. Did you mean 'act_bits'\?"),
        ({"reconstruction": {"step": 3}}, r"no key 'reconstruction.step'. Did you mean 'reconstruction.steps'\?"),
        ({"steps": 3}, r"steps is a key of reconstruction. Give reconstruction={'steps': 3}"),
        ({"act_bits": "4"}, "act_bits='4' is a str. Expected: int or None"),
        ({"fold_batch_norm": 1}, "fold_batch_norm=1 is a int. Expected: bool"),
        ({"reconstruction": 3}, "reconstruction=3 is a int. Expected: dict"),
        ({"granularity": "chanel"}, r"granularity=chanel is not known. Did you mean 'channel'\?"),
        ({"bits": 17}, "bits=17 is not a bit width"),
        ({"bits": [2, 4]}, "once for each bit width"),
        ({"sensitivity": True}, "sensitivity has no effect"),
    ],
)
def test_a_mistake_gets_an_answer(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ptq_exp.UserError, match=message):
        ptq_exp.quantize(pair(), images(), **arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), r"not torch.uint8. Normalize them"),
        (torch.zeros(3, 8, 8), r"\(N, C, H, W\), not \(3, 8, 8\)"),
        ([1.0], "not list"),
        (torch.full((4, 3, 8, 8), torch.nan), "not finite"),
        (torch.randn(4, 1, 8, 8), r"does not accept images \(4, 1, 8, 8\)"),
        (torch.randn(4, 3, 9, 9), r"does not accept images \(4, 3, 9, 9\)"),
    ],
)
def test_images_that_cannot_be_right_are_rejected(wrong: Any, message: str) -> None:
    with pytest.raises(ptq_exp.UserError, match=message):
        ptq_exp.quantize(pair(), wrong, method="mse")


def test_images_of_another_range_give_a_warning() -> None:
    network, right = pair(), images(512)
    network.train()
    with torch.no_grad():
        for batch in right.split(4):  # the running statistics need a hundred batches
            network(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ptq_exp.quantize(network, right, method="mse")
    for wrong in (right * 64 + 128, right / 4 + 0.5):  # as pixels, and from 0 to 1
        with pytest.warns(UserWarning, match="at norm, its first batch norm, they differ"):
            ptq_exp.quantize(network, wrong, method="mse")


# evaluate -----------------------------------------------------------------------------------------------------------


def test_the_drop_is_paired() -> None:
    network = pair()
    quantized = ptq_exp.quantize(network, images(), 2, "mse")
    alone = ptq_exp.evaluate(quantized.network, images(), LABELS)
    both = ptq_exp.evaluate(quantized, images(), LABELS.tolist(), float_network=network)
    assert (alone.top1, alone.top1_drop, alone.verdict, alone.diagnosis) == (both.top1, None, "", "")
    assert both.top1_drop == pytest.approx(ptq_exp.evaluate(network, images(), LABELS).top1 - both.top1)
    assert both.top1_drop_ci_low < both.top1_drop < both.top1_drop_ci_high
    assert "not distinguishable" in repr(both)
    assert repr(alone).startswith(f"top-1 {alone.top1:.2f} % (95 % CI ")
    same = ptq_exp.evaluate(network, images(), LABELS, network)
    assert (same.top1_drop, same.agreement) == (0, 100)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], "Expected 24 integer labels"),
        (LABELS.float(), "Expected 24 integer labels"),
        (LABELS + 1, "from 0 to 2, since the network has 3 outputs"),
    ],
)
def test_labels_that_do_not_fit_are_rejected(labels: Tensor, message: str) -> None:
    with pytest.raises(ptq_exp.UserError, match=message):
        ptq_exp.evaluate(pair(), images(), labels)


# export and load ----------------------------------------------------------------------------------------------------


def test_files_of_a_module_agree_and_load_with_an_instance(tmp_path: Path) -> None:
    quantized = ptq_exp.quantize(pair(), images(), 4, "mse", act_bits=8)
    path = tmp_path / "new" / "net.pt2"
    (tmp_path / "new").mkdir()
    path.with_suffix(".safetensors").write_text("of an earlier export")
    files = ptq_exp.export(quantized, path, ["packed", "program"], images(), LABELS)
    assert [(file.file, file.agreement) for file in files] == [("net.safetensors", 100), ("net.pt2", 100)]
    assert str(files[1]).startswith("net.pt2 in PyTorch, torch.export: 100.00 % of the predictions")
    with pytest.raises(ptq_exp.UserError, match=r"test_python_api\.Pair: ptq_exp\.load\('net.safetensors', network=P"):
        ptq_exp.load(path.with_suffix(".safetensors"))
    loaded = ptq_exp.load(path.with_suffix(".safetensors"), network=Pair())
    with torch.no_grad():
        assert torch.equal(loaded(images()), quantized.network(images()))
    assert ptq_exp.evaluate(loaded, images(), LABELS) == ptq_exp.evaluate(quantized, images(), LABELS)
    with pytest.raises(ValueError, match="states no mean and std"):
        loaded(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_file_with_constants_takes_pixels(tmp_path: Path) -> None:
    quantized = ptq_exp.quantize(pair(), images(), 4, "mse")
    quantized.about.update(classes=["a", "b", "c"], mean=[0.5] * 3, std=[0.25] * 3)
    loaded = ptq_exp.load(quantized.save(tmp_path / "net.safetensors"), network=Pair())
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(loaded(pixels), quantized.network((pixels / 255 - 0.5) / 0.25), atol=1e-4)
    assert loaded.classes == ["a", "b", "c"]


def test_an_unknown_format_is_rejected(tmp_path: Path) -> None:
    quantized = ptq_exp.quantize(pair(), images(), 4, "mse")
    with pytest.raises(ptq_exp.UserError, match=r"export=onx is not known. Did you mean 'onnx'\?"):
        ptq_exp.export(quantized, tmp_path / "net", "onx", images(), LABELS)
    with pytest.raises(ptq_exp.UserError, match=r"what ptq_exp.quantize returned, not a Pair"):
        ptq_exp.export(pair(), tmp_path / "net", "onnx", images(), LABELS)  # type: ignore[arg-type]


# float_network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("quant=best", "quant has no effect on the float network. Allowed: cache_dir, checkpoint"),
        ("digits", "'digits' is no option. Write it as on the command line"),
        ("dat=digits", r"no key 'dat'. Did you mean 'data'\?"),
        ("trainer.epochs=many", "trainer.epochs='many' is a str. Expected: int or None"),
        ("trainer.epochs=0", "trainer.epochs=0 must be at least 1"),
    ],
)
def test_an_option_of_the_float_network_is_checked(option: str, message: str) -> None:
    with pytest.raises(ptq_exp.UserError, match=message):
        ptq_exp.float_network(option)


# The package itself -------------------------------------------------------------------------------------------------


def test_the_import_is_fast_and_the_functions_keep_their_names() -> None:
    code = (
        "import sys, ptq_exp; assert 'torch' not in sys.modules and ptq_exp.UserError; import ptq_exp.export.formats; "
        "assert callable(ptq_exp.export); from ptq_exp.export import FORMATS; "
        "[getattr(ptq_exp, name) for name in ptq_exp.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        ptq_exp.quantise  # noqa: B018


@pytest.mark.slow
def test_a_type_checker_sees_the_signatures(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "import ptq_exp\nfrom torch import nn, zeros\n"
        "found = ptq_exp.quantize(nn.Conv2d(3, 2, 3), zeros(1), bits=4, act_bits=8)\n"
        "reveal_type(found)\nreveal_type(ptq_exp.evaluate(found, zeros(1), [1]).top1)\n"
        "reveal_type(ptq_exp.export(found, 'a', 'onnx', zeros(1), [1]))\nptq_exp.quantize('net', zeros(1))\n"
    )
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", str(tmp_path), "user.py"]
    done = subprocess.run(
        [*command, "--config-file", str(ROOT / "pyproject.toml")], cwd=tmp_path, capture_output=True, text=True,
        env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    out = done.stdout
    assert 'Revealed type is "ptq_exp.runs.api.quantizing.QuantizedModel"' in out, out + done.stderr
    assert 'Revealed type is "float"' in out or 'Revealed type is "builtins.float"' in out
    assert "list[ptq_exp.results.exports.ExportResult]" in out
    assert out.count("error:") == 1
    assert '"quantize" has incompatible type "str"' in out
