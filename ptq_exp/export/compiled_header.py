"""A C header, verified by what a compiler makes of it: the weights that it decodes, and the sums that it computes."""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ptq_exp.evaluation.integers import accumulators
from ptq_exp.export.formats import NotInstalled, Runner, Subject, runner
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.modules import copy_network

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def load_header(path: Path, subject: Subject, names: dict[str, str], first: str) -> Runner:
    """`subject` in PyTorch, with the weights that C code decodes from the header.

    `names` are the identifiers of its layers, and `first` is the layer with an integer pass, or empty. Raises
    `NotInstalled` without a compiler, and `ValueError` if the header does not compile or if its integer pass differs
    from the integer reference in any sum of the subject's image.
    """
    network = copy_network(subject.network)
    layers = quantized_layers(network)
    if not layers:
        return runner(network)
    library = compiled(path, list(names.values()), names.get(first))
    for name, layer in layers.items():
        layer.layer.weight.data.copy_(_weights(library, names[name], layer.codes.shape))
    if first:
        codes, wanted, _ = accumulators(layers[first], subject.image[None])
        sums = first_sums(library, codes[0], wanted.shape[1:])
        if not torch.equal(sums.double(), wanted[0]):
            count = int((sums.double() != wanted[0]).sum())
            raise ValueError(f"{count} sums of {first} differ from those of the integer reference")
    return runner(network)


def compiled(path: Path, names: list[str], first: str | None) -> ctypes.CDLL:
    """The header as a library with `decode_NAME(float *weights, long count)` and `sums`."""
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if compiler is None:
        raise NotInstalled(f"not verified (needs a C compiler: {', '.join(COMPILERS)})")
    code = [f'#include "{path.resolve()}"']
    for name in names:
        code.append(f"void decode_{name}(float *weights, long count);")
        code.append(f"void decode_{name}(float *weights, long count)")
        code.append(f"{{ for (long i = 0; i < count; i++) weights[i] = {name}_weight(i); }}")
    if first:
        code.append("void sums(const int32_t *codes, int height, int width, int32_t *result);")
        code.append("void sums(const int32_t *codes, int height, int width, int32_t *result)")
        code.append(f"{{ {first}_sums(codes, height, width, result); }}")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "check.c"), Path(folder, "check.so")
        source.write_text("\n".join([*code, ""]), encoding="utf-8")
        done = subprocess.run(
            [compiler, *FLAGS, str(source), "-o", str(library)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(next(iter(done.stderr.splitlines()), "the compiler failed"))
        return ctypes.CDLL(str(library))


def _weights(library: ctypes.CDLL, name: str, shape: torch.Size) -> Tensor:
    """The weights of a layer as C decodes them."""
    values = torch.empty(shape)
    getattr(library, f"decode_{name}")(ctypes.c_void_p(values.data_ptr()), ctypes.c_long(values.numel()))
    return values


def first_sums(library: ctypes.CDLL, codes: Tensor, shape: torch.Size) -> Tensor:
    """The sums of the first convolution (channels, rows, columns), int32, for input codes (C, H, W)."""
    given, sums = codes.to(torch.int32).contiguous(), torch.empty(shape, dtype=torch.int32)
    height, width = given.shape[1:]
    library.sums(ctypes.c_void_p(given.data_ptr()), height, width, ctypes.c_void_p(sums.data_ptr()))
    return sums
