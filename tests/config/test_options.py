"""What the fields of the options allow, and that files, schema and registries agree."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, mostly_slow
from hydra import compose as compose_by_hydra
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ptq_exp.base.errors import UserError
from ptq_exp.base.options import as_typed, check_options, flatten, option
from ptq_exp.config import Config, presets, validate
from ptq_exp.config.compose import compose
from ptq_exp.config.mistakes import OPEN_GROUPS, known_keys
from ptq_exp.data.options import DataOptions
from ptq_exp.quantization.grids import GRIDS
from ptq_exp.quantization.options import QuantConfig

CONF = ROOT / "conf"


@dataclass
class Inner:
    share: float = option(0.5, "a share", at_least=0, below=1)


@dataclass
class Options:
    kind: str = option("plain", "a kind", choices=["plain", "fancy"])
    count: int | None = option(None, "a count", at_least=1)
    percent: float = option(50.0, "a percentage", above=0, at_most=100)
    step: float = option(0.1, "a step", above=0)
    scales: list[float] = option([1.0], "scales", above=0)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "fanci"}, "group.kind=fanci is not known. Did you mean 'fancy'? Allowed: fancy, plain."),
        ({"count": 0}, "group.count=0 must be at least 1, or null."),
        ({"percent": 0.0}, "group.percent=0.0 must be above 0 and at most 100."),
        ({"percent": 100.5}, "group.percent=100.5 must be above 0 and at most 100."),
        ({"percent": float("nan")}, "group.percent=nan must be above 0 and at most 100."),
        ({"step": 0}, "group.step=0 must be positive."),
        ({"scales": [1.0, -1.0]}, "group.scales=[1.0, -1.0]: every value must be positive."),
        ({"inner": Inner(share=1.0)}, "group.inner.share=1.0 must be at least 0 and below 1."),
    ],
)
def test_a_value_that_a_field_does_not_allow_is_refused_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_options(Options(**changes), "group.")
    assert str(error.value) == said


def test_bounds_that_are_allowed_pass() -> None:
    check_options(Options(kind="fancy", count=1, percent=100.0, scales=[], inner=Inner(share=0.0)), "group.")
    check_options(Options(), "group.")


def test_two_objects_share_no_list() -> None:
    Options().scales.append(2.0)
    assert Options().scales == [1.0]


@pytest.mark.parametrize(
    "data",
    [DataOptions(mean=[0.5, 0.5]), DataOptions(mean=[0.5], std=[0.5, 0.5, 0.5]), DataOptions(std=[0.5, 0.5, 0.0]),
     DataOptions(timeout=0.0), DataOptions(resize=0), DataOptions(crop=8), DataOptions(test_share=1.0),
     DataOptions(validation_images=-1), DataOptions(classes=["a"]), DataOptions(name="digits", labels="a.csv")],
)  # fmt: skip
def test_data_options_that_cannot_be_are_refused(data: DataOptions) -> None:
    with pytest.raises(UserError, match=r"data\.\w+"):
        validate(Config(data=data))


def test_the_grids_of_the_options_are_those_that_there_are() -> None:
    (grid,) = (field for field in QuantConfig.__dataclass_fields__.values() if field.name == "grid")
    assert sorted(grid.metadata["choices"]) == sorted(GRIDS)


def test_every_key_says_what_it_means() -> None:
    from ptq_exp.config.reference import page

    silent = {"quant.name"}  # it is filled in
    keys = set(flatten(Config())) - {key for key in flatten(Config()) if key.startswith(OPEN_GROUPS)} - silent
    shown = page()
    assert [key for key in sorted(keys) if f"| `{key}` |" not in shown] == []


def test_a_file_sets_no_key_to_the_value_that_it_has_without_it() -> None:
    """The one source of a value is its dataclass, or the file that another one inherits from."""
    defaults = flatten(Config())
    for group in ("data", "trainer", "quant", "tracking"):
        for path in (CONF / group).glob("*.yaml"):
            if presets.GLOBAL not in path.read_text() and path.stem != presets.default_options()[group]:
                content = yaml.safe_load(path.read_text()) or {}
                bases = [presets.option(group, base) for base in content.pop("defaults", []) if base != "_self_"]
                before = defaults | {key: value for base in bases for key, value in flatten(base, f"{group}.").items()}
                same = [key for key, value in flatten(content, f"{group}.").items() if before.get(key, "none") == value]
                assert [key for key in same if key != "quant.bits"] == [], path  # a preset states its bits


def test_the_known_keys_are_the_schema_and_the_files_of_the_open_groups() -> None:
    keys = known_keys(CONF)
    assert {"quant", "quant.bits", "quant.reconstruction.steps", "optimizer.lr", "scheduler.max_lr", "seed"} <= keys
    assert "trainer.trainer" not in keys


ANY_GROUP = [
    [f"{path.parent.name}={path.stem}"]
    for group in ("model", "data", "optimizer", "scheduler", "trainer", "quant", "tracking", "experiment")
    for path in sorted((CONF / group).glob("*.yaml"))
]
CHANGED = [
    ["trainer=fast", "optimizer=sgd", "trainer.epochs=3"],
    ["scheduler=cosine", "trainer.epochs=7"],
    ["quant=best", "quant.alpha_multiplier=2", "quant.bits=[3,4]", "quant.reconstruction.lr=1e-3", "quant.act_bits=8"],
    ["experiment=notebook", "model.depth=8", "+optimizer.dampening=0.1", "quant=mse", "seed=3", "data.root=some/where"],
]


@pytest.mark.parametrize("words", mostly_slow([[], *CHANGED, *ANY_GROUP], 12), ids=" ".join)
def test_without_hydra_the_same_words_give_the_same_configuration(words: list[str]) -> None:
    ConfigStore.instance().store(name="schema", node=Config(model={}, optimizer={}, scheduler={}))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose_by_hydra("config", words)
    there = {key: node[key] for key in node if not OmegaConf.is_interpolation(node, key)}
    expected = {
        key: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for key, v in there.items()
    }
    ours = asdict(compose(*words))
    assert {key: ours[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [(["quant=bset"], "quant=bset is not known. Did you mean 'best'?"), (["quant.bitz=4"], "'quant.bitz'"),
     (["sede=1"], "There is no key 'sede'. Did you mean 'seed'?")],
)  # fmt: skip
def test_without_hydra_a_mistake_is_told_too(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        compose(*words)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2"), (2.5, "2.5"), (1e-05, "1e-05"), (20, "20"), (None, "null"), (True, "true"), ("best", "best"),
     ([1.6, 2, 8], "[1.6,2,8]"), (["weights"], '["weights"]'), ({}, "{}"), ("v2.0", "v2.0")],
)  # fmt: skip
def test_hydra_reads_a_value_that_is_written_as_typed(value: Any, text: str) -> None:
    assert as_typed(value) == text
    assert OverridesParser.create().parse_override(f"key={text}").value() == value


def test_a_number_is_read_as_hydra_reads_it(tmp_path: Path) -> None:
    """YAML 1.1 takes 5e-4 for a text."""
    for text in ("5e-4", "1E3", "-2e+1", ".5e-1", "1_0.5e2", "0x1f", "1.5", "12", "abc", "1e", "null", "true"):
        (tmp_path / "one.yaml").write_text(f"key: {text}\n")
        assert presets.parse(f"key: {text}") == OmegaConf.to_container(OmegaConf.load(tmp_path / "one.yaml")), text
