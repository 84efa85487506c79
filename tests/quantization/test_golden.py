"""The notebook's method on a network that nobody here trained, against values computed independently."""

import json
import re
from collections.abc import Callable

import pytest
from conftest import Outcome, mostly_slow, shared

ALL = (2, 3, 4, 5, 6, 8)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("archive", "key", "tolerance", "widths"),
    mostly_slow(
        [
            ("cifar10-lossless-6k.zip", "lossless_top1", 0.1, (3, 5)),
            ("cifar10-lossless-6k.zip", "lossless_top1", 0.1, ALL),
            ("cifar10-jpeg.tar.gz", "jpeg_top1", 0.05, ALL),  # 60,000 images to decode
        ]
    ),
)
def test_golden_values(
    cli: Callable[..., Outcome], archive: str, key: str, tolerance: float, widths: tuple[int, ...]
) -> None:
    """One command, as the README has it; the terminal shows float and every bit width."""
    golden = json.loads(shared("golden.json").read_text())["resnet20"]
    outcome = cli(
        f"checkpoint={shared('checkpoints/resnet20-12fca82f.th')}",
        "data=image_folder",
        f"data.root={shared('data') / archive}",
        f"quant.bits={','.join(map(str, widths))}",
        "-m",
    )
    assert outcome.code == 0, outcome.err
    # Stored bits, one more than quant.bits since the sign comes on top, then quant.bits and top-1.
    rows = re.findall(r"│\s+(float|\d+)\s+│\s+(\d*)\s+│\s+([\d.]+)\s+│", outcome.out)
    assert all(stored == "float" or int(stored) == int(nominal) + 1 for stored, nominal, _ in rows)
    measured = {nominal or stored: top1 for stored, nominal, top1 in rows}
    assert set(measured) == {"float", *map(str, widths)}
    for row, value in measured.items():
        assert float(value) == pytest.approx(golden[row][key], abs=tolerance), row


@pytest.mark.shared_data
def test_the_first_convolutions_std_is_the_published_one() -> None:
    from ptq_exp.networks.reading import read_checkpoint

    golden = json.loads(shared("golden.json").read_text())["resnet20"]
    found = read_checkpoint(str(shared("checkpoints/resnet20-12fca82f.th")), shared("data"), 1)
    assert found.options == {"depth": 20, "shortcut": "pad"}
    assert found.claim == ("best_prec1", pytest.approx(91.78, abs=0.01))
    assert found.weights["conv1.weight"].std(correction=0).item() == pytest.approx(golden["std_first_conv"], abs=1e-7)
