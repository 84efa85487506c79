"""The packed file of docs/packed-format.md, which every job keeps."""

from pathlib import Path

from ptq_exp.export.formats import Format, Subject, Written, runner
from ptq_exp.export.inference import load
from ptq_exp.export.network_file import save_quantized
from ptq_exp.quantization.layers import quantized_layers


class Packed(Format):
    """Codes of b bits in b bits, in a safetensors file."""

    def write(self, subject: Subject, folder: Path, name: str) -> list[Written]:
        path = folder / f"{name}.safetensors"
        if not quantized_layers(subject.network):  # a float network, to compare with
            return [Written(path, "", "", lambda _: subject.network)]
        if not path.exists():
            save_quantized(subject.network, path, subject.about)
        like = subject.float_network
        return [
            Written(
                path, "PyTorch, ptq_exp.load", "packed",
                lambda file: runner(load(file, network=like).network),
            )
        ]  # fmt: skip
