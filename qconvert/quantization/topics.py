"""Why an operator stays in float, by topic, and what its author could write instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qconvert.models.operators import CONVOLUTIONS, RECURRENT, TRANSPOSED
from qconvert.models.tracing import DIFFERS
from qconvert.quantization.forecast import Operator


@dataclass(frozen=True)
class Topic:
    """A kind of resistance, and advice in words. `fits` tells by kind and reason; the first topic
    that fits is the operator's."""

    name: str
    advice: str
    fits: Callable[[str, str], bool]


def _never(_kind: str, _reason: str) -> bool:
    return False


def _kinds(*names: str) -> Callable[[str, str], bool]:
    lower = frozenset(name.lower() for name in names)
    return lambda kind, reason: kind.lower().rstrip("_") in lower


def _says(*texts: str) -> Callable[[str, str], bool]:
    return lambda kind, reason: any(text in reason for text in texts)


def _both(
    first: Callable[[str, str], bool], second: Callable[[str, str], bool]
) -> Callable[[str, str], bool]:
    return lambda kind, reason: first(kind, reason) and second(kind, reason)


SQUEEZE = Topic(
    "squeeze-and-excitation",
    "Leave the gate out and make the layers a little wider (EfficientNet-Lite is EfficientNet "
    "without it): its averages and its product with each channel are float, so the whole map goes "
    "to float and back. Where it must stay, keep it in the last stages, whose maps are small; "
    "Hardsigmoid is cheaper than Sigmoid, and float as well.",
    _never,
)
KEPT = Topic(
    "kept as written",
    "The modules that it calls are int8. Its own lines are float: move layers that they call as "
    "functions into modules.",
    _never,
)
_ELSE = (
    "or move it out of the layers that are to be int8: code that is kept as written is float, the "
    "modules that it calls are converted."
)
# What the reasons for keeping code say, and what would help.
_KEPT_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (DIFFERS,),
        "If it goes the same way for all images, write {fixed}. Else rewrite the line that is "
        "named so that it does not depend on values of tensors (torch.where or a mask for `if`, "
        f"fixed sizes for shapes that are computed), {_ELSE}",
    ),
    (("listed in model.scripted",), "`model.scripted` asks for it: remove the name there."),
    (
        ("is called for none", "calls it for none"),
        "If images of yours do reach it, put one of them among the calibration images.",
    ),
    (
        ("numpy", "__array__", "ndarray"),
        "Rewrite the line that is named with torch instead of numpy: numpy cannot be followed.",
    ),
    (
        ("not installed as a submodule", "is not a child", "not a module of the model"),
        "Put the layers into nn.ModuleList or nn.ModuleDict instead of a plain list or dict.",
    ),
    (
        ("in place",),
        "Compute a new tensor on the line that is named, instead of changing the one that is given "
        "(y = x + 1 for x += 1).",
    ),
    (
        ("which is not made of tensors", "no tensors", "other arguments for other images"),
        "Give and return tensors, or tuples, lists and dicts of them, the same for any number of "
        "images.",
    ),
)


def kept_advice(path: str, reason: str) -> str:
    """What would help a module whose code is kept for this reason."""
    fixed = f"`model.fixed: {f'[{path}]' if path else 'all'}`"
    for texts, advice in _KEPT_ADVICE:
        if any(text in reason for text in texts):
            return advice.format(fixed=fixed)
    return (
        "Rewrite the line that is named in torch's own functions, with layers in nn.ModuleList "
        f"instead of a plain list and sizes as plain numbers, {_ELSE}"
    )


FOLLOWS = Topic(
    "follows its neighbours",
    "Nothing to change here: it becomes int8 when what is before it does.",
    _says("it is not worth a boundary", "is float"),
)
_RELU = "ReLU or ReLU6: every int8 kernel computes them with the layer before it, at no cost"
_FUSABLE = (
    "Hardswish and SiLU are computed by the kernel of a 2d convolution where the map is large"
)

