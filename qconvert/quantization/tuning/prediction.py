"""What a plan with some operators in float would cost, by the planner's own table of costs, before
anything is lowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape

from torch import Tensor

from qconvert.models.fusion import FusedModel
from qconvert.qconfig import LayerRule, Precision, QuantizationSection
from qconvert.quantization import rules
from qconvert.quantization.costs import Costs
from qconvert.quantization.forecast import Forecast, forecast
from qconvert.quantization.layer_rules import asked_for
from qconvert.quantization.plan import Plan


@dataclass(frozen=True)
class Prediction:
    """Of a whole model on one image, at one thread: seconds, and the share of multiply-accumulates
    in int8."""

    latency_s: float
    int8_macs: float


@dataclass(frozen=True)
class Predictor:
    """Predicts what becomes of a model whose operators of some names are in float beside those that
    `section` has there; the planner then moves others that float or int8 is cheaper for."""

    model: FusedModel
    section: QuantizationSection
    costs: Costs
    example: Sequence[Tensor]
    _known: dict[frozenset[str], Prediction] = field(default_factory=dict)

    def __call__(self, names: frozenset[str]) -> Prediction:
        """Of these names."""
        if names not in self._known:
            self._known[names] = _of(self._forecast(in_float(self.section, names)))
        return self._known[names]

    @property
    def all_in_float(self) -> Prediction:
        """Of the model with everything in float, whatever the section asks for."""
        rule = LayerRule(match="*", precision="float32")
        return _of(self._forecast(self.section.model_copy(update={"layers": (rule,)})))

    def neighbours(self) -> dict[str, set[str]]:
        """The operators that read each other's results, by name."""
        found: dict[str, set[str]] = {}
        for operator in self._forecast(self.section).operators:
            for other in operator.reads:
                found.setdefault(operator.name, set()).add(other)
                found.setdefault(other, set()).add(operator.name)
        return found

    def _forecast(self, section: QuantizationSection) -> Forecast:
        return forecast(self.model, section, self.costs, example=self.example)


def _of(found: Forecast) -> Prediction:
    return Prediction(found.microseconds / 1e6, found.share("int8") + found.share("dynamic"))


def in_float(section: QuantizationSection, names: frozenset[str]) -> QuantizationSection:
    """The section with operators of these names in float, too."""
    added = tuple(
        LayerRule(match=escape(name), precision="float32") for name in sorted(names, key=_natural)
    )
    return section.model_copy(update={"layers": (*section.layers, *added)})


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `features.2` before `features.10`.

    >>> sorted(["a.10", "a.2", "a.b"], key=_natural)
    ['a.2', 'a.10', 'a.b']
    """
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in name.split(".")]


def alone_in_int8(
    section: QuantizationSection, name: str, known: Mapping[str, Precision]
) -> QuantizationSection:
    """The section with one of the `known` operators in int8 (or dynamic, as it is known) and the
    others in float."""
    others = in_float(section, frozenset(known) - {name})
    rule = LayerRule(match=escape(name), precision=known[name])
    return others.model_copy(update={"layers": (*others.layers, rule)})


def candidates(model: FusedModel, section: QuantizationSection, plan: Plan) -> dict[str, Precision]:
    """The names of the operators that a plan has in int8 and that could be in float, and which
    int8 it is: those that round, and about which the qconfig says nothing. Calls of one module go
    together."""
    free = {name for name, asked in asked_for(model, section).items() if asked.precision == "auto"}
    found: dict[str, Precision] = {}
    for operator in plan.operators:
        rounds = operator.kind not in (*rules.SAME_RANGE, *rules.HELD_AS_THEY_ARE)
        if not rounds or operator.node not in free or operator.precision in ("float32", "given"):
            continue
        precision: Precision = "dynamic" if operator.precision == "dynamic" else "int8"
        for name in (operator.name, operator.with_sum):
            if name is not None:
                found[name.partition(":")[0]] = precision
    return found
