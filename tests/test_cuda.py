"""On a CUDA device: the same answers as on the CPU. Needs neither Hydra nor MLflow."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ptq_exp.checkpoints import load_or_train
from ptq_exp.config import Config, DataConfig, TrackingConfig
from ptq_exp.data import load_dataset
from ptq_exp.evaluation import evaluate
from ptq_exp.experiment import pick_device, run
from ptq_exp.quantization.apply import quantize

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_job_runs_on_cuda_and_reaches_98_percent(tmp_path: Path) -> None:
    config = Config(
        data=DataConfig(name="digits"), device="cuda", cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "run"), tracking=TrackingConfig(enabled=False),
    )  # fmt: skip
    metrics = run(config)
    assert metrics["top1_float"] >= 98
    assert metrics["top1_w8"] >= 98
    assert (tmp_path / "run" / "results.json").exists()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    device = pick_device("cuda")
    config = Config(data=DataConfig(name="digits", train_limit=256), cache_dir=str(tmp_path))
    config = replace(config, trainer=replace(config.trainer, epochs=3), checkpoint="train")
    data = load_dataset(config, device)
    first, second = (load_or_train(config, data, device).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_evaluation_and_quantization_agree_with_the_cpu(tmp_path: Path) -> None:
    config = Config(data=DataConfig(name="digits", train_limit=512), cache_dir=str(tmp_path))
    config = replace(config, trainer=replace(config.trainer, epochs=4))
    results = {}
    for name in ("cuda", "cpu"):  # trained on the first, found in the store by the second
        device = pick_device(name)
        data = load_dataset(config, device)
        trained = load_or_train(config, data, device)
        calibration = trained.normalize(data.train_images[:128])
        quant = replace(config.quant, act_bits=4)
        quantized, report = quantize(trained.model, quant, 4, calibration)
        float_result = evaluate(trained.model, data.test_images, data.test_labels, trained.normalize)
        result = evaluate(quantized, data.test_images, data.test_labels, trained.normalize)
        results[name] = (float_result, result, report)
    assert results["cuda"][0].agreement(results["cpu"][0]) >= 99.5
    assert results["cuda"][1].agreement(results["cpu"][1]) >= 98.5  # a 4-bit level may fall the other way
    for row, other in zip(results["cuda"][2].layers, results["cpu"][2].layers, strict=True):
        assert (row.levels_used, row.levels_available) == (other.levels_used, other.levels_available)
        assert row.alpha == pytest.approx(other.alpha, rel=1e-5)
