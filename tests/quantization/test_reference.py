"""Hundreds of generated networks: the file computes what its plan means, to the integer.

The chain has three links. Each int8 operator of the lowered model gives, on what it read, the
integer nearest to the reference's exact number (not merely one within a step: a zero point that is
off by one would pass that). The file gives in fresh processes, at one thread and at two, what the
lowered model gives. And five images in a batch give what they give one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import generated
import numpy as np
import pytest
import torch
from isa_here import ISA
from reference import Check, Recorded, Reference
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qconvert import torchscript
from qconvert.images.folder import ImageSet
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.models.operators import kind_of
from qconvert.qconfig import QuantizationSection
from qconvert.quantization.calibration import Calibration, calibrate
from qconvert.quantization.lowering.backend import Backend, Call, Layer, lower
from qconvert.quantization.lowering.targets import Int8
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams
from qconvert.quantization.planning import make_plan

# Where the exact number lies between two integers, a kernel may take either. Kernels scale their
# sums in float32, so "between" has a width; oneDNN approximates activations more coarsely.
NEAREST = 0.5 + 5e-3
NEAREST_ACTIVATED = 0.5 + 0.02
# Of the largest number in a result in float.
FLOAT = 2e-5

# Loads many files and runs each on single images and on a batch, as a user's process would.
RUN = """
import sys
import torch
threads, inputs_path, outputs_path, *files = sys.argv[1:]
torch.set_num_threads(int(threads))
inputs = torch.load(inputs_path, weights_only=True)
results = []
with torch.inference_mode():
    for file, x in zip(files, inputs):
        model = torch.jit.load(file)
        results.append([model(part) for part in (*x.split(1), x)])
