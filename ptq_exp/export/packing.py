"""Integer codes of few bits in bytes: a stream of bits, or five codes of three levels to a byte."""

import numpy as np
import torch
from torch import Tensor

from ptq_exp.quantization.options import TERNARY

PER_BYTE = 5  # codes of three levels: 3^5 = 243 values fit a byte


def pack(codes: Tensor, bits: float) -> Tensor:
    """Codes from 0 to 2^bits - 1 (integers, any shape) as a uint8 vector of ceil(n * bits / 8) bytes.

    The codes form one stream of bits, each with its lowest bit first, which fills every byte from its lowest bit. The
    last byte is padded with zeros. `bits` is at most 32. With 1.6 bits, the codes are 0, 1 and 2, and a byte is
    c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4 for five of them.
    """
    flat = codes.detach().cpu().flatten().to(torch.int64).numpy()
    if bits == TERNARY:
        groups = np.pad(flat, (0, -len(flat) % PER_BYTE)).reshape(-1, PER_BYTE)
        return torch.from_numpy((groups @ 3 ** np.arange(PER_BYTE)).astype(np.uint8))
    stream = np.unpackbits(flat.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, count=int(bits), bitorder="little")
    return torch.from_numpy(np.packbits(stream, bitorder="little"))


def unpack(packed: Tensor, bits: float, count: int) -> Tensor:
    """The inverse of `pack`: `count` codes, an int32 vector."""
    given = packed.cpu().numpy()
    if bits == TERNARY:
        codes = (given[:, None] // 3 ** np.arange(PER_BYTE) % 3).flatten()[:count]
    else:
        stream = np.unpackbits(given, count=count * int(bits), bitorder="little").reshape(count, int(bits))
        codes = stream @ (1 << np.arange(int(bits)))
    return torch.from_numpy(codes.astype(np.int32))


def packed_bytes(bits: float, count: int) -> int:
    """The length of the result of `pack` for `count` codes."""
    return -(-count // PER_BYTE) if bits == TERNARY else -(-count * int(bits) // 8)
