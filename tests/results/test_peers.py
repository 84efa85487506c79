"""The table of bench.peers: one row per tool beneath each network, with a reason where a tool has no result."""

from bench.peers import adapter
from bench.peers.table import current, table_of


def line(tool: str, network: str, width: str, **content: object) -> dict[str, object]:
    settings = adapter(tool).SETTINGS
    return {"task": [tool, network, width], "settings": settings, "top1_float": 88.0} | content


LINES = [
    line("nncf", "densenet", "W8A8", top1=87.5),
    line("nncf", "densenet", "W4A4", error="ValueError: no such type"),
    line("aimet", "densenet", "W4", top1=86.25),
]


def test_a_row_per_tool_and_a_reason_where_there_is_no_number() -> None:
    ours = [{"task": ["densenet", "W4", seed], "top1": 86.0 + seed, "top1_float": 88.0} for seed in range(2)]
    header, _, own, aimet, nncf, *notes = table_of(LINES, ours).splitlines()
    assert header == "| network | tool | float | W8 | W4 | W3 | W2 | W8A8 | W4A8 | W4A4 |"
    assert own == "| densenet | ptq_exp | 88.00 | - | 86.50 ± 0.71 | - | - | - | - | - |"
    assert aimet == "| densenet | AIMET | 88.00 | - | 86.25 | - | - | - | - | - |"
    assert nncf.startswith(
        "| densenet | NNCF | 88.00 | - | convolutions stay at 8 bits | no 3-bit weights | no 2-bit weights | 87.50 |"
    )
    assert nncf.endswith("| - | failed (1) |")
    assert notes == ["", "(1) `ValueError: no such type`"]


def test_results_of_other_settings_do_not_count() -> None:
    older = line("aimet", "densenet", "W4", top1=80.0) | {"settings": {"adaround_steps": 1}}
    assert current([older, *LINES]) == LINES
