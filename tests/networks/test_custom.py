"""Networks by the name of a class or function."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks import build_model, custom

SOURCE = """
import helper
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, width=4, output="tensor"):
        super().__init__()
        self.conv, self.fc, self.output = nn.Conv2d(3, width, 3), nn.Linear(width, classes), output

    def forward(self, x):
        y = self.fc(self.conv(x).mean((2, 3)))
        image = y[:, :, None, None]
        return {"tensor": y, "tuple": (y, x), "dict": {"aux": x, "logits": y}, "image": image}[self.output]

def number(**kwargs):
    return 5

def fixed(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 7))

def broken(classes):
    raise RuntimeError("no such thing")
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "nets.py").write_text(SOURCE)
    return tmp_path / "nets.py"


def test_a_class_in_a_file_gets_its_arguments_and_the_classes(nets: Path) -> None:
    model = build_model("custom", 3, target=f"{nets}:Net", args={"width": 6})
    assert (model.fc.out_features, model.conv.out_channels) == (3, 6)
    assert build_model("custom", 3, target=f"{nets}:Net", args={"classes": 5}).fc.out_features == 5


def test_a_function_without_an_argument_for_the_classes(nets: Path) -> None:
    assert custom.build(3, f"{nets}:fixed", {"width": 2})(torch.zeros(1, 3, 8, 8)).shape == (1, 7)


def test_dotted_names_with_open_arguments() -> None:
    model = custom.build(3, "torchvision.models.mobilenet_v2", {"width_mult": 0.25})
    assert model.classifier[1].out_features == 3


@pytest.mark.parametrize("output", ["tuple", "dict", "image"])
def test_only_the_logits_are_returned(nets: Path, output: str) -> None:
    model = custom.build(3, f"{nets}:Net", {"output": output})
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), model.fc(model.conv(x).mean((2, 3))))


def test_an_edited_file_is_another_network(nets: Path) -> None:
    options = {"target": f"{nets}:Net", "args": {}}
    first, before = custom.build(3, **options), custom.identity(options)
    nets.write_text(SOURCE.replace("width=4", "width=5"))
    assert (first.conv.out_channels, custom.build(3, **options).conv.out_channels) == (4, 5)
    assert custom.identity(options) != before
    (nets.parent / "elsewhere").mkdir()
    here = custom.identity(options)
    (nets.parent / "helper.py").rename(nets.parent / "elsewhere" / "helper.py")  # which the file imports
    moved = nets.rename(nets.parent / "elsewhere" / "nets.py")
    assert custom.identity(options | {"target": f"{moved}:Net"}) == here


@pytest.mark.parametrize(
    ("target", "args", "words"),
    [
        (None, {}, "model=custom needs model.target"),
        ("Net", {}, "is not a name of a class or function"),
        ("{nets}:Nett", {}, "Did you mean 'Net'?"),
        ("{folder}/net.py:Net", {}, "Did you mean 'nets.py'?"),
        ("nowhere.models.Net", {}, "cannot be imported"),
        ("torchvision.models.mobilenet_v9", {}, "Did you mean 'mobilenet_v2'?"),
        ("{nets}:number", {}, "returns a int"),
        ("{nets}:Net", {"widht": 3}, "classes=10, width=4"),
        ("{nets}:broken", {}, "RuntimeError: no such thing"),
        ("{folder}/helper.py:x", {}, "has no class or function x"),
    ],
)
def test_mistakes(nets: Path, target: str | None, args: dict[str, int], words: str) -> None:
    named = target and target.format(nets=nets, folder=nets.parent)
    with pytest.raises(UserError) as raised:
        custom.build(3, named, args)
    assert words in str(raised.value)


def test_a_missing_import_is_named(nets: Path) -> None:
    nets.write_text(SOURCE + "import not_installed_here\n")
    with pytest.raises(UserError, match="it imports not_installed_here"):
        custom.build(3, f"{nets}:Net", {"width": 9})
    assert not any(name.startswith("ptq_exp_target_") and "not_installed" in name for name in sys.modules)


def test_a_stored_file_decides_on_no_code(nets: Path, tmp_path: Path) -> None:
    own = custom.as_stored({"architecture": "custom", "target": f"{nets}:Net", "args": {}})
    assert custom.trusted(own) == {"target": f"{nets}:Net", "args": {}}
    assert custom.trusted({"target": "torchvision.models.resnet18", "args": {}}) is not None
    for target in ("os.system", "subprocess.run", "torchvision_evil.models.x", f"{Path(pytest.__file__)}:main"):
        assert custom.trusted({"target": target, "args": {"command": "true"}, "source": own["source"]}) is None
    nets.write_text(SOURCE + "\n# edited")
    assert custom.trusted(own) is None


def test_the_default_memory_format_where_view_needs_it() -> None:
    from ptq_exp.networks.graph.calling import contiguous_images, needs_contiguous_images

    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).view(len(x), -1))

    model = View().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size"):
        model(x)
    contiguous_images(model)
    assert needs_contiguous_images(model)
    assert model(x).shape == (2, 2)
