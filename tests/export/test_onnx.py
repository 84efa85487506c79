"""ONNX files: what is in them, and that ONNX Runtime and OpenVINO compute what was simulated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet, VisionTransformer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from conftest import mostly_slow  # noqa: E402
from exported import EVERYTHING, random_tests, small_resnet, subject_of  # noqa: E402

from ptq_exp.base.errors import UserError  # noqa: E402
from ptq_exp.export.formats import Subject  # noqa: E402
from ptq_exp.export.onnx import Onnx  # noqa: E402
from ptq_exp.export.verification import export_all  # noqa: E402

TYPES = {onnx.TensorProto.UINT2: "uint2", onnx.TensorProto.INT2: "int2", onnx.TensorProto.UINT4: "uint4",
         onnx.TensorProto.INT4: "int4", onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT8: "int8",
         onnx.TensorProto.INT16: "int16"}  # fmt: skip


def kinds_of_codes(path: Path) -> dict[str, str]:
    return {t.name: TYPES[t.data_type] for t in onnx.load(path).graph.initializer if t.name.endswith(".codes")}


WEIGHTS = [
    (2, {"grid": "float_zero_point"}, "uint2"), (2, {"grid": "symmetric"}, "int2"),
    (3, {"grid": "asymmetric"}, "uint4"),
    (4, {"grid": "symmetric"}, "int4"), (4, {"grid": "float_zero_point"}, "uint4"), (4, {"grid": "apot"}, "uint4"),
    (4, {"grid": "power_of_two"}, "int4"), (4, {"sign_bit": "extra", "granularity": "model"}, "int8"),
    (8, {"grid": "symmetric"}, "int8"), (8, {"grid": "float_zero_point"}, "uint8"),
    (12, {"grid": "symmetric"}, "int16"),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "changes", "kind"), mostly_slow(WEIGHTS, 2))
def test_weights_are_stored_as_codes_and_both_runtimes_predict_the_same(
    bits: int, changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    subject = subject_of(small_resnet(), bits, **changes)
    found = export_all(["onnx"], subject, tmp_path / "q", random_tests(subject))
    assert set(kinds_of_codes(tmp_path / "q.onnx").values()) == {kind}
    for export in found:
        assert (export.agreement, export.note) == (100.0, ""), export
        assert export.largest_difference is not None
        assert export.largest_difference < 1e-3
    assert [export.runtime for export in found] == ["ONNX Runtime", "OpenVINO"]
    assert (tmp_path / "q_opset21.onnx").exists() == kind.endswith("int2")
    floats = [t for t in onnx.load(tmp_path / "q.onnx").graph.initializer if t.data_type == 1 and len(t.dims) == 4]
    assert all(t.dims[1] == 1 for t in floats)  # only offsets and scales: no weights


@pytest.mark.parametrize("bits", mostly_slow([4, 2, 3, 7, 8]))
def test_activations_are_codes_and_convolutions_compute_with_integers(bits: int, tmp_path: Path) -> None:
    import onnxruntime

    subject = subject_of(small_resnet(), bits, **EVERYTHING)
    found = export_all(["onnx"], subject, tmp_path / "q", random_tests(subject))
    assert all(export.agreement is not None and export.agreement >= 95 for export in found), found
    model = onnx.load(tmp_path / "q.onnx")
    assert not {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    assert {node.op_type for node in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Conv"}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(tmp_path / "q.onnx", options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") >= 8
    assert "Conv" not in kinds


@pytest.mark.parametrize("bits", mostly_slow([4, 2, 3], 1))
def test_few_bits_of_activations_pass_pooling_and_clipping(bits: int, tmp_path: Path) -> None:
    """ONNX Runtime moves the codes through MaxPool, and merges ReLU6 with them; neither knows four-bit types."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    ).eval()  # fmt: skip
    subject = subject_of(model, bits, size=16, **EVERYTHING | {"act_bits": bits})
    for export in export_all(["onnx"], subject, tmp_path / "q", random_tests(subject)):
        assert export.agreement is not None, export.note
        assert export.agreement >= 95, export