ADVICE: tuple[Topic, ...] = (
    Topic(
        "asked for by the qconfig",
        "`quantization.layers` asks for float: remove the rule if accuracy allows it.",
        _says("the qconfig asks for it"),
    ),
    FOLLOWS,
    Topic(
        "layer norm",
        "In a convolutional network put BatchNorm2d right after the convolution: it is folded and "
        "costs nothing. In a transformer nothing that is folded replaces it: fewer, wider blocks "
        "have fewer norms and boundaries.",
        _kinds("layer_norm", "LayerNorm2d", "RMSNorm", "rms_norm"),
    ),
    Topic(
        "group norm",
        "BatchNorm2d right after the convolution: its statistics are constant when the model is "
        "used, so it is folded and costs nothing.",
        _kinds(
            "group_norm",
            "InstanceNorm1d",
            "InstanceNorm2d",
            "InstanceNorm3d",
            "instance_norm",
            "LocalResponseNorm",
        ),
    ),
    Topic(
        "batch norm that is not folded",
        "Put it right after a convolution or linear layer that nothing else reads: it is folded.",
        _kinds("batch_norm"),
    ),
    Topic(
        "transposed convolution",
        "interpolate(mode='nearest') and a 3x3 convolution after it: both are int8.",
        _kinds(*TRANSPOSED),
    ),
    Topic(
        "attention product",
        "No int8 kernel multiplies two computed matrices; the linear layers around them can be "
        "int8. Fewer tokens make the product smaller: a larger patch or stride, pooled keys and "
        "values, windows.",
        _kinds(
            "attention",
            "multi_head_attention",
            "matmul",
            "bmm",
            "einsum",
            "softmax",
            "shifted_window_attention",
            "scaled_dot_product_attention",
        ),
    ),
    Topic(
        "activation without an int8 kernel",
        f"{_RELU}; {_FUSABLE}.",
        _kinds(
            "prelu",
            "elu",
            "celu",
            "selu",
            "mish",
            "softplus",
            "rrelu",
            "softsign",
            "hardshrink",
            "softshrink",
            "threshold",
            "logsigmoid",
            "glu",
        ),
    ),
    Topic(
        "gate",
        "A Sigmoid or Hardsigmoid is float; at the end of the model leave it to who reads the "
        "result. Within the model a plain residual sum is int8, a gate is not.",
        _kinds("sigmoid", "hardsigmoid", "logsigmoid"),
    ),
    Topic(
        "activation that is faster in float",
        f"{_RELU}. {_FUSABLE}, GELU and Tanh by that of a linear layer where that is faster.",
        _kinds("hardswish", "silu", "gelu", "tanh", "leaky_relu"),
    ),
    Topic(
        "clip without constant bounds",
        "ReLU6, or clamp with two constant bounds: it is int8.",
        _says("its bounds are not two constants"),
    ),
    Topic(
        "interpolation",
        "mode='nearest' without antialias is int8 and fast. torch's int8 bilinear is slower than "
        "float, and there is none for the other modes.",
        _kinds("interpolate"),
    ),
    Topic(
        "average of a whole map",
        "Nothing to gain: it is little work, and the average of many 8-bit values has more than 8 "
        "bits.",
        _says("an average over many 8-bit values"),
    ),
    Topic(
        "product or sum of different shapes",
        "Give both the same shape, or fold a constant factor of each channel into the weight of "
        "the layer before it.",
        _says("its inputs differ in shape", "something else than two tensors"),
    ),
    Topic(
        "padding",
        "padding_mode='zeros', the same on both sides, and less of it than the filter reaches: "
        "such convolutions and paddings are int8.",
        _says(" padding", "pad both sides alike", "pad with zeros only"),
    ),
    Topic(
        "weight that is computed",
        "Compute the weight once, before the model is saved, and give it to nn.Conv2d or nn.Linear "
        "(weight standardization can be folded so).",
        _says("its weight is not constant", "its statistics are not constant"),
    ),
    Topic(
        "recurrent layer",
        "A plain nn.LSTM or nn.GRU without proj_size becomes int8 with dynamic ranges where that "
        "is faster: larger hidden states gain, small ones do not.",
        _kinds(*RECURRENT),
    ),
    Topic(
        "split along another axis",
        "Split channels (dim=1): such parts are int8; those of other axes are float.",
        _says("it returns a tuple"),
    ),
    Topic(
        "convolution that is faster in float",
        "Depthwise layers want channels in multiples of 8, square filters of 3, 5 or 7 that keep "
        "the size, and no dilation. Other layers are too small to pay for their boundaries: fewer, "
        "wider ones gain more.",
        _both(_kinds(*CONVOLUTIONS), _says("float is faster")),
    ),
    Topic(
        "too small to pay for boundaries",
        "Nothing to gain here: float is faster. Wider layers, or several in a row, pay for the "
        "boundaries.",
        _says("float is faster"),
    ),
    Topic(
        "concatenation of one tensor",
        "Leave out the torch.cat of a single tensor: it is a copy, in float.",
        _says("it joins something else than tensors"),
    ),
    Topic(
        "no batch axis",
        "Give the model a batch axis: int8 kernels need it.",
        _says("its input has no batch axis"),
    ),
)
_OTHER = Topic(
    "no int8 kernel",
    "Convolutions, linear layers, sums and products of equal shapes, concatenations, poolings, "
    "ReLU and ReLU6 have int8 kernels: build what it computes of these, or keep it away from the "
    "layers that are to be int8.",
    _never,
)
# Not resistance: what is computed once, and tuples that hold the model's outputs.
_NO_WORK = ("its input is constant", "it holds the model's outputs", "it reads no float tensor")


def topic_of(operator: Operator) -> Topic | None:
    """Why an operator in float resists; None where it has no work."""
    reason = operator.reason or ""
    if reason.startswith(_NO_WORK):
        return None
    return next((topic for topic in ADVICE if topic.fits(operator.kind, reason)), _OTHER)