torch.save(results, outputs_path)
"""


@dataclass(frozen=True)
class Setting:
    """A part of the seeds, and the quantization settings that they are converted with."""

    name: str
    seeds: range
    quantization: dict[str, Any]


INT8 = {"decide": "int8", "isa": ISA}
SETTINGS = [
    Setting("classic", range(90), {**INT8, "lowering": "classic"}),
    Setting("direct", range(75), {**INT8, "lowering": "direct"}),
    Setting("auto", range(70), {**INT8, "lowering": "auto"}),
    Setting("portable", range(100, 118), {**INT8, "isa": "portable"}),
    Setting("portable_direct", range(125, 135), {**INT8, "isa": "portable", "lowering": "direct"}),
    Setting("affine_weights", range(140, 155), {**INT8, "weights": {"scheme": "affine"}}),
    Setting("per_tensor", range(160, 172), {**INT8, "weights": {"observer": "minmax"}}),
    Setting("symmetric", range(180, 195), {**INT8, "activations": {"scheme": "symmetric"}}),
    Setting("table", range(200, 230), {"decide": "table", "isa": ISA}),
]


class Watching:
    """See `backend.Target`: those of `Int8`, and which nodes each operator reads and makes."""

    def __init__(self, plan: Plan) -> None:
        self._target = Int8(plan)
        self.graph, self.modules = self._target.graph, self._target.modules
        self.layers = self._target.layers
        self.read: dict[tuple[str, int], str] = {}
        self.made: dict[str, str] = {}

    def backend(self, operator: PlannedOperator) -> Backend:
        return _WatchedBackend(self._target.backend(operator), self)

    def of_form(self, form: str) -> Backend:
        return self._target.of_form(form)

    def dynamic(self, operator: PlannedOperator, module: Any, path: str) -> Any:
        return self._target.dynamic(operator, module, path)

    def saw(self, operator: PlannedOperator, read: Sequence[Any], made: Node) -> Node:
        for i, node in enumerate(read):
            self.read[operator.node, i] = node.name
        self.made[operator.node] = made.name
        return made


class _WatchedBackend:
    def __init__(self, backend: Backend, watching: Watching) -> None:
        self._backend, self._watching = backend, watching
        self.graph, self.modules, self.form = backend.graph, backend.modules, backend.form

    def bring(self, x: Node, form: str, held: TensorParams, dimensions: int) -> Node:
        return self._backend.bring(x, form, held, dimensions)

    def dequantize(self, x: Node, held: TensorParams) -> Node:
        return self._backend.dequantize(x, held)

    def reads_float(self, layer: Layer) -> bool:
        return self._backend.reads_float(layer)

    def weighted(self, layer: Layer, x: Node, term: Node | None) -> Node:
        made = self._backend.weighted(layer, x, term)
        return self._watching.saw(layer.operator, [x] if term is None else [x, term], made)

    def combine(
        self,
        operator: PlannedOperator,
        xs: Sequence[Node],
        held: Sequence[TensorParams],
        axis: int,
    ) -> Node:
        return self._watching.saw(operator, xs, self._backend.combine(operator, xs, held, axis))

    def normalize(
        self, operator: PlannedOperator, module: Any, path: str, x: Node, held: TensorParams
    ) -> Node:
        made = self._backend.normalize(operator, module, path, x, held)
        return self._watching.saw(operator, [x], made)

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        made = self._backend.same_range(operator, call, held)
        return self._watching.saw(operator, call.args[:1], made)


class _Recording(Interpreter):
    """Runs a lowered model and keeps copies of what its nodes make.

    A fused sum overwrites its term; nobody may read that later.
    """

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        for source in n.all_input_nodes:
            if source.name in self.values:
                same = np.array_equal(_array(self.env[source]), self.values[source.name])
                assert same, f"{n.name} reads {source.name}, which was overwritten"
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.values[n.name] = _array(result)
        return result


def _array(x: Tensor) -> Any:
    return (x.int_repr() if x.is_quantized else x).clone().numpy()


def recorded(model: GraphModule, watching: Watching, x: Tensor) -> Recorded:
    """What the operators of a lowered model read and make."""
    recording = _Recording(model)
    with torch.inference_mode():
        recording.run(x)
    return Recorded(
        {key: recording.values[name] for key, name in watching.read.items()},
        {key: recording.values[name] for key, name in watching.made.items()},
    )


def wrong(check: Check) -> bool:
    """Whether a result is not the nearest to the exact one."""
    if check.exact is None:
        return not check.error <= FLOAT
    if check.exact:
        return check.error != 0
    activated = check.operator.activation not in (None, "relu", "saturation")
    return not check.error <= (NEAREST_ACTIVATED if activated else NEAREST)


@dataclass(frozen=True, repr=False)
class Case:
    """A generated network, fused and calibrated."""

    network: generated.Network
    fused: FusedModel
    calibration: Calibration


@cache
def case(seed: int) -> Case:
    """That of a seed."""
    return calibrated(generated.network(seed))


def calibrated(network: generated.Network) -> Case:
    """As the `fuse` and `calibrate` steps do, on tensors instead of image files."""
    fused = fuse(capture(network.module, [network.calibration[:1]]))
    images = network.calibration.split(1)
    files = ImageSet(Path(), tuple(Path(str(i)) for i in range(len(images))), None, None, "")
    calibration = calibrate(
        fused, files, lambda path: (images[int(path.name)],), batch_size=4, averaging=0.01
    )
    return Case(network, fused, calibration)


@dataclass(frozen=True, repr=False)
class Converted:
    """A network's plan, its lowered model and the file's bytes."""

    case: Case
    plan: Plan
    watching: Watching
    model: GraphModule
    file: bytes

    @property
    def images(self) -> Tensor:
        """Five, others than those of the calibration."""
        return self.case.network.images

    def wrong(self) -> list[str]:
        """What differs from the reference."""
        seen = recorded(self.model, self.watching, self.images)
        result = Reference(self.case.fused, self.plan).run(self.images, seen)
        found = [
            f"{c.operator.name} ({c.operator.kind}, {c.operator.lowering}, "
            f"{c.operator.activation}), {c.place}: off by {c.error:.3g}"
            for c in result.checks
            if wrong(c)
        ]
        with torch.inference_mode():
            output = self.model(self.images).double().numpy()
        if not share(output, result.output) <= FLOAT:
            found.append(f"output: off by {share(output, result.output):.3g}")
        return found


def share(a: Any, b: Any) -> float:
    """The largest difference, as a share of the largest number."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def converted(case: Case, quantization: dict[str, Any]) -> Converted:
    """As the `convert` step does."""
    section = QuantizationSection.model_validate(quantization)
    plan = make_plan(case.fused, case.calibration, section)
    watching = Watching(plan)
    model = lower(case.fused, plan, watching)
    script = torchscript.freeze(torchscript.trace(model, [case.network.calibration[:1]]))
    return Converted(case, plan, watching, model, torchscript.to_bytes(script))


