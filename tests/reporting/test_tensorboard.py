"""What TensorBoard reads from the event files: curves, training, hyperparameters, figures, tables, nothing twice."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Outcome
from PIL import Image

from ptq_exp.results.files import read_job, read_sweep

Cli = Callable[..., Outcome]
RUNS = "outputs/tensorboard"


class Run:
    """The event files of one run, as TensorBoard reads them."""

    def __init__(self, folder: Path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self.events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
        self.events.Reload()

    @property
    def scalars(self) -> set[str]:
        return set(self.events.Tags()["scalars"])

    def points(self, tag: str) -> dict[int, float]:
        found = self.events.Scalars(tag)
        assert len({point.step for point in found}) == len(found)  # nothing twice
        return {point.step: point.value for point in found}

    def text(self) -> str:
        (value,) = self.events.Tensors("table/text_summary")
        return str(value.tensor_proto.string_val[0].decode())

    def figures(self) -> dict[str, bytes]:
        return {
            tag.removeprefix("figures/"): self.events.Images(tag)[0].encoded_image_string
            for tag in self.events.Tags()["images"]
        }

    def hyperparameters(self) -> dict[str, Any]:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        data = HParamsPluginData.FromString(
            self.events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        )
        return {key: getattr(value, value.WhichOneof("kind")) for key, value in data.session_start_info.hparams.items()}


def all_runs(folder: Path) -> dict[str, Run]:
    """The runs below a folder by the names that TensorBoard shows."""
    paths = sorted({path.parent for path in folder.rglob("events.out.*")})
    return {str(path.relative_to(folder)): Run(path) for path in paths}


def test_a_sweep_is_in_the_event_files(cli: Cli, tmp_path: Path) -> None:
    few = [*TINY, "trainer.epochs=2", f"cache_dir={tmp_path / 'cache'}"]  # its own cache: the first job trains
    outcome = cli(*few, "quant.bits=3,6", "quant.alpha_multiplier=2,3", "tracking=tensorboard", "-m")
    assert outcome.code == 0, outcome.err
    assert f"tensorboard --logdir {RUNS}" in outcome.out
    assert not list(tmp_path.rglob("*.db"))
    (folder,) = (tmp_path / RUNS).iterdir()
    (results,) = (path.parent for path in tmp_path.glob("outputs/*/*/sweep.json"))
    assert folder.name == " ".join(results.parts[-2:])
    found, sweep = all_runs(folder), read_sweep(results)
    curves = {f"curve quant.alpha_multiplier={value}" for value in (2, 3)}
    jobs = {f"{job.name} ({job.folder.name})": job for job in sweep.jobs}
    assert set(found) == {"sweep", *curves, *jobs}
    for name, job in jobs.items():
        run, (result,) = found[name], job.results
        assert run.points("by_bits/top1") == pytest.approx({result.bits: result.top1})
        assert run.points("by_bits/loss") == pytest.approx({result.bits: result.loss})
        shown = run.hyperparameters()
        assert (shown["quant.bits"], shown["data.used"]) == (result.bits, "digits")
        assert shown["quant.alpha_multiplier"] == job.params["quant.alpha_multiplier"]  # also where it is the default
        assert run.points("hparams/top1") == pytest.approx({0: result.top1})
        figures = {path.stem: path.read_bytes() for path in job.artifacts.glob("*.png")}
        assert run.figures() == figures
        assert f"| {result.bits} |" in run.text()
    trained, *others = (found[name] for name in jobs)
    assert set(trained.points("training/train_loss")) == {1, 2}
    assert not [tag for run in others for tag in run.scalars if tag.startswith("training/")]
    expected = {job.results[0].bits: job.results[0].top1 for job in sweep.jobs if "multiplier=2" in job.overrides}
    assert found["curve quant.alpha_multiplier=2"].points("by_bits/top1") == pytest.approx(expected)
    assert found["sweep"].text() == (results / "sweep" / "table.md").read_text()
    with Image.open(io.BytesIO(found["sweep"].figures()["accuracy_against_bits"])) as figure:
        assert figure.width == 1050


def test_a_job_of_several_bit_widths_is_a_curve_and_a_line_for_each(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    outcome = cli(*TINY, "quant.bits=[3,6]", "tracking=none", f"tracking.tensorboard={target}")
    assert outcome.code == 0, outcome.err
    (file,) = tmp_path.glob("outputs/*/*/results.json")
    record = read_job(file.parent)
    assert record is not None
    (folder,) = target.iterdir()
    found = all_runs(folder)
    assert set(found) == {record.name, f"{record.name}/w3", f"{record.name}/w6"}
    assert found[record.name].points("by_bits/top1") == pytest.approx({row.bits: row.top1 for row in record.results})
    for row in record.results:
        run = found[f"{record.name}/w{row.bits}"]
        assert run.hyperparameters()["quant.bits"] == row.bits
        assert run.points("hparams/top1") == pytest.approx({0: row.top1})


def test_the_answer_of_a_search_is_in_the_event_files(cli: Cli, tmp_path: Path) -> None:
    few = ["search.max_drop=40", "search.bits=[8,4]", "search.mixed=false"]  # 48 images can confirm 40 points
    outcome = cli(*TINY, "quant=mse", "search=fewest", *few, "tracking=tensorboard")
    assert outcome.code == 0, outcome.err
    (folder,) = (tmp_path / RUNS).iterdir()
    text = all_runs(folder)["sweep"].text()
    assert text.startswith("**4-bit weights: ")
    assert "2 trials in" in text
    (table,) = tmp_path.glob("outputs/*/*/sweep/table.md")
    assert text == table.read_text()


def test_resuming_adds_what_is_missing_and_nothing_twice(cli: Cli, tmp_path: Path) -> None:
    words = [*TINY, "quant.bits=3,6", f"cache_dir={tmp_path / 'cache'}", "hydra.sweep.dir=outputs/a/b", "-m"]
    assert cli(*words, "tracking=none").code == 0
    assert not (tmp_path / RUNS).exists()
    for _ in range(2):  # the jobs were never written to TensorBoard, then they were
        outcome = cli(*words, "tracking=tensorboard", "resume=true")
        assert outcome.code == 0, outcome.err
        found = all_runs(tmp_path / RUNS / "a b")
        assert len(found) == 4  # two jobs, their curve and the sweep
        assert set(found["curve"].points("by_bits/top1")) == {3, 6}
        for run in found.values():
            for tag in run.scalars:
                run.points(tag)


@pytest.mark.parametrize("words", [["quant.bits=3,6", "-m"], ["quant.bits=3"]])
def test_without_tensorboard_a_sentence_says_how_to_install_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    outcome = cli(*TINY, "tracking=tensorboard", *words)
    assert outcome.code == 1
    assert "pip install 'ptq_exp[tensorboard]'" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("results.json"))  # before any work