class Squeezed(nn.Module):
    """Each stage concatenates what two convolutions return, and the next convolution quantizes the result again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.narrow = nn.ModuleList([nn.Conv2d(8, 4, 1) for _ in range(4)])
        self.wide = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1) for _ in range(4)])
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            x = torch.relu(torch.cat([narrow(x), 3 * wide(x)], 1))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tensor_that_is_quantized_twice_keeps_both_roundings(bits: int, tmp_path: Path) -> None:
    """A concatenation quantizes its parts, and the layer behind it the result. ONNX Runtime merges two quantizers, and
    OpenVINO clips the first codes at a whole one, unless `Max` or a comparison is between them."""
    torch.manual_seed(1)
    subject = subject_of(Squeezed().eval(), bits, **EVERYTHING | {"act_bits": bits})
    for export in export_all(["onnx"], subject, tmp_path / "q", random_tests(subject, 16)):
        assert export.agreement == 100.0, export
    nodes = onnx.load(tmp_path / "q.onnx").graph.node
    before = {name: node.op_type for node in nodes for name in node.output}
    inputs = [before.get(node.input[0]) for node in nodes if node.op_type in ("Clip", "QuantizeLinear")]
    assert not {"Concat", "DequantizeLinear"} & set(inputs)
    assert inputs.count("Where" if bits == 4 else "Max") >= 4


def dense_net() -> nn.Module:
    torch.manual_seed(1)
    model = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=10)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_dense_block_is_quantized_once_and_pools_codes(bits: int, tmp_path: Path) -> None:
    subject = subject_of(dense_net(), bits, size=64, **EVERYTHING | {"act_bits": bits})
    for export in export_all(["onnx"], subject, tmp_path / "q", random_tests(subject, 16)):
        assert export.agreement == 100.0, export
    graph = onnx.load(tmp_path / "q.onnx").graph
    before = {name: node for node in graph.node for name in node.output}
    behind = [node.op_type for node in graph.node if node.input and before.get(node.input[0], node).op_type == "Concat"]
    assert set(behind) == {"Mul"}  # the batch norms
    (pool,) = (node for node in graph.node if node.op_type == "MaxPool")
    assert before[pool.input[0]].op_type == ("DequantizeLinear" if bits == 8 else "Relu")
    if bits == 8:  # with fewer, the values are clipped in front of the quantizer
        zero = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        parts = {name for node in graph.node if node.op_type == "Concat" for name in node.input}
        features = [before[name] for name in parts if before[before[before[name].input[0]].input[0]].op_type == "Conv"]
        assert features
        assert not any(zero[node.input[2]].any() for node in features)


@pytest.mark.parametrize("twice", [False, True])
def test_a_quantizer_moves_in_front_of_max_pooling_only_if_nothing_else_reads_the_tensors(
    twice: bool, tmp_path: Path
) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            y = self.second(nn.functional.max_pool2d(x, 3, 2, padding=1)).mean((2, 3))
            return self.head(y + x.amax((2, 3)) if twice else y)

    torch.manual_seed(0)
    subject = subject_of(Pooled().eval(), 8, **EVERYTHING)
    for export in export_all(["onnx"], subject, tmp_path / "q", random_tests(subject, 16)):
        assert export.agreement == 100.0, export
    nodes = onnx.load(tmp_path / "q.onnx").graph.node
    before = {name: node.op_type for node in nodes for name in node.output}
    (pool,) = (node for node in nodes if node.op_type == "MaxPool")
    assert before[pool.input[0]] == ("Relu" if twice else "DequantizeLinear")


def test_the_memory_layout_of_the_network_adds_no_operators(tmp_path: Path) -> None:
    """torch decomposes pooling with channels last into `as_strided`, which ONNX writes as five operators."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    subject = subject_of(model.to(memory_format=torch.channels_last), 8)
    Onnx().write(subject.unquantized(), tmp_path, "float")
    kinds = {node.op_type for node in onnx.load(tmp_path / "float.onnx").graph.node}
    assert not kinds & {"Gather", "Range"}


