"""The networks: layer and parameter counts of the literature, shapes, and what a wrong option is answered with."""

import pytest
import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks import build_model
from ptq_exp.networks.resnet import PadShortcut


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def pad_shortcut_by_loops(x: Tensor, in_channels: int, out_channels: int, stride: int) -> Tensor:
    images, _, height, width = x.shape
    rows, columns = range(0, height, stride), range(0, width, stride)
    result = torch.zeros(images, out_channels, len(rows), len(columns))
    first = (out_channels - in_channels) // 2
    for image in range(images):
        for channel in range(in_channels):
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    result[image, first + channel, i, j] = x[image, channel, row, column]
    return result


@pytest.mark.parametrize(("shortcut", "count"), [("conv", 21), ("auto", 21), ("pad", 19)])
def test_resnet20_has_the_convolutions_of_its_shortcut(shortcut: str, count: int) -> None:
    assert convolutions(build_model("resnet", 10, depth=20, shortcut=shortcut)) == count


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_pad_resnets_have_the_published_size_and_give_ten_logits(depth: int, parameters: int) -> None:
    model = build_model("resnet", 10, depth=depth, shortcut="pad").eval()
    assert trainable(model) == parameters
    assert convolutions(model) == depth - 1
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_conv_resnets_have_two_more_convolutions_and_their_batch_norms(depth: int) -> None:
    conv = build_model("resnet", 100, depth=depth, shortcut="conv").eval()
    pad = build_model("resnet", 100, depth=depth, shortcut="pad")
    assert convolutions(conv) == depth + 1
    assert trainable(conv) - trainable(pad) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    with torch.no_grad():
        assert conv(torch.randn(1, 3, 32, 32)).shape == (1, 100)


def test_an_image_has_the_same_logits_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    model = build_model("resnet", 10, depth=20).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "size"), [(16, 32, 2, 8), (32, 64, 2, 4), (2, 6, 2, 5), (4, 8, 1, 3)]
)
def test_pad_shortcut_keeps_every_second_pixel_between_zero_channels(
    in_channels: int, out_channels: int, stride: int, size: int
) -> None:
    x = torch.randn(2, in_channels, size, size, generator=torch.Generator().manual_seed(1))
    shortcut = PadShortcut(in_channels, out_channels, stride)
    assert list(shortcut.parameters()) == []
    assert torch.equal(shortcut(x), pad_shortcut_by_loops(x, in_channels, out_channels, stride))


def test_a_pad_block_whose_convolutions_give_nothing_passes_the_shortcut_through() -> None:
    model = build_model("resnet", 10, depth=20, shortcut="pad").eval()
    block = model.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 6, 6)
    with torch.no_grad():
        assert torch.equal(block(x), pad_shortcut_by_loops(x, 16, 32, 2))


@pytest.mark.parametrize("classes", [10, 100])
def test_vgg16_has_13_convolutions_and_a_logit_for_each_class(classes: int) -> None:
    model = build_model("vgg", classes, depth=16).eval()
    assert convolutions(model) == 13
    assert (
        trainable(model) == 14_714_688 - 4_224 + 2 * 4_224 + 512 * classes + classes
    )  # ImageNet's, no bias, batch norm
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, classes)


@pytest.mark.parametrize(("depth", "count"), [(11, 8), (13, 10), (19, 16)])
def test_other_vggs_have_the_convolutions_of_the_paper(depth: int, count: int) -> None:
    assert convolutions(build_model("vgg", 10, depth=depth)) == count


@pytest.mark.parametrize("depth", [21, 2, 0, -4, 20.0, "20"])
def test_a_resnet_depth_other_than_6n_plus_2_is_refused(depth: object) -> None:
    with pytest.raises(UserError, match=r"model\.depth=.*6n\+2.*20, 32, 44, 56, 110"):
        build_model("resnet", 10, depth=depth)


def test_a_vgg_depth_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"model\.depth=15.*11, 13, 16, 19"):
        build_model("vgg", 10, depth=15)


def test_an_unknown_option_is_answered_with_the_nearest_spelling() -> None:
    with pytest.raises(UserError, match=r"model\.shortcutt.*Did you mean 'shortcut'\?.*depth, shortcut"):
        build_model("resnet", 10, shortcutt="pad")


def test_an_option_of_another_architecture_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.shortcut is not an option of vgg.*Allowed: depth"):
        build_model("vgg", 10, shortcut="pad")


def test_an_unknown_shortcut_is_answered_with_the_nearest_spelling() -> None:
    with pytest.raises(UserError, match=r"model\.shortcut=padd.*Did you mean 'pad'\?.*auto, conv, pad"):
        build_model("resnet", 10, shortcut="padd")


def test_an_unknown_architecture_is_answered_with_the_nearest_spelling() -> None:
    with pytest.raises(UserError, match=r"model\.architecture=resnett.*Did you mean 'resnet'\?.*resnet, vgg"):
        build_model("resnett", 10)
