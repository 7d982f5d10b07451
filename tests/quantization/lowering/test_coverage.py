"""What a file computes in int8, counted on its graph and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import ConversionError
from qconvert.quantization.lowering.coverage import Coverage, check_against_plan, count
from qconvert.quantization.plan import Plan

FLOAT_3 = {"layers": [{"match": "3", "precision": "float32"}]}
# Of networks.plain: 24 x 24 to 16 channels, 12 x 12 to 32, again to 32, 10 outputs.
PLAIN = (24 * 24 * 16 * 27, 12 * 12 * 32 * 16 * 9, 12 * 12 * 32 * 32 * 9, 320)


def counted(result, folder: Path) -> Coverage:
    """Of the saved file, as the `convert` step counts."""
    return count(torchscript.load(result.file(folder / "model.pt")), [result.images[:1]])


def planned(plan: Plan, precision: str) -> int:
    return sum(operator.precision == precision for operator in plan.operators)


@pytest.mark.parametrize("isa", ["vnni", "portable"])
@pytest.mark.parametrize(
    ("network", "macs"),
    [
        (networks.plain, sum(PLAIN)),
        (networks.Residual, 24 * 24 * 16 * 27 + 2 * 12 * 12 * 16 * 16 * 9 + 32 * 36 * 10),
        (networks.OneDimension, 24 * 32 * 72 * 3 + 22 * 16 * 32 * 3 + 160),
        (networks.ThreeDimensions, 3 * 24 * 24 * 8 * 27 + 80),
    ],
)
def test_work_of_an_int8_network_is_in_int8(
    converted, tmp_path: Path, network: Callable[[], nn.Module], macs: int, isa: str
) -> None:
    result = converted(network, isa=isa, lowering="classic")
    found = counted(result, tmp_path)
    assert (found.int8_macs, found.macs, found.int8_macs_share) == (macs, macs, 1.0)
    assert found.boundaries == 2
    check_against_plan(found, result.plan)


@pytest.mark.parametrize("isa", ["vnni", "portable"])
@pytest.mark.parametrize("network", [networks.plain, networks.Residual])
def test_operators_are_those_of_the_plan(
    converted, tmp_path: Path, network: Callable[[], nn.Module], isa: str
) -> None:
    """A pooling of int8 values is not in float; layouts, sizes and clamps are no operators."""
    result = converted(network, isa=isa)
    found = counted(result, tmp_path)
    assert found.int8_operators == planned(result.plan, "int8")
    assert found.float_operators == planned(result.plan, "float32")


def test_layer_in_float_is_counted_as_such(converted, tmp_path: Path) -> None:
    result = converted(networks.plain, **CLASSIC)
    found = counted(result, tmp_path)
    assert (found.int8_macs, found.macs) == (sum(PLAIN) - PLAIN[1], sum(PLAIN))
    assert found.int8_macs_share == pytest.approx(1 - PLAIN[1] / sum(PLAIN))
    assert found.operators["quantized::conv2d_relu"] == 2
    assert found.operators["aten::_convolution"] == 1
    assert found.int8_operators == 3
    assert found.boundaries == 4
    check_against_plan(found, result.plan)


class Computes(nn.Module):
    """A model that is one function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


