"""Where the time of an int8 file goes, operator by operator, beside what the machine would allow.

    python benchmarks/account.py docs/performance.md resnet50 mobilenet_v2

Reads the files that `make bench-peers` converted. An operator's time is its median over calls of
the whole file, at one thread. What the machine would allow is the longer of two times: that of its
multiply-accumulates at the highest rate that any int8 convolution reached here, and that of the
bytes that it reads and writes at the rate at which a buffer of half a megabyte is copied.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated import replace
from peers import BUILD
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from qconvert import torchscript
from qconvert.measurement.environment import here
from qconvert.measurement.latency import ALLOCATOR
from qconvert.models.execution import Executed, watch
from qconvert.quantization.lowering.coverage import count

_CALLS = 60
_SHOWN = 12
# Dense and pointwise convolutions on which the highest rate is looked for: channels, side, filter.
_LARGE = ((512, 7, 3), (256, 14, 3), (128, 28, 3), (1024, 14, 1), (512, 28, 1))


@dataclass(frozen=True)
class Machine:
    """What one core can do: int8 multiply-accumulates and bytes, per second."""

    macs_per_s: float
    bytes_per_s: float

    def allows_s(self, macs: int, size_bytes: int) -> float:
        """The least time for so much work."""
        return max(macs / self.macs_per_s, size_bytes / self.bytes_per_s)


@dataclass(frozen=True)
class Operator:
    """One operator of a file as it ran: name, shape of its first input and of its result, work,
    and the seconds that it took."""

    kind: str
    shapes: str
    macs: int
    size_bytes: int
    seconds: float

    @property
    def group(self) -> str:
        """For the summary."""
        name = self.kind.partition("::")[2]
        if "conv" in name:
            return "convolutions"
        return "linear layers" if "linear" in name else name


def main() -> None:
    """Measures the machine and each model, and writes the page."""
    page, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    machine = measured_machine()
    lines = [
        f"Measured on {time.strftime('%Y-%m-%d')} by `make account`: {here().cpu}, torch "
        f"{torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}. Highest rates: "
        f"{machine.macs_per_s / 1e9:.0f} int8 multiply-accumulates and "
        f"{machine.bytes_per_s / 1e9:.0f} bytes a nanosecond.",
    ]
    for name in names:
        lines += ["", f"### {name}", "", *account(name, machine)]
    replace(page, "account", lines)


def measured_machine() -> Machine:
    """The best of what was tried."""
    rates = [channels**2 * k**2 * side**2 / best_s(_convolution(channels, side, k))
             for channels, side, k in _LARGE]  # fmt: skip
    x, y = torch.zeros(1 << 19, dtype=torch.uint8), torch.ones(1 << 19, dtype=torch.uint8)
    return Machine(max(rates), 2 * x.numel() / best_s(lambda: x.copy_(y)))


def _convolution(channels: int, side: int, k: int) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, k, k, generator=generator)
    scales, zeros = torch.full((channels,), 0.02), torch.zeros(channels, dtype=torch.int64)
    packed = torch.ops.quantized.conv2d_prepack(
        torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8),
        torch.zeros(channels), [1, 1], [k // 2, k // 2], [1, 1], 1,
    )  # fmt: skip
    x = torch.rand(1, channels, side, side, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    quantized = torch.quantize_per_tensor(x, 1 / 255, 0, torch.quint8)
    return lambda: torch.ops.quantized.conv2d_relu(quantized, packed, 0.1, 0)


def best_s(call: Callable[[], Any]) -> float:
    """The shortest of many calls: what the machine can do, not what it does beside others."""
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def account(name: str, machine: Machine) -> list[str]:
    """The lines about one model."""
    folder = BUILD / name
    model = torchscript.load(folder / "qconvert/model.int8.pt")
    with np.load(folder / "evaluation.npz") as arrays:
        example = (torch.from_numpy(arrays[arrays.files[0]]),)
    operators, total = operators_of(model, example)
    inside = sum(o.seconds for o in operators)
    allowed = sum(machine.allows_s(o.macs, o.size_bytes) for o in operators)
    lines = [
        f"A call takes {1e6 * total:.0f} microseconds; its operators {1e6 * inside:.0f} while they "
        f"are watched, and {1e6 * allowed:.0f} at the highest rates.",
        "",
        "| operators | number | million multiply-accumulates | time, µs | allowed, µs | share of "
        "the time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[str, list[Operator]] = defaultdict(list)
    for operator in operators:
        groups[operator.group].append(operator)
    for group, members in sorted(groups.items(), key=lambda item: -_seconds(item[1])):
        least = sum(machine.allows_s(o.macs, o.size_bytes) for o in members)
        lines.append(
            f"| {group} | {len(members)} | {sum(o.macs for o in members) / 1e6:.0f} | "
            f"{1e6 * _seconds(members):.0f} | {1e6 * least:.0f} | "
            f"{_seconds(members) / inside:.0%} |"
        )
    lines += ["", f"The {_SHOWN} operators that lose most:", "",
              "| operator | from, to | million multiply-accumulates | time, µs | allowed, µs |",
              "| --- | --- | --- | --- | --- |"]  # fmt: skip
    lost = sorted(operators, key=lambda o: machine.allows_s(o.macs, o.size_bytes) - o.seconds)
    for o in lost[:_SHOWN]:
        lines.append(
            f"| `{o.kind}` | {o.shapes} | {o.macs / 1e6:.1f} | {1e6 * o.seconds:.0f} | "
            f"{1e6 * machine.allows_s(o.macs, o.size_bytes):.0f} |"
        )
    return lines


def _seconds(operators: Iterable[Operator]) -> float:
    return sum(o.seconds for o in operators)


def operators_of(
    model: Callable[..., Any], example: Sequence[Tensor]
) -> tuple[list[Operator], float]:
    """Every operator with its time, and the seconds of a call that nobody watches."""
    work = iter(count(model, example).counted)
    waiting = next(work, None)
    ran: list[tuple[str, str, int, int]] = []

    def visit(executed: Executed) -> None:
        nonlocal waiting
        macs = 0
        if waiting is not None and waiting.kernel == executed.kind:
            macs, waiting = waiting.macs, next(work, None)
        first = next((a for a in executed.args if isinstance(a, Tensor)), executed.output)
        shapes = f"{list(first.shape)}, {list(executed.output.shape)}"
        ran.append((executed.kind, shapes, macs, _bytes(first) + _bytes(executed.output)))

    watch(model, example, visit)
    seconds = timed(model, example)
    times = {kind: iter(found) for kind, found in seconds.items()}
    operators = [Operator(*what, next(times.get(what[0], iter(())), 0.0)) for what in ran]
    return operators, median_s(model, example)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def median_s(model: Callable[..., Any], example: Sequence[Tensor]) -> float:
    """The median seconds of a call."""
    seconds = []
    with torch.inference_mode():
        for _ in range(_CALLS):
            start = time.perf_counter()
            model(*example)
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def timed(model: Callable[..., Any], example: Sequence[Tensor]) -> dict[str, list[float]]:
    """The median seconds of each call of each operator in the file, in order, by its name."""
    with torch.inference_mode():
        for _ in range(10):
            model(*example)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(_CALLS):
                model(*example)
    calls: list[list[Any]] = []
    for event in sorted(seen.events(), key=lambda e: e.time_range.start):
        if event.cpu_parent is None:
            calls.append([])
        elif event.cpu_parent.cpu_parent is None:
            calls[-1].append(event)
    usual = Counter(tuple(e.name for e in call) for call in calls).most_common(1)[0][0]
    same = [call for call in calls if tuple(e.name for e in call) == usual]
    found: dict[str, list[float]] = defaultdict(list)
    for place, name in enumerate(usual):
        times = [call[place].cpu_time_total for call in same]
        found[name].append(float(np.median(times)) / 1e6)
    return found


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        # glibc reads them when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    main()