def test_weights_do_not_saturate_on_processors_without_vnni(tmp_path: Path) -> None:
    """Such a processor adds two products in 16 bits: 2 x 255 x 127 does not fit. Unsigned weights have wider sums. They
    are slow, and needed only where zero is a code in the middle: the image, not what a ReLU returns."""
    subject = subject_of(small_resnet(), 8, **EVERYTHING)
    export_all(["onnx"], subject, tmp_path / "q8", random_tests(subject, 4))
    kinds = kinds_of_codes(tmp_path / "q8.onnx")
    behind_image = {name for name, kind in kinds.items() if kind == "uint8"}
    assert behind_image == {"conv1.codes"}
    assert {kinds[name] for name in kinds.keys() - behind_image} == {"int8"}
    for bits, reduced in ((7, False), (8, True)):
        subject = subject_of(small_resnet(), bits, **EVERYTHING | {"reduce_range": reduced})
        export_all(["onnx"], subject, tmp_path / f"q{bits}{reduced}", random_tests(subject, 4))
        assert set(kinds_of_codes(tmp_path / f"q{bits}{reduced}.onnx").values()) == {"int8"}


def test_any_number_of_images_and_no_traces_of_this_machine(tmp_path: Path) -> None:
    import onnxruntime

    subject = subject_of(small_resnet(), 4)
    (file, _) = Onnx().write(subject, tmp_path, "q")
    session = onnxruntime.InferenceSession(file.path)
    for count in (1, 3):
        (logits,) = session.run(None, {"images": torch.randn(count, 3, 32, 32).numpy()})
        assert logits.shape == (count, 10)
    content = file.path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"stack_trace" not in content
    about = {entry.key: entry.value for entry in onnx.load(file.path).metadata_props}
    assert about["mean"] == "[0.5, 0.4, 0.3]"


class Tokens(nn.Module):
    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.conv, self.fc, self.keep = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 10), keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.fc(x.mean(-2, keepdim=True)[:, 0] if self.keep else x.mean(1))


@pytest.mark.parametrize("keep", [False, True])
def test_both_runtimes_take_means_over_tokens(keep: bool, tmp_path: Path) -> None:
    """OpenVINO is wrong about such means of three dimensions, so the file gives them a fourth one."""
    torch.manual_seed(0)
    options = EVERYTHING | {"fold_batch_norm": False, "act_zero_point": True}
    subject = subject_of(Tokens(keep).eval(), 8, size=16, **options)
    found = export_all(["onnx"], subject, tmp_path / "q", random_tests(subject))
    assert [export.note for export in found] == ["", ""]
    assert all(export.largest_difference is not None and export.largest_difference < 0.05 for export in found), found
    graph = onnx.load(tmp_path / "q.onnx").graph
    assert [node.op_type for node in graph.node].count("ReduceMean") == 1
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read


def test_both_runtimes_concatenate_a_class_token(tmp_path: Path) -> None:
    """OpenVINO would move the quantizer of the other tokens in front of their reshaping, with wrong levels."""
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10).eval()
    nn.init.normal_(model.conv_proj.weight, std=0.1)
    nn.init.normal_(model.heads.head.weight, std=0.5)
    subject = subject_of(model, 8, **EVERYTHING)
    for export in export_all(["onnx"], subject, tmp_path / "q", random_tests(subject, 100)):
        assert export.agreement is not None, export.note
        assert export.agreement >= 98, export


def test_both_runtimes_round_what_is_added(tmp_path: Path) -> None:
    """OpenVINO would merge a sum with the convolution in front, whose own quantizer then does not round: the logits
    would differ by 0.018."""
    subject = subject_of(small_resnet(1), 7, **EVERYTHING)
    for export in export_all(["onnx"], subject, tmp_path / "q", random_tests(subject)):
        assert export.largest_difference is not None, export.note
        assert export.largest_difference < 0.012, export


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if x.mean() > 0:  # depends on the images
            x = -x
        return self.fc(x.mean((2, 3)))


def test_what_cannot_be_exported_is_said_and_the_others_are_written(tmp_path: Path) -> None:
    subject = subject_of(Unusual().eval(), 4, size=8, fold_batch_norm=False)
    with pytest.raises(UserError, match=r"cannot be exported: .*data-dependent"):
        Onnx().write(subject, tmp_path, "q")
    found = export_all(["onnx", "program"], subject, tmp_path / "q", random_tests(subject))
    assert [(export.format, export.failed) for export in found] == [("onnx", True), ("program", True)]
    assert all("cannot be exported" in export.note for export in found)


