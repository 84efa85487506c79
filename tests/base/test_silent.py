"""Output of compiled code that nobody wants to read."""

import os

import pytest

from ptq_exp.base.machine import silent


def test_nothing_reaches_the_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with silent():
        os.write(1, b"HighsMipSolverData\n")
    os.write(1, b"after\n")
    assert capfd.readouterr().out.split() == ["before", "after"]
