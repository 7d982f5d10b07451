"""Classes of CPUs, and processes that are limited to one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import VerificationError
from qconvert.measurement.cpu_classes import can_be_shown, class_here
from qconvert.measurement.limited import LimitedProcess


class Twice(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": x + x, "square": x.reshape(1, 4) * x.reshape(1, 4)}


def file() -> bytes:
    return torchscript.to_bytes(torchscript.trace(Twice(), [torch.zeros(1, 4)]))


@pytest.mark.parametrize(
    ("variable", "value", "most"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", "avx2"),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core", "avx512"),
        ("FBGEMM_ENABLE_INSTRUCTIONS", "AVX2", "avx2"),
        ("ONEDNN_MAX_CPU_ISA", "SSE41", None),
    ],
)
def test_class_is_what_variables_leave_of_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, most: str | None
) -> None:
    if most is not None and not can_be_shown(most):
        pytest.skip(f"this CPU is less than {most}")
    monkeypatch.setenv(variable, value)
    assert class_here() == most
    assert not can_be_shown("vnni")


def test_results_come_from_a_process_with_the_limits() -> None:
    if not can_be_shown("avx2"):
        pytest.skip("no AVX2 here")
    x = torch.randn(1, 4)
    with LimitedProcess("avx2") as process:
        first, second = process.load(file()), process.load(file())
        results = [first(x), second(2 * x), first(x)]
    for result, given in zip(results, (x, 2 * x, x), strict=True):
        assert torch.equal(result["sum"], given + given)
        assert torch.equal(result["square"], given * given)


def test_what_a_module_raises_is_told_with_the_class() -> None:
    if not can_be_shown("avx2"):
        pytest.skip("no AVX2 here")
    with LimitedProcess("avx2") as process:
        run = process.load(file())
        with pytest.raises(VerificationError, match=r"limited to avx2 .*: .*shape") as error:
            run(torch.zeros(1, 5))
        assert error.value.exit_code == 5
        assert torch.equal(run(torch.ones(1, 4))["sum"], torch.full((1, 4), 2.0))


def test_process_that_dies_is_told() -> None:
    with (
        LimitedProcess("avx2", ["no_such_package"]) as process,
        pytest.raises(VerificationError, match="no_such_package"),
    ):
        process.load(file())
