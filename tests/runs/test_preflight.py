"""What cannot succeed is refused before the first job: once, quickly, and leaving nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Outcome, mostly_slow

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config
from ptq_exp.data.options import DataOptions
from ptq_exp.networks import build_model
from ptq_exp.runs.device import check_device
from ptq_exp.runs.preflight import check, check_all

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A file with a ResNet-14 of ten classes, untrained."""
    torch.save(build_model("resnet", 10, depth=14, shortcut="pad").state_dict(), tmp_path / "deep.pt")
    return tmp_path / "deep.pt"


HOPELESS: list[tuple[list[str], str]] = [
    (["data=digits", "model=resnet56", "checkpoint=deep.pt", "quant.bits=2,3,4,8", "-m"], "model=resnet14"),
    (["data=digits", "model=resnet56", "checkpoint=deep.pt"], "model=resnet14"),
    (["data=digits", "checkpoint=nowhere.pt", "seed=0,1", "-m"], "no such file"),
    (["data=image_folder", "data.root=nowhere", "quant.bits=2,3", "-m"], "data.root=nowhere does not exist"),
    (["data=cifar100", "data.download=false", "data.root=here", "quant.bits=2,3", "-m"], "cifar100 is not in here"),
    (["data=cifar100", "checkpoint=deep.pt", "quant.bits=2,3", "-m"], "data=cifar10"),
    (["data=digits", "device=cuda:99", "quant.bits=2,3", "-m"], "device=cuda:99"),
    (["data=digits", "quant.bits=17,18", "-m"], "quant.bits=17"),
    (["data=digits", "quant.bits=17"], "quant.bits=17"),
    (["data=digits", "checkpoint=nowhere.pt", "quant=glob(m*)", "-m"], "no such file"),
    (["data=digits", "checkpoint=nowhere.pt", "quant.bits=range(2,5)", "seed=choice(0,1)", "-m"], "no such file"),
    (["data=digits", "model=resnet20,resnet21", "quant.bits=2,3", "-m"], "model=resnet21 is not known"),
]


@pytest.mark.parametrize(("arguments", "words"), mostly_slow(HOPELESS, 3))
def test_it_is_told_once_and_leaves_nothing(
    cli: Cli, store: str, runs: Runs, deep: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    before = {path for path in tmp_path.rglob("*") if "mlflow" not in path.name}
    outcome = cli(*arguments, f"tracking.uri={store}")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.count("Error: ") == 1
    assert words in outcome.err
    assert {path for path in tmp_path.rglob("*") if "mlflow" not in path.name} == before
    from mlflow import MlflowClient

    assert MlflowClient(store).get_experiment_by_name("ptq_exp") is None, "no experiment, so no run"


def test_jobs_that_can_succeed_are_not_held_up_by_one_that_cannot(tmp_path: Path) -> None:
    good, bad = Config(data=DataOptions(name="digits")), Config(device="cuda:99")
    check_all([bad, good])
    with pytest.raises(UserError, match="cuda:99"):
        check_all([bad, bad])


@pytest.mark.slow
def test_the_depth_is_the_files_where_the_user_chose_none(cli: Cli, deep: Path, store: str, runs: Runs) -> None:
    few = ["data=digits", "data.train_limit=64", "data.test_limit=48", f"tracking.uri={store}", "quant.bits=4"]
    outcome = cli(f"checkpoint={deep}", *few)
    assert outcome.code == 0, outcome.err
    assert "ResNet-14 with pad shortcuts" in outcome.out
    ((name, run),) = runs(store).items()
    assert "resnet14" in name
    assert "resnet20" not in name
    assert run.data.params["model.depth"] == "14"


@pytest.mark.parametrize("chosen", [["model=resnet20"], ["model.depth=20"], ["model=vgg16"]])
def test_a_network_that_the_user_chose_must_be_the_files(cli: Cli, deep: Path, chosen: list[str]) -> None:
    outcome = cli(f"checkpoint={deep}", *chosen, "data=digits", "quant.bits=4")
    assert outcome.code == 1
    assert "holds a ResNet-14 with pad shortcuts" in outcome.err


def test_gpu_means_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_device("gpu") == "cuda"
    assert check_device("gpu:1") == "cuda:1"
    with pytest.raises(UserError, match="gpu:2"):
        check_device("gpu:2")


def test_a_hundred_classes_are_not_advised_cifar10(deep: Path, tmp_path: Path) -> None:
    torch.save(build_model("resnet", 100, depth=14).state_dict(), tmp_path / "hundred.pt")
    torch.save(build_model("resnet", 7, depth=14).state_dict(), tmp_path / "seven.pt")
    for name, advice in {"hundred": "data=cifar100", "seven": "7 class folders"}.items():
        with pytest.raises(UserError, match=advice):
            check(Config(checkpoint=str(tmp_path / f"{name}.pt"), data=DataOptions(name="digits")))


def test_another_number_of_outputs_than_classes_is_said() -> None:
    from ptq_exp.data.digits import load
    from ptq_exp.runs.fitting import check_images_fit

    class Viewing(torch.nn.Sequential):
        """`view` fails on images in the channels-last format, so the network gets the other one."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = super().forward(x)
            return x.view(len(x), -1)

    model = Viewing(torch.nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"\(1, 3600\) for one image, but digits has 10 classes"):
        check_images_fit(model, load(DataOptions(), Path("unused")), torch.device("cpu"))


@pytest.mark.slow
def test_tiny_jobs_still_run(cli: Cli) -> None:
    assert cli(*TINY, "quant.bits=3,4", "-m").code == 0


def test_calibration_has_a_seed_of_its_own() -> None:
    assert Config(seed=3).calibration_seed == 3
    own = Config(seed=3)
    own.quant.calibration_seed = 0
    assert own.calibration_seed == 0


@pytest.mark.slow
def test_calibration_seeds_vary_the_calibration_and_not_the_network(cli: Cli, store: str, runs: Runs) -> None:
    learned = ["quant=adaround", "quant.reconstruction.steps=2", "quant.calibration_images=16", "quant.bits=2"]
    assert cli(*TINY, *learned, "quant.calibration_seed=0,1", f"tracking.uri={store}", "-m").code == 0
    first, second = [run for run in runs(store).values() if "quant.calibration_seed" in run.data.params and
                     "top1" in run.data.metrics]  # fmt: skip
    assert first.data.tags["float_digest"] == second.data.tags["float_digest"]
    assert first.data.metrics["loss"] != second.data.metrics["loss"]


def test_the_keys_of_a_sweep_are_told_to_its_jobs() -> None:
    from ptq_exp.runs.callbacks import swept

    assert swept(["seed=0,1", "quant.bits=4", "+quant.layer_bits={a:3},{a:4}"]) == {
        "seed": "seed=0,1",
        "quant.layer_bits": "+quant.layer_bits={a:3},{a:4}",
    }