class OfTwo(Unusual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = int(x.shape[0] * 1.0)  # as in the reference implementation of Swin
        return self.fc(self.conv(x).flatten(2).mean(2).view(number, 4))


def test_a_number_of_images_that_the_code_fixes_is_said(tmp_path: Path) -> None:
    subject = subject_of(OfTwo().eval(), 4, size=8, fold_batch_norm=False)
    found = export_all(["onnx", "program"], subject, tmp_path / "q", random_tests(subject))
    assert [(export.format, export.failed) for export in found] == [("onnx", True), ("program", True)]
    assert all("its code fixes the number of images" in export.note for export in found)
    assert not list(tmp_path.glob("*.onnx"))


def test_a_shared_layer_is_stored_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(self.conv(self.first(x).relu()).relu()).mean((2, 3)))

    torch.manual_seed(0)
    subject = subject_of(Twice().eval(), 4, size=8)
    (export, _) = export_all(["onnx"], subject, tmp_path / "q", random_tests(subject))
    assert export.agreement == 100
    names = [t.name for t in onnx.load(tmp_path / "q.onnx").graph.initializer if t.name.endswith(".codes")]
    assert sorted(names) == ["conv.codes", "fc.codes", "first.codes"]


def test_batch_norms_that_no_layer_takes_in_are_a_product_and_a_sum(tmp_path: Path) -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
            self.norm, self.flat = nn.BatchNorm2d(8, eps=1e-2), nn.BatchNorm1d(8)
            self.c0, self.v1 = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.rand(8, 1, 1))  # names of the file's

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.first(x).relu())
            x = self.norm(self.conv(x.relu() * self.c0).relu()) * self.v1  # twice
            return self.fc(self.flat(x.mean((2, 3))))

    torch.manual_seed(0)
    model = Norms()
    for norm in (model.norm, model.flat):
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert isinstance(value, torch.Tensor)
            value.data.uniform_(0.5, 2)
    subject = subject_of(model.eval(), 4, size=8)
    found = export_all(["onnx"], subject, tmp_path / "q", random_tests(subject))
    for export in found:
        assert export.agreement == 100, export
        assert export.largest_difference is not None
        assert export.largest_difference < 1e-4
    graph = onnx.load(tmp_path / "q.onnx").graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    sizes = sorted(len(t.raw_data) for t in graph.initializer if t.data_type == 1 and t.dims[:1] == [8])
    assert sizes.count(8 * 4) >= 4  # two constants of each norm, once
    assert not [t.name for t in graph.initializer if "running" in t.name]


def test_a_file_that_disagrees_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq_exp.export import verification

    subject = subject_of(small_resnet(), 4)
    tests = random_tests(subject)
    wrong = verification.TestSet(tests.images, tests.labels, (tests.predictions + 1) % 10, tests.normalize)
    found = export_all(["onnx"], subject, tmp_path / "q", wrong)
    assert all(export.failed and export.agreement == 0 for export in found)
    assert "agrees on 0.00 % of the test images" in found[0].note
    assert [export.place for export in found] == ["q.onnx in ONNX Runtime", "q.onnx in OpenVINO"]


def test_without_the_packages_the_row_says_how_to_install_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    subject = subject_of(small_resnet(), 4)
    monkeypatch.setitem(sys.modules, "openvino", None)
    runtime, missing = export_all(["onnx"], subject, tmp_path / "q", random_tests(subject))
    assert runtime.agreement == 100
    assert (missing.agreement, missing.failed) == (None, False)
    assert "pip install" in missing.note
    assert missing.size_bytes == (tmp_path / "q.onnx").stat().st_size


def test_a_float_network_is_a_float_file(tmp_path: Path) -> None:
    subject = subject_of(small_resnet(), 4).unquantized()
    (file, _) = Onnx().write(subject, tmp_path, "float")
    kinds = {node.op_type for node in onnx.load(file.path).graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}
    assert isinstance(subject, Subject)


def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    subject = subject_of(model.eval(), 4, size=8, fold_batch_norm=False)
    runtime, openvino = export_all(["onnx"], subject, tmp_path / "q", random_tests(subject))
    assert runtime.note == ""
    assert openvino.note == "does not load: Unsupported padding mode: [wrap]"
