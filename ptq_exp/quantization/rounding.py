"""Which layers are quantized to how many bits, and their weights rounded: to nearest, or learned."""

import fnmatch
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.base.tensors import load_checked, save_checked
from ptq_exp.quantization import reconstruction
from ptq_exp.quantization.grids import parameters, weight_grid
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.modules import load_unique_state, replace_module, unique_state
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.progress import Progress, shown
from ptq_exp.quantization.ranges import RangeContext, find_ranges
from ptq_exp.quantization.sparsity import groups_with_zeros, zeros_of

EIGHT = 8
RECONSTRUCTION_VERSION = 4  # raised when learned rounding changes, so that no older unit is taken from the store


def target_layers(model: nn.Module, kinds: str = "conv") -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weights are quantized, by name, in the network's order; `kinds` is conv or all."""
    wanted = nn.Conv2d if kinds == "conv" else nn.Conv2d | nn.Linear
    return {name: module for name, module in model.named_modules() if isinstance(module, wanted)}


def plan_bits(model: nn.Module, config: QuantConfig, bits: int) -> dict[str, float]:
    """The bit width of every layer that is quantized: a pattern overrules the policy for first and last layer.

    Raises `UserError` for a pattern in `quant.layer_bits` that no layer's name matches.
    """
    names = list(target_layers(model, config.layers))
    plan: dict[str, float] = dict.fromkeys(names, bits)
    if config.first_and_last == "eight":
        plan |= {names[0]: EIGHT, names[-1]: EIGHT}
    chosen: set[str] = set()
    for pattern, width in config.layer_bits.items():
        matched = fnmatch.filter(names, pattern)
        chosen |= set(matched)
        if not matched:
            raise UserError(
                f"quant.layer_bits: '{pattern}' matches no layer.{did_you_mean(pattern, names)} "
                f"Layers: {', '.join(names)}."
            )
        plan |= dict.fromkeys(matched, width)
    if config.first_and_last == "float":
        for name in {names[0], names[-1]} - chosen:
            del plan[name]
    return plan


def round_weights(network: nn.Module, config: QuantConfig, plan: dict[str, float]) -> None:
    """Replace the layers of `plan` by quantized ones, rounded to nearest, in place."""
    everything = target_layers(network, config.layers)
    layers = {name: everything[name] for name in plan}
    first_conv = next(iter(everything.values())).weight.detach()
    grids = {name: weight_grid(bits, config.sign_bit, config.grid) for name, bits in plan.items()}
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    zeros = groups_with_zeros(weights, config.granularity)
    numbers = (config.alpha_multiplier, config.percentile, config.lp_norm)
    contexts = {
        name: RangeContext(first_conv, grid, config.grid, *numbers, zeros[name]) for name, grid in grids.items()
    }
    ranges = find_ranges(weights, contexts, config.alpha_rule, config.granularity)
    for name, layer in layers.items():
        scale, zero_point = parameters(grids[name], config.grid, *ranges[name], zeros[name])
        stay = zeros_of(weights[name], zeros[name])
        replace_module(network, name, QuantizedLayer(layer, grids[name], scale, zero_point, plan[name], stay))


def units(network: nn.Module, rounding: str) -> list[str]:
    """What is reconstructed, in the network's order: every layer, or every block and each layer outside of one."""
    layers = list(quantized_layers(network))
    if rounding == "adaround":
        return layers
    blocks = [name for name, module in network.named_modules() if getattr(module, "reconstruction_unit", False)]
    found: list[str] = []
    for layer in layers:
        unit = next((block for block in blocks if layer.startswith(f"{block}.")), layer)
        if unit not in found:
            found.append(unit)
    return found


def learn_rounding(
    network: nn.Module,
    reference: nn.Module,
    weights: dict[str, Tensor],
    config: QuantConfig,
    plan: dict[str, float],
    images: Tensor,
    seed: int,
    progress: Progress | None,
    store: Path | None,
) -> None:
    """AdaRound, block reconstruction and distillation, as configured, in place.

    Nothing is learned where all weights have more than `reconstruction.up_to_bits` and the activations more than
    `reconstruction.act_up_to_bits`. A unit that the folder `store` holds, of the same `plan`, is taken from there.
    """
    how = config.reconstruction
    coarse_activations = config.act_bits is not None and config.act_bits <= how.act_up_to_bits
    if min(plan.values()) > how.up_to_bits and not coarse_activations:
        return
    settings = reconstruction.Settings(
        how.steps, how.batch_size, how.lr, how.act_lr, how.penalty, how.drop if config.act_bits is not None else 0.0
    )
    parts = units(network, config.rounding) if config.rounding != "nearest" else []
    open_weights = dict(weights)
    for number, name in enumerate(parts):
        # A layer that two units share is learned with the first.
        own = {
            n: open_weights.pop(n)
            for n in reconstruction.layers_of(network, network.get_submodule(name))
            if n in open_weights
        }
        torch.manual_seed(seed * 1000 + number)
        file = store / f"{number:03d}.safetensors" if store else None
        if file and _restore(network.get_submodule(name), file, plan):
            continue
        with shown(progress, f"Reconstructing {name} ({number + 1}/{len(parts)})", how.steps) as advance:
            reconstruction.reconstruct_unit(network, reference, name, images, own, settings, advance)
        if file:
            _keep(network.get_submodule(name), file, plan)
    whole = store / "distilled.safetensors" if store else None
    if how.distill_steps and not (whole and _restore(network, whole, plan)):
        torch.manual_seed(seed * 1000 + 999)
        with shown(progress, "Distilling the network", how.distill_steps) as advance:
            reconstruction.distill(network, reference, images, how, advance)
        if whole:
            _keep(network, whole, plan)


def _keep(unit: nn.Module, file: Path, plan: dict[str, float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")  # another job may be at the same unit
    save_checked({key: x.cpu().contiguous() for key, x in unique_state(unit).items()}, partial, {"plan": plan})
    partial.replace(file)


def _restore(unit: nn.Module, file: Path, plan: dict[str, float]) -> bool:
    """Load a unit reconstructed before; False where there is none, or of other bit widths, or the file is damaged."""
    try:
        tensors, about = load_checked(file)
        if about["plan"] != plan:  # sensitivities are measured: another machine's may give another plan
            return False
        load_unique_state(unit, tensors)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError):
        return False
    return True
