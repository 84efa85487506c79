"""Evaluation of one bit width: `python -m bench.evaluation [--checkpoint FILE]`.

Times the notebook's validation loop, a plain eager loop over a tensor in memory, and ours on the same quantized network
and images, and compares the predictions. The images are smoothed random noise in the shape of CIFAR images.
"""

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench import notebook
from bench.harness import floor_seconds, machine_rates, resnet20_cost, rows_of, save, take_turns
from ptq_exp.config import Config
from ptq_exp.data.loader import Normalizer
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import load_weights, read_checkpoint
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize

BATCH = 160


def main() -> None:
    """Time the evaluations, alternating between the kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", default=None, help="a ResNet-20; default: random weights")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    # Not pick_device: it also sets the memory allocator, which would speed up the loops that ours is compared with.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False
    model = _network(arguments.checkpoint).to(device)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(arguments.images, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    images, labels = (255 * smooth).byte(), torch.randint(0, 10, (arguments.images,), generator=generator)
    normalize = Normalizer(notebook.MEAN, notebook.STD, device)
    calibration = Calibration(normalize(images[:256].to(device)))
    weights_only = quantize(model, QuantConfig(granularity="channel", alpha_rule="mse"), 4, calibration).network
    both = quantize(model, QuantConfig(granularity="channel", alpha_rule="mse", act_bits=8), 4, calibration).network

    here, answers = (images.to(device), labels.to(device)), {}
    baseline, plain = "the notebook's validation loop", "plain loop over a tensor, batch 160"
    batches = notebook.loader(images, labels, train=False)

    def remember(name: str, predict: Callable[[], Tensor]) -> Callable[[], None]:
        def case() -> None:
            answers[name] = predict()

        return case

    eager = copy.deepcopy(weights_only).to(memory_format=torch.contiguous_format)
    predict: dict[str, Callable[[], Tensor]] = {
        baseline: lambda: notebook.validate(eager, batches, device),
        plain: lambda: _plain(eager, here[0], normalize),
        "ours, weights quantized": lambda: evaluate(weights_only, *here, normalize).predictions,
        "ours, activations quantized, too": lambda: evaluate(both, *here, normalize).predictions,
        "ours, float": lambda: evaluate(model, *here, normalize).predictions,
    }
    seconds = take_turns({name: remember(name, go) for name, go in predict.items()}, arguments.rounds, device)
    rows = rows_of(seconds, baseline)
    time = {row["case"]: row["seconds"] for row in rows}
    ours = time["ours, weights quantized"]
    different = int((answers[baseline] != answers["ours, weights quantized"]).sum())
    floor = floor_seconds(resnet20_cost(arguments.images), machine_rates(device))
    both_seconds = time["ours, activations quantized, too"]
    notes = [
        f"Ours takes {ours / time[baseline]:.3f} times as long as the notebook's loop and "
        f"{ours / time[plain]:.3f} times as long as the plain loop; "
        f"{different} of {arguments.images:,} predictions differ from those of the notebook's loop.",
        f"With quantized activations, evaluation takes {both_seconds / ours:.2f} times as long as with quantized "
        "weights only.",
        f"Lower bound at this machine's float32 rates: {floor:.3f} s; ours takes {ours / floor:.1f} times that.",
    ]
    content = {"unit": f"seconds for {arguments.images:,} images", "ratio_of": "relative to the notebook"}
    save("evaluation", device, content | {"rows": rows, "floor_seconds": floor, "notes": notes})


def _network(path: str | None) -> nn.Module:
    if path is None:
        torch.manual_seed(0)
        return build_model("resnet", 10, depth=20, shortcut="conv").eval().to(memory_format=torch.channels_last)
    checkpoint = read_checkpoint(path, Config().cache, 15.0)
    model = build_model(checkpoint.architecture, checkpoint.classes, **checkpoint.options)
    load_weights(model, checkpoint)
    return model.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def _plain(model: nn.Module, images: Tensor, normalize: Normalizer) -> Tensor:
    model.eval()
    return torch.cat([model(normalize(chunk).contiguous()).argmax(1) for chunk in images.split(BATCH)]).cpu()


if __name__ == "__main__":
    main()