def run(folder: Path, files: Sequence[bytes], images: Sequence[Tensor], threads: int) -> list[Any]:
    """What files give in a fresh process: for each one the results of single images, and that of
    all in a batch."""
    paths = [folder / f"{i}.pt" for i in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    inputs, outputs = folder / "inputs.pt", folder / "outputs.pt"
    torch.save(list(images), inputs)
    command = [sys.executable, "-I", "-c", RUN, str(threads), str(inputs), str(outputs)]
    # Threads that wait do not spin: other tests run on the same cores.
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command += map(str, paths)
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert process.returncode == 0, process.stderr[-2000:] or f"died: {process.returncode}"
    results: list[Any] = torch.load(outputs, weights_only=True)
    return results


@dataclass(frozen=True, repr=False)
class Chunk:
    """The converted networks of a setting, and why others are not."""

    networks: list[Converted]
    refused: dict[int, str]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: setting.name)
def chunk(request: pytest.FixtureRequest) -> Chunk:
    """All networks of one setting."""
    done, refused = [], {}
    for seed in request.param.seeds:
        try:
            done.append(converted(case(seed), request.param.quantization))
        except Exception as error:  # whatever stops a network is a finding of its own
            reason = error.__cause__ or error
            refused[seed] = str(reason).strip().splitlines()[-1]
    return Chunk(done, refused)


def test_every_network_is_converted(chunk: Chunk) -> None:
    assert chunk.refused == {}


def test_every_operator_gives_the_nearest_integers(chunk: Chunk) -> None:
    found = {c.case.network.seed: c.wrong() for c in chunk.networks}
    assert {seed: facts for seed, facts in found.items() if facts} == {}


@pytest.mark.parametrize("threads", [1, 2])
def test_files_give_in_a_fresh_process_what_their_models_give(
    chunk: Chunk, tmp_path: Path, threads: int
) -> None:
    images = [c.images for c in chunk.networks]
    results = run(tmp_path, [c.file for c in chunk.networks], images, threads)
    found: dict[int, list[str]] = {}
    for c, (*singles, batch) in zip(chunk.networks, results, strict=True):
        with torch.inference_mode():
            expected = c.model(c.images)
        for name, have in (("batch", batch), ("singles", torch.cat(singles))):
            if not share(have, expected) <= FLOAT:
                facts = found.setdefault(c.case.network.seed, [])
                facts.append(f"{name}: off by {share(have, expected):.3g}")
    assert found == {}


def test_there_are_enough_networks_of_every_kind() -> None:
    """The generator has not dried up: what the reference knows is in some file."""
    assert sum(len(setting.seeds) for setting in SETTINGS) >= 300
    kinds = {
        kind_of(fused.graph, node)
        for seed in range(90)
        for fused in [case(seed).fused]
        for node in fused.graph.graph.nodes
    }
    assert kinds >= {
        "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "batch_norm", "add", "mul",
        "cat", "relu", "clip", "leaky_relu", "prelu", "elu", "hardswish", "silu", "gelu", "tanh",
        "sigmoid", "hardsigmoid", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "pad",
        "interpolate", "narrow", "channel_shuffle", "mean", "flatten", "reshape", "permute",
    }  # fmt: skip
