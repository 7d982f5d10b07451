"""How each tensor of a plan is held in int8: its range, and which tensors share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch.fx import GraphModule, Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import clip_bounds, kind_of, module_of
from qconvert.models.pixels import PixelShares
from qconvert.models.two_terms import TwoTerms
from qconvert.qconfig import ActivationScheme, QuantizationSection
from qconvert.quantization import rules
from qconvert.quantization.affine import QuantParams, affine, symmetric
from qconvert.quantization.calibration import Calibration
from qconvert.quantization.deciding import Decision
from qconvert.quantization.distribution import Distribution
from qconvert.quantization.layer_rules import Asked
from qconvert.quantization.plan import TensorParams
from qconvert.quantization.units import Unit
from qconvert.registry import ACTIVATION_OBSERVERS

# Largest integer of activations.
_LARGEST = 255
# Inputs of a concatenation are held like its result where that costs no other reader of theirs
# more than this factor in the size of steps (1.9 dB).
_COARSER = 1.25


class Ranges:
    """Chooses how tensors are held, each from its own distribution, or a shared one."""

    def __init__(
        self,
        model: FusedModel,
        calibration: Calibration,
        section: QuantizationSection,
        asked: Mapping[str, Asked],
    ) -> None:
        self._graph: GraphModule = model.graph
        self._calibration = calibration
        self._section = section
        self._asked = asked
        self._producers = {follower: node for node, follower in model.pairs.items()}
        self.tensors: dict[str, TensorParams] = {}

    def choose(self, units: Iterable[Unit], decisions: Iterable[Decision]) -> None:
        """Leaves in `tensors` how every value is held that is read or made in int8."""
        pairs = list(zip(units, decisions, strict=True))
        sums = {
            pairs[d.with_sum][0].node.name: u.node.name for u, d in pairs if d.with_sum is not None
        }
        inside = set(sums.values())
        for unit, decision in pairs:
            if decision.precision != "int8":
                continue
            for source in unit.inputs if unit.kind != rules.TWO_TERMS else ():
                if source.name not in inside:
                    self._hold(source)
            if unit.node.name in inside or decision.float_output:
                continue
            if unit.kind in rules.SAME_RANGE:
                self.tensors[unit.value.name] = self.tensors[unit.inputs[0].name]
            elif unit.kind == rules.PIXELS:
                shares = module_of(self._graph, unit.node)
                self.tensors[unit.value.name] = held_as_they_are(shares)
            elif unit.kind == rules.TWO_TERMS:
                terms = module_of(self._graph, unit.node)
                self.tensors[unit.value.name] = held_in_two_terms(terms)
            else:
                self._hold(unit.value, self._bound(unit))
        self._share([unit for unit, decision in pairs if decision.precision == "int8"])

    def _bound(self, unit: Unit) -> float | None:
        """Where the range of a layer with a clip ends."""
        if unit.follower is None or kind_of(self._graph, unit.follower) != "clip":
            return None
        bounds = clip_bounds(self._graph, unit.follower)
        return bounds[1] if bounds else None

    def _hold(self, value: Node, bound: float | None = None) -> None:
        if value.name not in self.tensors:
            seen = self._calibration.tensors[value.name]
            self.tensors[value.name] = self._params(seen, self._scheme(value), bound)

    def _params(
        self, seen: Distribution, scheme: ActivationScheme, bound: float | None = None
    ) -> TensorParams:
        observe = ACTIVATION_OBSERVERS[scheme.observer].load()
        low, high = observe(seen, percentile=scheme.percentile, levels=_LARGEST)
        if bound is not None:
            low, high = max(low, 0.0), min(high, bound)
        choose = affine if scheme.scheme == "affine" else symmetric
        params = choose(low, high, 0, _LARGEST)
        return TensorParams(
            observer=scheme.observer,
            range_min=low,
            range_max=high,
            scale=params.scale,
            zero_point=params.zero_point,
            quant_min=params.quant_min,
            quant_max=params.quant_max,
        )

    def _scheme(self, value: Node) -> ActivationScheme:
        """The scheme of a value: what is asked for its activation, or else for its layer."""
        asked = self._asked.get(value.name)
        if asked is None:  # the model's input
            return self._section.activations
        if asked.own_activations or value.name not in self._producers:
            return asked.activations
        return self._asked[self._producers[value.name]].activations

    def _share(self, units: list[Unit]) -> None:
        """Gives the inputs of a concatenation the range of its result: their integers are then
        copied, not rounded anew.

        A value that only concatenations read loses nothing by it. One that others read, too, may
        lose a little (`_COARSER`). Values that are held alike anyway go together: the two sides of
        a slice, a reshape or a pooling.
        """
        groups = _Groups()
        results = {unit.value.name for unit in units if unit.kind == "cat"}
        bounds = {
            unit.value.name: bound for unit in units if (bound := self._bound(unit)) is not None
        }
        readers: dict[str, set[str]] = {}
        for unit in units:
            for source in unit.inputs:
                readers.setdefault(source.name, set()).add(unit.kind)
            if unit.kind in rules.SAME_RANGE:
                groups.join(unit.inputs[0].name, unit.value.name)
        for unit in units:
            if unit.kind != "cat":
                continue
            together = self.tensors[unit.value.name]
            for source in unit.inputs:
                members = groups.of(source.name)
                kinds = set().union(*(readers.get(m, set()) for m in members))
                own = self.tensors[source.name]
                free = kinds <= {"cat", *rules.SAME_RANGE}
                joined = members | groups.of(unit.value.name)
                largest = max(self.tensors[m].range_max for m in joined & results)
                if any(bounds.get(m, largest) < largest for m in joined):
                    continue  # the end of its range is what bounds it
                if free or together.scale <= own.scale * _COARSER:
                    groups.join(source.name, unit.value.name)
        for members in groups.all():
            shared = [m for m in members if m in results]
            if not shared:
                continue
            widest = max(shared, key=lambda m: (self.tensors[m].scale, m))
            for member in members:
                self.tensors[member] = self.tensors[widest]


def held_as_they_are(shares: PixelShares) -> TensorParams:
    """Every pixel is an integer already."""
    return _held(QuantParams(affine(0.0, 1.0).scale, shares.zero), "none: pixels")


def held_in_two_terms(terms: TwoTerms) -> TensorParams:
    """Both terms have the steps of the first."""
    return _held(QuantParams(terms.scale, terms.zero_point), "none: two terms")


def _held(params: QuantParams, observer: str) -> TensorParams:
    return TensorParams(
        observer=observer,
        range_min=params.minimum,
        range_max=params.maximum,
        scale=params.scale,
        zero_point=params.zero_point,
        quant_min=params.quant_min,
        quant_max=params.quant_max,
    )


class _Groups:
    """Names that belong together."""

    def __init__(self) -> None:
        self._members: dict[str, set[str]] = {}

    def of(self, name: str) -> set[str]:
        return self._members.setdefault(name, {name})

    def join(self, first: str, second: str) -> None:
        members = self.of(first) | self.of(second)
        for name in members:
            self._members[name] = members

    def all(self) -> list[set[str]]:
        return list({id(members): members for members in self._members.values()}.values())
