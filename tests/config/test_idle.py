"""Keys that are accepted and have no effect: each is named, with the reason, and none that has one."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ptq_exp
from ptq_exp.base.options import flatten
from ptq_exp.config.compose import compose
from ptq_exp.config.idle import without_effect
from ptq_exp.config.presets import files
from ptq_exp.quantization.idle import idle

Cli = Callable[..., Any]


def said(*words: str) -> list[str]:
    config = compose(*words)
    config.command = list(words)
    return without_effect(config)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("quant=mse quant.act_rule=percentile", "quant.act_rule has no effect without quant.act_bits."),
        ("quant=mse quant.act_coverage=all", "quant.act_coverage has no effect without quant.act_bits."),
        ("quant=mse quant.act_bits=8 quant.act_percentile=99", "without quant.act_rule=percentile"),
        ("quant=mse quant.act_bits=8 quant.act_alpha=3 quant.act_rule=mse", "has no effect with quant.act_alpha"),
        ("quant=quick quant.act_bits=8 quant.act_coverage=all quant.act_residual=true", "which contains it"),
        ("quant=mse quant.percentile=99", "quant.percentile has no effect without quant.alpha_rule=percentile."),
        ("quant=mse quant.alpha_multiplier=2", "without quant.alpha_rule=std or first_conv_std"),
        ("quant=best quant.sign_bit=extra", "whose codes need no sign"),
        ("quant=mse quant.reconstruction.steps=5", "steps has no effect with quant.rounding=nearest."),
        ("quant=brecq quant.reconstruction.distill_mixup=.5", "with quant.reconstruction.distill_steps=0"),
        ("quant=mse quant.calibration_seed=1", "quant.calibration_seed has no effect on the quantized network"),
        ("quant=best quant.mixed_candidates=[2,3]", "quant.mixed_candidates has no effect without quant.mixed=true."),
        ("quant=mixed quant.bits=3 quant.mean_bits=2.5", "quant.bits has no effect with quant.mean_bits."),
        ("checkpoint=net.pt trainer.epochs=3", "trainer.epochs has no effect with a checkpoint, which is not trained."),
        ("checkpoint=net.pt optimizer=adamw", "optimizer has no effect with a checkpoint"),
        ("data=digits data.root=x", "data.root has no effect with data=digits"),
        ("data=digits data.test_share=.5", "data.test_share has no effect without data=image_folder."),
        ("tracking=none tracking.uri=x", "tracking.uri has no effect without tracking=mlflow."),
        ("search=fewest search.act_bits=[4]", "search.act_bits has no effect without activations in search.over."),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_named(words: str, sentence: str) -> None:
    (found,) = said(*words.split())
    assert sentence in found


@pytest.mark.parametrize(
    "words",
    [
        "quant=quick quant.act_bits=8 quant.act_rule=percentile quant.act_percentile=99 quant.calibration_seed=1",
        "quant=best quant.reconstruction.steps=5 quant.reconstruction.distill_mixup=.5 quant.lp_norm=2",
        "quant=notebook quant.alpha_multiplier=2 quant.sign_bit=included quant.bits=4",
        "search=fewest search.over=[weights,activations] search.act_bits=[4] quant.act_rule=mse",
        "search=fewest quant=mse quant.mixed_candidates=[2,4] quant.calibration_images=256",
        "quant=mse quant.act_bits=4 quant.act_alpha=6 quant.calibration_images=256",
        "quant=mse quant.act_bits=4 quant.act_rule=mine quant.act_percentile=99",
        "checkpoint=https://host/x.pth data=image_folder data.root=x data.timeout=3",
        "data=digits data.root=null quant=mse quant.reconstruction.distill_steps=5 quant.reconstruction.memory_gib=1",
        "trainer.epochs=3 optimizer=adamw data=image_folder data.root=x data.test_share=.5 tracking.uri=x",
        "quant=mixed quant.mixed_candidates=[2,3] quant.bits=3",
        "quant=mse quant.bias_correction=true quant.calibration_images=64",
        "quant.alpha_rule=mine quant.percentile=3",  # a rule of the user's may read it
    ],
)
def test_keys_with_an_effect_are_not(words: str) -> None:
    assert said(*words.split()) == []


def test_presets_change_nothing_without_effect() -> None:
    default = flatten(compose("quant=notebook").quant)
    for file in files("quant"):
        options = compose(f"quant={file.stem}").quant
        changed = {key for key, value in flatten(options).items() if value != default[key]}
        left = {sentence.split()[0].removeprefix("quant.") for sentence in idle(options, changed)}
        # Presets say how activations and mixed precision would be done if they were asked for.
        assert all("act_" in key or key in ("mixed_candidates", "sign_bit") for key in left), file


def test_the_job_warns_once(cli: Cli) -> None:
    found = cli("data=digits", "data.train_limit=32", "data.test_limit=16", "trainer.epochs=1", "model.depth=8",
                "quant=mse", "quant.bits=4,8", "quant.act_rule=mse", "tracking=none", "-m")  # fmt: skip
    assert found.code == 0
    assert found.out.count("quant.act_rule has no effect without quant.act_bits.") == 1


def test_python_warns_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    images = torch.randn(8, 3, 8, 8)
    with pytest.warns(UserWarning, match="quant.act_rule has no effect without quant.act_bits"):
        ptq_exp.quantize(net, images, bits=4, method="mse", act_rule="mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ptq_exp.quantize(net, images, bits=4, method="mse", act_rule="percentile", act_bits=8, act_percentile=99.0)
