"""Layers whose input ranges are found at run time: what they compute, and what their files hold."""

from __future__ import annotations

import hashlib
import io
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from isa_here import needs_vnni
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.nn.utils.rnn import pack_sequence

from qconvert import torchscript
from qconvert.models.execution import Executed, watch
from qconvert.qconfig import WeightScheme
from qconvert.quantization.lowering.dynamic import (
    RECURRENT,
    DynamicLinear,
    DynamicRecurrent,
    recurrent_macs,
    recurrent_weights,
    why_not_dynamic,
)
from qconvert.quantization.weights import choose_params, quantized

# Of float32 arithmetic: the kernels and the tests add in another order.
ROUNDING = 1e-5
# Two layers, both directions, no biases, either layout of the input: each option twice.
RECURRENT_LAYERS = {
    "lstm": lambda: nn.LSTM(20, 24),
    "lstm two layers": lambda: nn.LSTM(20, 24, num_layers=2, batch_first=True),
    "lstm both ways": lambda: nn.LSTM(20, 24, num_layers=2, bidirectional=True),
    "lstm no bias": lambda: nn.LSTM(20, 24, bias=False, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(20, 24),
    "gru two layers": lambda: nn.GRU(20, 24, num_layers=2, batch_first=True),
    "gru both ways": lambda: nn.GRU(20, 24, num_layers=2, bidirectional=True),
    "gru no bias": lambda: nn.GRU(20, 24, bias=False, bidirectional=True, batch_first=True),
}
LINEAR = {
    "linear": lambda: nn.Linear(20, 24),
    "linear no bias": lambda: nn.Linear(20, 24, bias=False),
}
# Whether inputs have 7 bits, and their largest integer.
BITS = [pytest.param(False, 255, marks=needs_vnni), (True, 127)]
Layer = nn.Linear | nn.LSTM | nn.GRU


def made(build: Callable[[], Layer]) -> Layer:
    """With the weights that it is born with."""
    torch.manual_seed(0)
    return build().eval().requires_grad_(False)


def weights(layer: Layer) -> dict[str, Tensor]:
    return {"weight": layer.weight} if isinstance(layer, nn.Linear) else recurrent_weights(layer)


def on_integers(layer: Layer) -> dict[str, Tensor]:
    """The weights that the integers stand for."""
    return {
        name: quantized(weight, choose_params(weight, WeightScheme())).dequantize()
        for name, weight in weights(layer).items()
    }


def dynamic(layer: Layer, reduce_range: bool = False, relu: bool = False) -> nn.Module:
    chosen = {name: choose_params(w, WeightScheme()) for name, w in weights(layer).items()}
    if isinstance(layer, nn.Linear):
        return DynamicLinear(layer, chosen["weight"], reduce_range=reduce_range, relu=relu)
    return DynamicRecurrent(layer, chosen, reduce_range=reduce_range)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state(layer: nn.LSTM | nn.GRU, *batch: int, seed: int = 2) -> Any:
    """An initial state in the form that the layer reads."""
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    h, c = (noise(cells, *batch, layer.hidden_size, seed=seed + i).tanh() for i in (0, 1))
    return (h, c) if isinstance(layer, nn.LSTM) else h


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(chain(*map(flat, result)))


def assert_close(have: Any, want: Any, within: float) -> None:
    assert [x.shape for x in flat(have)] == [x.shape for x in flat(want)]
    for x, y in zip(flat(have), flat(want), strict=True):
        assert float((x - y).abs().max()) <= within


def step(x: Tensor, largest: int) -> float:
    """Between neighbours of the integers 0 to `largest` that hold x and zero."""
    return (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / largest or 1.0


def rounded(x: Tensor, largest: int) -> Tensor:
    """x as the integers 0 to `largest` hold it, which share one range."""
    zero_point = round(-min(float(x.min()), 0.0) / step(x, largest))
    integers = ((x / step(x, largest)).round() + zero_point).clamp(0, largest)
    return (integers - zero_point) * step(x, largest)


def in_float64(
    layer: nn.LSTM | nn.GRU, matrices: dict[str, Tensor], x: Tensor, hx: Any, largest: int
) -> Any:
    """What torch's documentation says of nn.LSTM and nn.GRU, on rounded inputs of each product."""
    lstm = isinstance(layer, nn.LSTM)
    parameters = {name: p.double() for name, p in {**layer.state_dict(), **matrices}.items()}
    initial = [s.double() for s in (hx if lstm else [hx])]
    x = x.double().transpose(0, 1) if layer.batch_first else x.double()
    last: list[list[Tensor]] = []
    for number in range(layer.num_layers):
        directions = []
        for suffix in ("", "_reverse") if layer.bidirectional else ("",):

            def product(v: Tensor, side: str, place: str = f"_l{number}{suffix}") -> Tensor:
                bias = parameters.get(f"bias_{side}{place}", torch.zeros(()))
                return rounded(v, largest) @ parameters[f"weight_{side}{place}"].T + bias

            h, *c = (s[len(last)] for s in initial)
            steps = list(product(x, "ih"))
            outputs = []
            for gates in reversed(steps) if suffix else steps:
                if lstm:
                    i, f, g, o = (gates + product(h, "hh")).chunk(4, dim=1)
                    c = [f.sigmoid() * c[0] + i.sigmoid() * g.tanh()]
                    h = o.sigmoid() * c[0].tanh()
                else:
                    r, z, n = gates.chunk(3, dim=1)
                    hr, hz, hn = product(h, "hh").chunk(3, dim=1)
                    z = (z + hz).sigmoid()
                    h = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h
                outputs.append(h)
            directions.append(torch.stack(outputs[::-1] if suffix else outputs))
            last.append([h, *c])
        x = torch.cat(directions, dim=2)
    y = x.transpose(0, 1) if layer.batch_first else x
    states = [torch.stack(s) for s in zip(*last, strict=True)]
    return y, tuple(states) if lstm else states[0]


# ---- What they compute


@pytest.mark.parametrize("shape", [(20,), (1, 20), (5, 20), (2, 3, 20)])
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(("reduce_range", "largest"), BITS)
def test_linear_is_as_far_from_float_as_its_integers_allow(
    name: str, shape: tuple[int, ...], reduce_range: bool, largest: int
) -> None:
    layer, x = made(LINEAR[name]), noise(*shape)
    error_x = step(x, largest)  # half of it, and the zero point's half at the ends of the range
    error_w = (on_integers(layer)["weight"] - layer.weight).abs()
    bound = error_x * on_integers(layer)["weight"].abs().sum(1) + x.abs() @ error_w.T
    difference = (dynamic(layer, reduce_range)(x) - layer(x)).abs()
    assert difference.shape == layer(x).shape
    assert bool((difference <= bound + ROUNDING).all())


@pytest.mark.parametrize(("reduce_range", "largest"), BITS)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_is_exact_on_its_integers(name: str, reduce_range: bool, largest: int) -> None:
    layer, x = made(LINEAR[name]), noise(7, 20) + 1
    want = nn.functional.linear(rounded(x, largest), on_integers(layer)["weight"], layer.bias)
    assert_close(dynamic(layer, reduce_range)(x), want, ROUNDING)


def test_linear_with_relu() -> None:
    layer, x = made(LINEAR["linear"]), noise(5, 20)
    have = dynamic(layer, relu=True)(x)
    assert torch.equal(have, dynamic(layer)(x).relu())
    assert 0 < float((have == 0).float().mean()) < 1


@pytest.mark.parametrize(("reduce_range", "largest"), BITS)
@pytest.mark.parametrize("name", RECURRENT_LAYERS)
def test_recurrent_is_exact_on_its_integers(name: str, reduce_range: bool, largest: int) -> None:
    layer, x = made(RECURRENT_LAYERS[name]), noise(4, 4, 20)
    want = in_float64(layer, on_integers(layer), x, state(layer, 4), largest)
    assert_close(dynamic(layer, reduce_range)(x, state(layer, 4)), want, ROUNDING)


def noise_of_8_bits(layer: nn.LSTM | nn.GRU, x: Tensor, y: Tensor) -> float:
    """The relative noise of products of inputs, states and weights that are held in 8 bits, which
    is independent in each; every layer adds its own. Gates only dampen it."""
    pairs = zip(weights(layer).values(), on_integers(layer).values(), strict=True)
    noise_w = max(distance(integers, weight) for weight, integers in pairs)
    parts = (distance(rounded(x, 255), x), distance(rounded(y, 255), y), noise_w)
    return layer.num_layers * math.hypot(*parts)


def distance(have: Tensor, want: Tensor) -> float:
    """Relative, in the root mean square."""
    return float((have - want).square().mean().sqrt() / want.square().mean().sqrt())


@needs_vnni
@pytest.mark.parametrize("batch", [(), (5,)], ids=["no batch", "batch"])
@pytest.mark.parametrize("given", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("name", RECURRENT_LAYERS)
def test_recurrent_is_near_float(name: str, given: bool, batch: tuple[int, ...]) -> None:
    layer = made(RECURRENT_LAYERS[name])
    x = noise(*((*batch, 7) if layer.batch_first else (7, *batch)), 20)
    args = (x, state(layer, *batch)) if given else (x,)
    have, want = dynamic(layer)(*args), layer(*args)
    assert [type(part) for part in have] == [type(part) for part in want]
    assert [part.shape for part in flat(have)] == [part.shape for part in flat(want)]
    bound = noise_of_8_bits(layer, x, want[0])
    assert bound < 0.03
    for part, expected in zip(flat(have), flat(want), strict=True):
        assert distance(part, expected) < bound


def test_state_is_taken_by_its_name() -> None:
    layer, x = made(RECURRENT_LAYERS["gru"]), noise(3, 2, 20)
    have = dynamic(layer)(input=x, hx=state(layer, 2))
    assert torch.equal(have[0], dynamic(layer)(x, state(layer, 2))[0])


# ---- In files


def graph_of(layer: Layer, given: bool = False) -> GraphModule:
    """A graph that calls the layer's int8 form, as a converted model does."""
    graph = Graph()
    places = [
        "x",
        *(["h"] if given else []),
        *(["c"] if isinstance(layer, nn.LSTM) and given else []),
    ]
    x, *hx = (graph.placeholder(name) for name in places)
    args = (x, tuple(hx) if len(hx) == 2 else hx[0]) if given else (x,)
    graph.output(graph.call_module("layer", args))
    return GraphModule({"layer": dynamic(layer)}, graph).eval()


def frozen(layer: Layer, example: Sequence[Tensor]) -> torch.jit.ScriptModule:
    return torchscript.freeze(torchscript.trace(graph_of(layer, len(example) > 1), example))


# A user's process: nothing of qconvert.
RELOAD = """
import os, sys, torch
results = {}
for name, inputs in torch.load("inputs", weights_only=True).items():
    model = torch.jit.load(name)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results[name, threads] = [model(*x) for x in inputs]
assert "qconvert" not in sys.modules
torch.save(results, "results")
"""
FILES = [(name, given) for name in RECURRENT_LAYERS for given in (False, True)]
FILES += [(name, False) for name in LINEAR]


def inputs_of(name: str, given: bool) -> list[tuple[Tensor, ...]]:
    """Of several batches and lengths; the first is the one of the trace."""
    if name in LINEAR:
        return [(noise(rows, 20),) for rows in (1, 7, 300)]
    layer = made(RECURRENT_LAYERS[name])
    inputs: list[tuple[Tensor, ...]] = []
    for batch, length in ((1, 5), (3, 2), (2, 9), (1, 1)):
        x = noise(*((batch, length) if layer.batch_first else (length, batch)), 20)
        inputs.append((x, *(flat(state(layer, batch)) if given else [])))
    return inputs


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    """Results of every file in a fresh process, by file and number of threads."""
    folder = tmp_path_factory.mktemp("files")
    inputs = {f"{name} {given}": inputs_of(name, given) for name, given in FILES}
    torch.save(inputs, folder / "inputs")
    for name, given in FILES:
        layer = made({**RECURRENT_LAYERS, **LINEAR}[name])
        content = torchscript.to_bytes(frozen(layer, inputs[f"{name} {given}"][0]))
        (folder / f"{name} {given}").write_bytes(content)
    subprocess.run([sys.executable, "-W", "ignore", "-c", RELOAD], check=True, cwd=folder)
    return torch.load(folder / "results", weights_only=True)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "given"), FILES)
def test_file_computes_the_same_in_another_process(
    reloaded: dict[tuple[str, int], list[Any]], name: str, given: bool, threads: int
) -> None:
    model = graph_of(made({**RECURRENT_LAYERS, **LINEAR}[name]), given)
    inputs, results = inputs_of(name, given), reloaded[f"{name} {given}", threads]
    for x, have in zip(inputs, results, strict=True):
        assert all(map(torch.equal, flat(have), flat(model(*x))))


BUILD = """
import hashlib, os, sys
folder = os.path.dirname(sys.argv[1])
sys.path[:0] = folder, os.path.dirname(os.path.dirname(folder))
import test_dynamic as t
for i in range(int(sys.argv[2])):
    t.torchscript.trace(t.nn.Sequential(t.nn.ReLU(), t.nn.Linear(20, 20)), [t.noise(2, 20)])
for name, build in {**t.RECURRENT_LAYERS, **t.LINEAR}.items():
    example = [t.noise(*((2, 3, 20) if name in t.RECURRENT_LAYERS else (3, 20)))]
    print(hashlib.sha256(t.torchscript.to_bytes(t.frozen(t.made(build), example))).hexdigest())
"""


def test_bytes_are_the_same_in_every_process() -> None:
    found = []
    for traced_before in (0, 12):
        command = [sys.executable, "-W", "ignore", "-c", BUILD, __file__, str(traced_before)]
        environment = {**os.environ, "PYTHONHASHSEED": str(traced_before)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append(done.stdout.split())
    assert found[0] == found[1]
    assert len(set(found[0])) == len(RECURRENT_LAYERS) + len(LINEAR)
    assert all(len(digest) == len(hashlib.sha256().hexdigest()) for digest in found[0])


def records(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.mark.parametrize("name", ["lstm both ways", "gru both ways", "linear"])
def test_file_holds_the_integers_and_no_float_weights(name: str) -> None:
    layer = made({**RECURRENT_LAYERS, **LINEAR}[name])
    # As in a model whose parameters are parts of one tensor.
    everything = torch.zeros(1_000_000)
    for parameter in layer.parameters():
        part = everything[: parameter.numel()].view_as(parameter)
        everything = everything[parameter.numel() :]
        parameter.data = part.copy_(parameter)
    example = [noise(5, 20) if name == "linear" else noise(2, 5, 20)]
    found = records(torchscript.to_bytes(frozen(layer, example)))
    for weight in weights(layer).values():
        integers = quantized(weight, choose_params(weight, WeightScheme())).int_repr()
        assert integers.numpy().tobytes() in found.values()
        assert not any(weight.numpy().tobytes() in record for record in found.values())
    assert max(map(len, found.values())) < 16_000


@pytest.mark.parametrize("name", RECURRENT_LAYERS)
def test_multiply_accumulates_are_read_from_the_file(name: str) -> None:
    layer, x = made(RECURRENT_LAYERS[name]), noise(3, 5, 20)
    module = torchscript.load(torchscript.to_bytes(frozen(layer, [x])))
    executed: list[Executed] = []
    watch(module, [x], executed.append)
    executed = [e for e in executed if e.kind in RECURRENT]
    assert len(executed) == 1
    # 15 rows; by layer and direction 24 * 4 (LSTM) or 24 * 3 (GRU) results of 20 + 24 terms, in
    # the second layer of both directions' 48 + 24 terms.
    gates = 24 * (4 if name.startswith("lstm") else 3)
    terms = {
        "": 44,
        " two layers": 44 + 48,
        " both ways": 2 * (44 + 72),
        " no bias": 2 * 44,
    }[name.removeprefix("lstm").removeprefix("gru")]
    (cells,) = (a for a in executed[0].args if isinstance(a, list) and not torch.is_tensor(a[0]))
    assert recurrent_macs(x, cells) == 15 * gates * terms


# ---- What has no dynamic form


class Doubled(nn.LSTM):
    """Computes something of its own."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(2 * input, hx)


class Renamed(nn.GRU):
    """Computes what its base does."""


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LSTM(4, 6, proj_size=3), "no projections"),
        (nn.RNN(4, 6), "no dynamic int8 operator for RNN"),
        (nn.LSTMCell(4, 6), "no dynamic int8 operator for LSTMCell"),
        (nn.Conv2d(4, 6, 1), "no dynamic int8 operator for Conv2d"),
        (Doubled(4, 6), "Doubled computes something else than torch.nn.LSTM"),
        (nn.Linear(4, 6).double(), "not float32"),
        (nn.GRU(4, 6).half(), "not float32"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_that_is_refused(module: nn.Module, reason: str) -> None:
    assert reason in (why_not_dynamic(module) or "")
    if isinstance(module, (nn.LSTM, nn.GRU)):
        with pytest.raises(ValueError, match=reason):
            DynamicRecurrent(module, {}, reduce_range=False)


def test_a_packed_sequence_is_refused() -> None:
    packed = pack_sequence([noise(3, 4), noise(2, 4)])
    assert why_not_dynamic(nn.LSTM(4, 6), [packed]) == "its input is a PackedSequence"


@pytest.mark.parametrize(
    "module", [nn.Linear(4, 6), nn.LSTM(4, 6, 2, bidirectional=True), Renamed(4, 6)], ids=repr
)
def test_a_layer_that_is_taken(module: nn.Module) -> None:
    assert why_not_dynamic(module, [noise(3, 4), None]) is None