W = torch.rand(12, 7, generator=torch.Generator().manual_seed(0))
IMAGE, ROWS = (1, 4, 10, 10), (1, 5, 12)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), IMAGE, 5 * 5 * 8 * 4 * 9),
        (nn.Conv2d(4, 6, (1, 3), groups=2), IMAGE, 10 * 8 * 6 * 2 * 3),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), IMAGE, 6 * 6 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding="same", bias=False), IMAGE, 10 * 10 * 8 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), IMAGE, 10 * 10 * 8 * 4 * 9),
        (nn.Conv1d(5, 3, 4), ROWS, 9 * 3 * 5 * 4),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6), 3 * 4 * 5 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), IMAGE, 100 * 4 * 6 * 4),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, padding=1), IMAGE, 100 * 4 * 3 * 9),
        (nn.ConvTranspose1d(5, 3, 4, stride=3), ROWS, 12 * 5 * 3 * 4),
        (nn.Linear(12, 7), (1, 12), 12 * 7),
        (nn.Linear(12, 7, bias=False), ROWS, 5 * 12 * 7),
        (Computes(lambda x: x @ W), ROWS, 5 * 12 * 7),
        (Computes(lambda x: torch.addmm(torch.ones(7), x, W)), (1, 12), 12 * 7),
        (Computes(lambda x: torch.matmul(W.T, x.mT)), ROWS, 7 * 12 * 5),
        (Computes(lambda x: torch.bmm(x, x.mT)), ROWS, 5 * 5 * 12),
        (Computes(lambda x: F.scaled_dot_product_attention(x, x, x)), ROWS, 2 * 5 * 5 * 12),
        (Recurrent(), ROWS, 5 * 4 * 8 * (12 + 8)),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), IMAGE, 0),
    ],
    ids=[
        "conv2d", "groups", "depthwise", "same padding", "reflect", "conv1d", "conv3d",
        "transposed", "transposed with groups", "transposed 1d", "linear", "linear on rows",
        "matmul", "addmm", "weight first", "two computed", "attention", "lstm", "no product",
    ],
)  # fmt: skip
def test_float_work_by_hand(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(shape, generator=generator)
    script = torchscript.freeze(torchscript.trace(module.requires_grad_(False), [example]))
    found = count(torchscript.load(torchscript.to_bytes(script)), [example])
    assert (found.macs, found.int8_macs, found.int8_operators) == (macs, 0, 0)
    assert found.int8_macs_share == 0


class Same(nn.Module):
    """An even kernel with `padding="same"` pads one side more: it stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 2, padding="same")
        self.conv2 = nn.Conv2d(8, 8, 3, padding="same")
        self.head = nn.Sequential(*networks.head(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))))


@pytest.mark.parametrize(
    ("network", "settings"),
    [(networks.plain, FLOAT_3), (networks.transposed, {}), (networks.Prelu, {}), (Same, {})],
    ids=["by rule", "transposed", "prelu", "same padding"],
)
def test_file_has_the_work_of_its_plan(converted, tmp_path: Path, network, settings) -> None:
    result = converted(network, **settings)
    check_against_plan(counted(result, tmp_path), result.plan)


def changed(plan: Plan, operator: str, **update: object) -> Plan:
    """The plan with another claim about one operator."""
    operators = tuple(
        o.model_copy(update=update) if o.name == operator else o for o in plan.operators
    )
    return plan.model_copy(update={"operators": operators})


CLASSIC = {"lowering": "classic", **FLOAT_3}
RELU = "quantized::conv2d_relu in int8 with"
WORK = "multiply-accumulates"


@pytest.mark.parametrize(
    ("operator", "claim", "facts"),
    [
        (
            "0", {"macs": PLAIN[0] + 1},
            [
                f"the plan has 1 x {RELU} 248,833 {WORK} (0), the file 0",
                f"the file has 1 x {RELU} 248,832 {WORK}, the plan 0",
            ],
        ),
        (
            "0", {"macs": 0},
            [
                f"the plan has 1 x {RELU} 0 {WORK} (0), the file 0",
                f"the file has 1 x {RELU} 248,832 {WORK}, the plan 0",
            ],
        ),
        (
            "3", {"macs": PLAIN[1] + 1},
            [f"the plan has 1 x an operator in float32 with 663,553 {WORK} (3), the file 0"],
        ),
        (
            "3", {"precision": "int8", "kernel": "quantized::conv2d_relu"},
            [f"the plan has 1 x {RELU} 663,552 {WORK} (3), the file 0"],
        ),
        (
            "6", {"precision": "float32", "kernel": None},
            [
                f"the plan has 1 x an operator in float32 with 1,327,104 {WORK} (6), the file 0",
                f"the file has 1 x {RELU} 1,327,104 {WORK}, the plan 0",
            ],
        ),
        (
            "6", {"kernel": "quantized::conv2d"},
            [
                f"the plan has 1 x quantized::conv2d in int8 with 1,327,104 {WORK} (6), the file 0",
                f"the file has 1 x {RELU} 1,327,104 {WORK}, the plan 0",
            ],
        ),
        (
            "11", {"precision": "dynamic", "kernel": "quantized::linear_dynamic"},
            [
                f"the plan has 1 x quantized::linear_dynamic in dynamic with 320 {WORK} (11), "
                "the file 0",
                "the file has 1 x quantized::linear_with_input_q_dq_qweight_dq_output_fp32 in int8 "
                f"with 320 {WORK}, the plan 0",
            ],
        ),
    ],
    ids=[
        "more work", "no work", "more in float", "int8", "float", "another kernel", "dynamic",
    ],
)  # fmt: skip
def test_plan_that_claims_something_else_is_refused(
    converted, tmp_path: Path, operator: str, claim: dict, facts: list[str]
) -> None:
    result = converted(networks.plain, **CLASSIC)
    found = counted(result, tmp_path)
    check_against_plan(found, result.plan)
    with pytest.raises(ConversionError, match="this is a bug of qconvert") as error:
        check_against_plan(found, changed(result.plan, operator, **claim))
    assert error.value.facts == facts


def test_kernel_without_work_is_checked_too(converted, tmp_path: Path) -> None:
    """An addition multiplies nothing, but the plan names its kernel."""
    result = converted(networks.Residual, lowering="classic")
    found = counted(result, tmp_path)
    assert ("int8", "quantized::add_relu", 0) in found.counted
    wrong = changed(result.plan, "add", kernel="quantized::add")
    with pytest.raises(ConversionError) as error:
        check_against_plan(found, wrong)
    assert error.value.facts == [
        f"the plan has 1 x quantized::add in int8 with 0 {WORK} (add), the file 0",
        f"the file has 1 x quantized::add_relu in int8 with 0 {WORK}, the plan 0",
    ]


@pytest.mark.parametrize("lowering", ["auto", "classic", "direct"])
@pytest.mark.parametrize(
    ("network", "macs"),
    [
        (networks.BasicBlocks, (
            24 * 24 * 16 * 27 + 2 * 12 * 12 * 16 * 16 * 9 + 6 * 6 * 24 * (16 * 9 + 16 + 24 * 9)
            + 240
        )),
        (networks.InvertedResiduals, (
            12 * 12 * (16 * 27 + 2 * (2 * 16 * 48 + 48 * 9) + 16 * 32) + 320
        )),
    ],
)  # fmt: skip
def test_either_lowering_counts_the_same_work(
    converted, tmp_path: Path, network: Callable[[], nn.Module], macs: int, lowering: str
) -> None:
    result = converted(network, lowering=lowering)
    found = counted(result, tmp_path)
    assert (found.int8_macs, found.macs, found.dynamic_macs) == (macs, macs, 0)
    check_against_plan(found, result.plan)
