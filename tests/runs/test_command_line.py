"""The command line: help, mistakes and every shipped experiment."""

import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FEW, ROOT, TINY, Outcome, mostly_slow
from PIL import Image

from ptq_exp.config.mistakes import explain, known_keys

Cli = Callable[..., Outcome]


def test_help_names_groups_options_and_commands(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for word in ("resnet20", "image_folder", "notebook", "python run.py quant.bits=", "--traceback"):
        assert word in outcome.out


def test_help_says_something_about_every_group_and_option_on_two_screens(cli: Cli) -> None:
    lines = cli("--help").out.splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 80
    said = {words[0]: words[1:] for line in lines if line.startswith("  ") and (words := line.split())}
    for file in (ROOT / "conf").glob("*/*.yaml"):
        assert any(word.isalpha() for word in said[file.stem]), file
    assert {"joblib", "ray", "submitit_local", "submitit_slurm"} <= set(said)  # the launchers
    groups = {line.partition(":")[0] for line in lines if re.match(r"[a-z/]+: \w", line)}
    assert {"model", "data", "quant", "search", "tracking", "hydra/launcher"} <= groups
    assert said["notebook"]
    assert any(line.startswith("  notebook *") for line in lines)  # the default


@pytest.mark.parametrize("quoted", ["hydra.searchpath=[file://{}]", "hydra.searchpath=['{}']", "--config-dir={}"])
def test_help_lists_the_presets_in_a_folder_of_ones_own(cli: Cli, tmp_path: Path, quoted: str) -> None:
    own = tmp_path / "own"
    for name, text in {"quant/mine.yaml": "# Mine, with four bits.\nbits: [4]\n", "quant/best.yaml": "# Mine, too.\n",
                       "experiment/first.yaml": "# @package _global_\nseed: 1\n"}.items():  # fmt: skip
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    before, after = (cli(*arguments).out.splitlines() for arguments in (["--help"], [quoted.format(own), "--help"]))
    assert [line for line in after if line not in before] == ["  mine            Mine, with four bits", "  first"]
    assert len(after) == len(before) + 2  # Hydra, too, prefers the best.yaml of conf/
    assert after.index("  mine            Mine, with four bits") < after.index("  first")


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_cfg_import_neither_torch_nor_mlflow(arguments: list[str]) -> None:
    code = (
        "import runpy, sys; sys.argv = ['run.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr
    assert time.monotonic() - started < 10  # a hang would be seen, a slow machine not


MISTAKES = [
    (["quant.bitz=4"], ["Error: There is no key 'quant.bitz'", "Did you mean 'quant.bits'?", "quant.sign_bit"]),
    (["+quant.bitz=4"], ["Error: There is no key 'quant.bitz'", "Did you mean 'quant.bits'"]),
    (["+sede=1"], ["There is no key 'sede'", "Did you mean 'seed'?"]),
    (["modle=resnet20"], ["modle", "Did you mean 'model'?"]),
    (["model=resnet21"], ["model=resnet21", "resnet20", "vgg16"]),
    (["quant=notebok"], ["quant=notebok", "Did you mean 'notebook'?"]),
    (["experiment=notbook"], ["experiment=notbook", "Did you mean 'notebook'?"]),
    (["quant=4"], ["quant", "notebook"]),
    (["quant.bits=4,8"], ["quant.bits=4,8", "-m", "quant.bits=[4,8]"]),
    (["quant=best,mse"], ["quant=best,mse has several values. Add -m to run one job for each of them.\n"]),
    (["quant=[best,mse]"], ["quant=[best,mse]: quant takes one option", "quant=best,mse -m"]),
    (["quant=[best,mse]", "quant.bits=3,4", "-m"], ["quant=[best,mse]: quant takes one option"]),
    (["model=[resnet20,vgg16]"], ["model takes one option", "model=resnet20,vgg16 -m"]),
    (["quant.bits=[4"], ["quant.bits=[4"]),
    (["seed=abc"], ["seed=abc is not allowed", "an integer (at least 0"]),
    (["quiet=maybe"], ["quiet=maybe is not allowed", "true or false"]),
    (["data.mean=[1,b,2]"], ["data.mean=[1,b,2] is not allowed", "a list of numbers, or null."]),
    (["data.mean=0.5"], ["data.mean=0.5 is not allowed", "for example data.mean='[0.5]'"]),
    (["search=fewest", "search.over=weights"], ["a list of words (weights, activations)", "search.over='[weights]'"]),
    (["search=fewest", "search.bits=[]"], ["search.bits is empty"]),
    (["seed=0,1"], ["seed=0,1 has several values. Add -m to run one job for each of them."]),
    (["seed=range(3)"], ["seed=range(3) has several values. Add -m"]),
    (["quant.bits==4"], ["quant.bits==4 cannot be read", "one equals sign"]),
    (["~quant.bits"], ["~quant.bits: this key cannot be removed"]),
    (["~quant"], ["every job needs an option of this group"]),
    (["+model.depth=20"], ["model.depth exists, so it needs no plus sign"]),
    (["quant.act_bits=33"], ["Allowed: integers from 1 to 16."]),
    (["quant=mixed", "quant.mean_bits=20"], ["quant.mean_bits=20 is not a bit width"]),
    (["quant=best", "quant.mixed=true", "quant.mixed_candidates=[3,33]"], ["integers from 1 to 16, or 1.6."]),
    (["optimizer.lr=big"], ["optimizer.lr=big is not a number."]),
    (["scheduler.gamma=foo"], ["scheduler.gamma=foo is not a number."]),
    (["tracking=mlflow", "tracking.experiment="], ["tracking.experiment is empty"]),
    (["tracking=mlflow", "tracking.uri=x.db"], ["names a file without its kind: tracking.uri=sqlite:///"]),
    (["tracking=mlflow", "tracking.uri=sqlite:////proc/x.db"], ["sqlite:////proc/x.db cannot be used"]),
    (["tracking=tensorboard", "tracking.tensorboard=/proc/x"], ["tracking.tensorboard=/proc/x cannot be written to"]),
    (["output_dir=/proc/x"], ["output_dir=/proc/x cannot be written to"]),
    (["cache_dir=wide/train/cat/1.png/x"], ["cache_dir=wide/train/cat/1.png/x cannot be written to"]),
    (["hydra.run.dir=/proc/x"], ["/proc/x: No such file or directory.", "hydra.run.dir"]),
    (["checkpoint=pretrained"], ["needs a constructor that brings weights"]),
    (["checkpoint=trian"], ["Did you mean 'train'?", "pretrained"]),
    (["data=image_folder", "data.root=wide", "data.classes=[]"], ["data.classes is empty"]),
    (["export=5"], ["export=5 is no format"]),
    (["quant.bits=0"], ["quant.bits=0", "1 to 16"]),
    (["quant.bits=17"], ["quant.bits=17", "1 to 16"]),
    (["quant.bits=[4,4]"], ["quant.bits", "twice"]),
    (["quant.bits=[]"], ["quant.bits is empty"]),
    (["quant.bits=four"], ["quant.bits=four", "1 to 16"]),
    (["quant.bits=4.5"], ["quant.bits=4.5", "1 to 16"]),
    (["quant.bits=1", "quant.sign_bit=included"], ["quant.bits=1", "quant.sign_bit=extra"]),
    (["quant.sign_bit=includet"], ["quant.sign_bit=includet", "Did you mean 'included'?"]),
    (["quant.alpha_rule=maxx", *TINY], ["quant.alpha_rule=maxx", "Did you mean 'max'?"]),
    (["quant.granularity=layer"], ["quant.granularity=layer", "tensor"]),
    (["quant.alpha_multiplier=-1"], ["quant.alpha_multiplier=-1", "positive"]),
    (["quant.act_bits=0"], ["quant.act_bits=0", "1 to 16"]),
    (["quant.act_alpha=0"], ["quant.act_alpha=0", "positive"]),
    (["quant.calibration_images=0"], ["quant.calibration_images=0"]),
    (["trainer.select=best"], ["trainer.select=best", "best_test"]),
    (["trainer.select=best_validation"], ["data.validation_images"]),
    (["trainer.epochs=0"], ["trainer.epochs=0"]),
    (["data.mean=[0.5,0.5]"], ["data.mean", "three numbers"]),
    (["data.std=[0,1,1]"], ["data.std", "positive"]),
    (["device=cuda:99"], ["device=cuda:99", "device=cpu"]),
    (["device=gpu"], ["device=gpu, which is cuda, does not exist", "CUDA devices"]),
    (["device=graphics"], ["device=graphics", "cuda"]),
    (["data=digits", "data.validation_images=5000"], ["data.validation_images=5000", "1433"]),
    (["data=image_folder"], ["data=image_folder needs data.root"]),
    (["data=image_folder", "data.root=nowhere"], ["data.root=nowhere", "does not exist"]),
    (["data=image_folder", "data.root=wide/test"], ["no classes", "train/<class>"]),
    (["data=cifar10", "data.download=false", "data.root=nowhere"], ["cifar10", "nowhere", "data.root"]),
    ([*TINY, "checkpoint=nowhere.pth"], ["checkpoint=nowhere.pth", "no such file", "auto (the stored network"]),
    (["bits=4"], ["There is no key 'bits'", "Did you mean 'quant.bits'"]),
    (["quant.epochs=3"], ["Did you mean 'trainer.epochs'?", "Keys of 'quant'"]),
    (["--bits", "4"], ["unrecognized arguments: --bits", "quant.bits=4, not --bits 4"]),
    ([*TINY, "optimizer.momentun=0.9"], ["optimizer.momentun", "Did you mean 'optimizer.momentum'?"]),
    ([*TINY, "+optimizer.momentun=0.9"], ["optimizer.momentun", "Did you mean 'momentum'?"]),
    ([*TINY, "optimizer._target_=torch.optim.SDG"], ["optimizer._target_=torch.optim.SDG"]),
    ([*TINY, "optimizer.lr=-1"], ["optimizer", "learning rate"]),
    ([*TINY, "model.depth=21"], ["model.depth=21", "6n+2"]),
    ([*TINY, "model.shortcut=pat"], ["model.shortcut=pat", "Did you mean 'pad'?"]),
    ([*TINY, "optimizer._target_=torch.optim"], ["optimizer._target_=torch.optim"]),
    (
        [*TINY, "model=vgg16", "model.depth=11", "data=image_folder", "data.root=wide", "data.resize=null"],
        ["64x64", "data.resize=32"],
    ),
    (["data=image_folder", "data.root=wide", "data.resize=32"], ["only one class", "cat"]),
    (["quant.layer_bits={linear:8}"], ["'+quant.layer_bits={layer3.*:3,linear:8}'"]),
    (["+quant.layer_bits=linear:8"], ["'+quant.layer_bits={layer3.*:3,linear:8}'"]),
    (["model.args.width=8"], ["add a plus sign: +model.args.width="]),
    (["quant.mse=true"], ["Did you mean quant=mse?"]),
    (["quant", "=", "mse"], ["no spaces"]),
    (["trainer.select=best_test", "data.validation_images=5"], ["best_validation"]),
    (["data=auto", "data.download=false", "data.root=nowhere", "checkpoint=some.th"], ["data=image_folder"]),
    ([*TINY, "+model.widht=3"], ["model.widht", "depth"]),
    ([*TINY, "tracking.uri=nowhere://x"], ["tracking.uri=nowhere://x", "tracking=none"]),
    ([*TINY, "tracking.uri=http://127.0.0.1:9"], ["tracking.uri=http://127.0.0.1:9", "tracking=none"]),
    ([*TINY, "tracking.uri=sqlite:////proc/nowhere/mlflow.db"], ["/proc/nowhere", "tracking=none"]),
    ([*TINY, "quant.bits=2,3", "tracking.uri=http://127.0.0.1:9", "-m"], ["tracking.uri=http://127.0.0.1:9"]),
    (["tracking=mlfow"], ["tracking=mlfow", "Did you mean 'mlflow'?"]),
    (["tracking.enabled=perhaps"], ["tracking.enabled=perhaps", "true or false"]),
    (["resume=maybe"], ["resume=maybe", "true or false"]),
    (["fail_fast=1x"], ["fail_fast=1x", "true or false"]),
    (["threads=0"], ["threads=0", "at least 1"]),
    (["threads=all"], ["threads=all", "an integer (at least 1), or null"]),
    (["quant.percentile=101"], ["quant.percentile=101", "at most 100"]),
    (["quant.equalize=true"], ["quant.equalize=true", "quant.fold_batch_norm=true"]),
    (["quant.grid=apot", "quant.rounding=adaround"], ["quant.rounding=adaround", "apot"]),
    (["quant.mean_bits=3"], ["quant.mean_bits", "quant.mixed=true"]),
    (["quant=mixed", "quant.mean_bits=3", "quant.size_budget=90000"], ["quant.mean_bits", "quant.size_budget"]),
    (["quant.mixed=true"], ["quant.granularity=channel"]),
    (["quant.reconstruction.drop=1"], ["quant.reconstruction.drop=1", "below 1"]),
    (["quant.reconstruction.steps=0"], ["quant.reconstruction.steps=0", "positive"]),
    (["quant.reconstruction=fast"], ["quant.reconstruction=fast"]),
    (["+quant.layer_bits={linear:99}"], ["quant.layer_bits.linear=99", "1 to 16"]),
    (["data.timeout=0"], ["data.timeout", "positive"]),
    (["data.train_limit=0"], ["data.train_limit=0", "at least 1"]),
    (["trainer.precision=fp8"], ["trainer.precision=fp8", "bf16"]),
    ([*TINY, "scheduler._target_=nowhere.Thing"], ["scheduler._target_=nowhere.Thing"]),
    ([*TINY, "+scheduler.gama=2"], ["scheduler.gama", "Did you mean 'gamma'?"]),
    (["quant.bits"], ["quant.bits cannot be read", "="]),
    (["=4"], ["A number was given where a group", "quant.bits=4"]),
    (["quant.bits='4"], ["quant.bits='4 cannot be read"]),
    (["quant.bits=range(4", "-m"], ["quant.bits=range(4 cannot be read"]),
    (["~quant.nothing"], ["quant.nothing"]),
    (["hydra/launcher=jolib", "-m"], ["hydra/launcher=jolib", "Did you mean 'joblib'?"]),
    ([*TINY, "checkpoint=notes.txt"], ["checkpoint=notes.txt", "not a checkpoint"]),
    ([*TINY, "checkpoint=empty.safetensors"], ["checkpoint=empty.safetensors", "damaged"]),
    ([*TINY, "checkpoint=harmful.pth"], ["checkpoint=harmful.pth", "contains no state dict"]),
    ([*TINY, "checkpoint=wide"], ["checkpoint=wide", "no such file"]),
    ([*TINY, "checkpoint=ftp://127.0.0.1/a.pth"], ["ftp://127.0.0.1/a.pth"]),
    (["data=image_folder", "data.root=notes.txt"], ["data.root=notes.txt", "neither a folder nor"]),
    (["data=image_folder", "data.root=leads-out.zip"], ["data.root=leads-out.zip", "'../a.png'"]),
    (["data=image_folder", "data.root=cut.zip"], ["data.root=cut.zip"]),
    (["data=image_folder", "data.root=broken"], ["train/cat/2.png", "data.skip_broken=true"]),
    (["data=image_folder", "data.root=uneven", "data.resize=null"], ["train/cat/2.png", "data.resize=32"]),
]


class Harm:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


def write_files(folder: Path) -> None:
    """The files that `MISTAKES` names: images that are too large, broken or of two sizes, and what is none."""
    for name, second in {"wide": 64, "broken": 0, "uneven": 48}.items():
        for split in ("train", "test"):
            (folder / name / split / "cat").mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(folder / name / split / "cat" / "1.png")
        if second:
            Image.new("RGB", (second, second)).save(folder / name / "train" / "cat" / "2.png")
        else:
            (folder / name / "train" / "cat" / "2.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("what to do next")
    (folder / "empty.safetensors").touch()
    (folder / "harmful.pth").write_bytes(pickle.dumps({"conv1.weight": Harm()}, protocol=2))
    with zipfile.ZipFile(folder / "leads-out.zip", "w") as archive:
        archive.writestr("../a.png", "")
    whole = (folder / "leads-out.zip").read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_table_of_mistakes_is_long_and_names_each_once() -> None:
    assert len(MISTAKES) >= 60
    assert len({tuple(arguments) for arguments, _ in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize(("arguments", "expected"), mostly_slow(MISTAKES, 60), ids=lambda value: " ".join(value)[:50])
def test_a_mistake_gets_an_answer_and_no_traceback(
    cli: Cli, arguments: list[str], expected: list[str], tmp_path: Path, cache: Path
) -> None:
    """Nothing half-written either: there is the account of the failure, and in the cache what is whole."""
    write_files(tmp_path)
    before = files_below(cache)
    outcome = cli(*arguments)
    assert outcome.code == 1
    assert "Error: " in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    for words in expected:
        assert words in outcome.err
    accounts = {"run.log", "failure.json", "config.yaml", "hydra.yaml", "overrides.yaml", "multirun.yaml"}
    assert {path.name for path in files_below(tmp_path / "outputs")} <= accounts
    assert {path.suffix for path in files_below(cache) - before} <= {".json", ".lock", ".npy"}  # .npy: decoded images
    assert not [path for path in cache.rglob(".*") if not path.name.endswith(".lock")]
    assert not (tmp_path / "harmed").exists()


def test_a_broken_yaml_is_named_and_does_not_hide_other_mistakes(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    broken = conf / "quant" / "mine.yaml"
    broken.write_text("name: mine\nbits: [2, 3\nlayers: all\n")
    with pytest.raises(Exception, match="mine") as caught:
        OmegaConf.load(broken)
    assert (explain(caught.value, conf) or "").startswith(f"{broken}, line 3: this is not valid YAML")
    assert "trainer.trainer" not in known_keys(conf)
    unknown = RuntimeError("Could not override 'quant.bit'.")
    assert "Did you mean 'quant.bits'?" in (explain(unknown, conf) or "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# @package _global_\nquant: {act_bit: 8}\n", ["mine.yaml, line 2", "quant.act_bit", "'quant.act_bits'?"]),
        ("# @package _global_\n\nsede: 1\n", ["mine.yaml, line 3", "'sede'", "Did you mean 'seed'?"]),
        (
            "# @package _global_\ntrainer:\n  epochs: 2\n  batch: 8\n",
            ["mine.yaml, line 4", "'trainer.batch'", "trainer.batch_size"],
        ),
        ("defaults:\n  - override /quant: mse\n", ["# @package _global_"]),
        (
            "# @package _global_\ndefaults:\n  - override /quant: [best, mse]\n",
            ["quant takes one option", "Choose one"],
        ),
    ],
)
def test_a_mistake_in_ones_own_experiment_is_told(cli: Cli, tmp_path: Path, content: str, words: list[str]) -> None:
    own = tmp_path / "own" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(content)
    outcome = cli(f"hydra.searchpath=[file://{tmp_path}/own]", "experiment=mine", *TINY)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    assert "plus sign" not in outcome.err


def test_a_misspelt_key_in_ones_own_preset_is_told_with_file_and_line(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "own" / "quant" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("bits: [4]\n# finer\ngranularty: channel\n")
    outcome = cli(f"hydra.searchpath=[file://{tmp_path}/own]", "quant=mine", *TINY)
    assert outcome.code == 1
    assert f"{own}, line 3: There is no key 'quant.granularty'. Did you mean 'quant.granularity'?" in outcome.err
    assert "plus sign" not in outcome.err
    outcome = cli(f"hydra.searchpath=[file://{tmp_path}/own]", "quant=mines", *TINY)
    assert "quant=mines is not known. Did you mean 'mine'?" in outcome.err


def test_ones_own_preset_is_found_in_a_sweep(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "own" / "quant" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [mse, _self_]\n\ngranularity: tensor\n")
    outcome = cli(f"hydra.searchpath=[file://{tmp_path}/own]", "quant=mine,mse", "quant.bits=4", *TINY, "-m")
    assert outcome.code == 0, outcome.err
    assert "│ quant=mine │" in outcome.out


@pytest.mark.slow
def test_the_traceback_flag_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "quant.bits=99", "--traceback", "tracking=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "quant.bits=99" in done.stderr


EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", mostly_slow(EXPERIMENTS))
def test_every_shipped_experiment_runs_as_a_multirun(cli: Cli, experiment: str, tmp_path: Path) -> None:
    """On few images and one epoch; the digits stand in for CIFAR-10, and 2 and 3 bits for its own widths."""
    outcome = cli(f"experiment={experiment}", "quant.bits=2,3", *FEW, "-m")
    assert outcome.code == 0, outcome.err
    assert "sweep quant.bits=2,3" in outcome.out
    assert len(list(tmp_path.glob("outputs/*/*/*/results.json"))) == 2


@pytest.mark.parametrize("folder", mostly_slow(["optimizer", "scheduler", "model"], 0))
def test_every_shipped_option_of_a_group_runs(cli: Cli, folder: str) -> None:
    few = ["data=digits", "data.train_limit=16", "data.test_limit=16", "trainer.epochs=1", "quant.bits=4"]
    few += [] if folder == "model" else ["model.depth=8"]
    for option in sorted(path.stem for path in (ROOT / "conf" / folder).glob("*.yaml")):
        more = ["model.target=torchvision.models.squeezenet1_1"] if option == "custom" else []
        outcome = cli(f"{folder}={option}", *few, *more)
        assert outcome.code == 0, f"{folder}={option}: {outcome.err}"


def test_the_notebook_experiment_is_the_notebook_to_the_letter(cli: Cli) -> None:
    shown = cli("experiment=notebook", "--cfg", "job").out
    for line in (
        "name: cifar10", "shortcut: conv", "lr: 0.022", "momentum: 0.9", "weight_decay: 9.0e-05", "epochs: 180",
        "batch_size: 160", "select: best_test", "sign_bit: extra", "alpha_rule: first_conv_std",
        "alpha_multiplier: 3.0", "granularity: model",
    ):  # fmt: skip
        assert line in shown, line
    assert "- 150\n  - 225" in shown
    assert "bits:\n  - 4\n  - 8" in shown


def test_a_list_of_bits_is_one_job_with_one_table(cli: Cli) -> None:
    outcome = cli(*TINY, "quant.bits=[2,5,8]")
    assert outcome.code == 0
    for bits in (2, 5, 8):  # the sign is stored, too
        assert f"notebook, {bits + 1} bits per weight (quant.bits={bits}): top-1" in outcome.out
    assert "95 % CI" in outcome.out
