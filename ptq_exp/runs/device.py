"""The device that a job runs on."""

import platform

import torch

from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.base.machine import claim, keep_freed_memory


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is an unclaimed CUDA GPU if there is one, else the CPU.

    Raises `UserError` if the device does not exist.
    """
    # Float32 means float32: by default cuDNN's convolutions drop 13 bits, which would blur 8-bit comparisons. Also,
    # the same seed must give the same weights, so cuDNN may not choose different algorithms from run to run.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    keep_freed_memory()
    if name == "auto" and torch.cuda.device_count() > 1:
        cards = [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]
        name = f"cuda:{claim(cards)}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(check_device(name))
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs are created on the current device
    return device


def check_device(name: str) -> str:
    """The device's name in torch: `gpu` becomes `cuda`. Raises `UserError` if there is no such device."""
    kind, colon, number = name.partition(":")
    kind = "cuda" if kind == "gpu" else kind
    allowed = ["auto", "cpu", "cuda", "cuda:N with a number N"]
    if kind not in allowed or (colon and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"device={name} is not known.{did_you_mean(kind, allowed[:3])} Allowed: {', '.join(allowed)}.")
    if kind == "cuda" and int(number or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"device={name} is not available: torch finds {count} CUDA devices. Use device=cpu.")
    return f"{kind}{colon}{number}"


def hardware(device: torch.device) -> str:
    """A description of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
