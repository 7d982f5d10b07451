"""A file is kept only if a fresh process computes with it what the model in memory computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import ConversionError
from qconvert.quantization.lowering.verification import verify

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(108, 5, generator=torch.Generator().manual_seed(1))
Network = Callable[[Tensor], Tensor]


class Computes(nn.Module):
    """A model that is one function of its input."""

    def __init__(self, function: Network) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def right(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHT


def constant(x: Tensor) -> Tensor:
    return right(x) * 0 + torch.arange(5.0)


def nearly_constant(x: Tensor) -> Tensor:
    """An untrained network: int8 cannot tell its outputs apart."""
    return right(x) * 1e-6 + torch.arange(5.0)


def only_batch_one(x: Tensor) -> Tensor:
    return x.reshape(1, -1) @ WEIGHT


def mixes_images(x: Tensor) -> Tensor:
    """Right for one image, wrong for three."""
    return right(x) + (x - x.mean(0)).flatten(1) @ WEIGHT


def not_finite(value: float) -> Network:
    def function(x: Tensor) -> Tensor:
        return torch.where(right(x) > 0, torch.tensor(value), right(x))

    return function


def save(function: Network, folder: Path) -> Path:
    path = folder / "model.int8.pt"
    script = torchscript.freeze(torchscript.trace(Computes(function), IMAGES[:1]))
    path.write_bytes(torchscript.to_bytes(script))
    return path


@pytest.mark.parametrize(
    ("in_file", "in_memory", "in_float", "sentence"),
    [
        (not_finite(float("nan")), right, right, "the int8 file computes NaN or infinity"),
        (not_finite(float("-inf")), right, right, "the int8 file computes NaN or infinity"),
        (right, not_finite(float("nan")), right, "differs from the model in memory"),
        (constant, constant, right, "the int8 file gives the same output for all images; it was"),
        (
            constant, constant, nearly_constant,
            "same output for all images, and the float model nearly so",
        ),
        (
            lambda x: right(x)[:, :3], right, right,
            "the int8 file gives shape [1, 3], in memory it is [1, 5]",
        ),
        (
            lambda x: right(x) * 1.01, right, right,
            "the int8 file differs from the model in memory by 0.01 of its output",
        ),
        (mixes_images, right, right, "the int8 file differs from the model in memory by "),
        (
            only_batch_one, right, right,
            "does not run in a fresh process: RuntimeError: mat1 and mat2 shapes cannot be",
        ),
    ],
    ids=[
        "NaN", "infinity", "NaN in memory", "constant", "constant as float", "shape", "one percent",
        "mixes images", "batch 1 only",
    ],
)  # fmt: skip
def test_wrong_file_is_refused(
    tmp_path: Path, in_file: Network, in_memory: Network, in_float: Network, sentence: str
) -> None:
    with pytest.raises(ConversionError) as error:
        verify(save(in_file, tmp_path), in_memory, IMAGES, in_float)
    assert sentence in error.value.facts[0]
    advice = "model.checkpoint" if in_float is nearly_constant else "precision: float32"
    assert advice in (error.value.fix or "")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(right, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(ConversionError, match="does not run in a fresh process") as error:
        verify(path, right, IMAGES, right)
    assert "\n" not in error.value.facts[0]
    assert "it was not kept" in error.value.facts[0]


def test_file_of_another_network_is_refused(converted, tmp_path: Path) -> None:
    """Trained alike, of the same shape: only its answers are others."""
    result, other = converted(networks.plain), converted(networks.relu6)
    with pytest.raises(ConversionError, match="differs from the model in memory"):
        verify(other.file(tmp_path / "other.pt"), result.model, result.images[:3], result.original)


def test_right_file_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that sees neither the working folder nor the user's Python settings."""
    for name in ("random", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the file of the user')\n")
    path = save(right, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = verify(path, right, IMAGES, right)
    assert found.batch_sizes == (1, 3)
    assert 0 <= found.largest_difference < 1e-5
    assert (found.outputs_finite, found.outputs_vary) == (True, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.int8.pt", "random.py", "sitecustomize.py",
    ]  # fmt: skip


def test_equal_outputs_for_equal_images_are_right(tmp_path: Path) -> None:
    found = verify(save(right, tmp_path), right, IMAGES[:1].expand(3, -1, -1, -1), right)
    assert not found.outputs_vary


def test_dense_output_passes(tmp_path: Path) -> None:
    def dense(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)

    assert verify(save(dense, tmp_path), dense, IMAGES, dense).outputs_vary
