"""The qconfig: one YAML file that describes one conversion, as validated, frozen models.

Every default lives here. Nothing in this module imports torch, so that a wrong qconfig is
answered at once. Paths are absolute after loading.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from qconvert.errors import did_you_mean
from qconvert.registry import (
    ACTIVATION_OBSERVERS,
    DECODERS,
    METRICS,
    WEIGHT_OBSERVERS,
    choices,
)


def recordable(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments as they are.

    Raises ValueError when JSON cannot hold them.
    """
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("holds NaN, infinity or what JSON cannot hold") from None
    return kwargs


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    return value


# Strict: a bool is not a number, and a quoted number is a string.
Fraction = Annotated[float, Field(ge=0, le=1, strict=True), AfterValidator(_finite)]
Share = Annotated[float, Field(gt=0, le=1, strict=True), AfterValidator(_finite)]
UpperShare = Annotated[float, Field(gt=0.5, le=1, strict=True), AfterValidator(_finite)]
Positive = Annotated[float, Field(gt=0, strict=True), AfterValidator(_finite)]
Finite = Annotated[float, Field(strict=True), AfterValidator(_finite)]
Count = Annotated[int, Field(ge=1, strict=True)]
Size = Annotated[int, Field(ge=1, le=16384, strict=True)]
Isa = Literal["vnni", "avx512", "avx2", "portable"]
Precision = Literal["auto", "int8", "dynamic", "float32"]


def _as_word(value: Any) -> Any:
    """YAML reads `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["on", "off", "auto"], BeforeValidator(_as_word)]


class Section(BaseModel):
    """What every part of the qconfig shares: unknown keys are errors, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Where the float model comes from."""

    source: str = Field(
        description="`torchvision:NAME`, `timm:NAME`, `package.module:callable` or "
        "`path/to/file.py:callable`"
    )
    kwargs: Annotated[dict[str, Any], AfterValidator(recordable)] = Field(
        {}, description="keyword arguments of the source"
    )
    checkpoint: Path | None = Field(None, description="state_dict: `.pt`, `.pth` or `.safetensors`")
    checkpoint_key: str | None = Field(
        None, description="dotted key of the state_dict inside the checkpoint (default: found)"
    )
    output: Annotated[int, Field(ge=0, strict=True)] | str | None = Field(
        None,
        description="which of several outputs is measured: its place or name, as `0` or `out` "
        "(default: the first tensor)",
    )
    scripted: Literal["auto"] | list[str] = Field(
        "auto",
        description="modules whose own code stays as it is written, in float: TorchScript compiles "
        "it with its loops and branches, and the modules that it calls are still converted; "
        "`auto`: those whose code depends on what is in a tensor",
    )
    fixed: Literal["all"] | list[str] = Field(
        [],
        description="modules whose code goes the same way for all images, the one of the example: "
        "they are converted although it depends on what is in a tensor; `all`: the whole model",
    )
    answers: Literal["auto", "classes", "none"] = Field(
        "auto",
        description="`classes`: the largest output is the answer, of an image or of each pixel; "
        "`none`: outputs are numbers (an embedding, a depth map), compared by cosine and SQNR; "
        "`auto`: `classes` for a row, or a map of several channels, unless rows have unit length",
    )

    @property
    def output_name(self) -> str | None:
        """`output` as a name."""
        return None if self.output is None else str(self.output)


class Preprocess(Section):
    """From an image file to the model's input, in this order, as torchvision does it
    ([docs/images.md](images.md))."""

    exif: Literal["ignore", "apply"] = Field(
        "ignore", description="the camera's rotation mark; torchvision's ImageFolder ignores it"
    )
    channels: Annotated[int, Field(ge=1, le=1024, strict=True)] = Field(
        3, description="1: grey, 2: grey and alpha, 3: RGB, 4: RGBA, more: see docs/images.md"
    )
    resize: Size | tuple[Size, Size] | None = Field(
        None, description="shorter side in pixels, or [height, width]"
    )
    crop: Size | tuple[Size, Size] | None = Field(
        None, description="centre crop in pixels: a side, or [height, width]"
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field(
        "bilinear", description="of `resize`, with antialiasing"
    )
    mean: tuple[Finite, ...] = Field((0.0,), description="subtracted from pixels in 0 to 1")
    std: tuple[Positive, ...] = Field((1.0,), description="divides after the mean")

    @model_validator(mode="after")
    def _lengths(self) -> Preprocess:
        for name in ("mean", "std"):
            length = len(getattr(self, name))
            if length not in (1, self.channels):
                raise ValueError(f"{name} has {length} values for {self.channels} channels")
        return self


def is_csv(text: str) -> bool:
    """Whether `data.labels` names a CSV file, in whatever case its ending is."""
    return Path(text).suffix.lower() == ".csv"


def is_label_path(text: str) -> bool:
    """Whether `data.labels` names a CSV file or a folder: `masks/`, not a word."""
    return is_csv(text) or "/" in text


def _labels(value: Any) -> Any:
    if isinstance(value, (str, Path)) and value not in ("folders", "none"):
        if is_label_path(str(value)):
            return Path(value)
        hint = did_you_mean(str(value), ["folders", "none"])
        raise ValueError(
            f"unknown labels {str(value)!r}{hint} (`folders`, `none`, a CSV file, or a folder of "
            "masks as `masks/`)"
        )
    return value


def is_callable(text: str) -> bool:
    """Whether a metric or decoder is the user's own, `package.module:callable`."""
    return ":" in text


def _metric(name: str) -> str:
    if not (is_callable(name) or name in METRICS or TOP_K.fullmatch(name)):
        hint = did_you_mean(name, [*METRICS, "top5"])
        raise ValueError(f"unknown metric {name!r}{hint} ({', '.join(METRICS)}, topK, {_CALLABLE})")
    return name


def _decoder(name: str) -> str:
    if not (is_callable(name) or name in DECODERS):
        hint = did_you_mean(name, DECODERS)
        raise ValueError(f"unknown decoder {name!r}{hint} ({', '.join(DECODERS)}, {_CALLABLE})")
    return name


_CALLABLE = "or package.module:callable"
TOP_K = re.compile(r"top([1-9][0-9]*)")
Metric = Annotated[str, AfterValidator(_metric)]
Decoder = Annotated[str, AfterValidator(_decoder)]
# What the label of an image is: a class's index, a text, a mask's file.
LabelKind = Literal["classes", "texts", "masks", "none"]
# What a metric compares answers with.
_NEEDS: dict[str, LabelKind] = {
    "per_class": "classes",
    "exact_match": "texts",
    "character_error_rate": "texts",
    "mean_iou": "masks",
}


Labels = Annotated[Literal["folders", "none"] | Path, BeforeValidator(_labels)]


class DataSection(Section):
    """The images."""

    calibration: Path = Field(description="folder of images that set the ranges")
    evaluation: Path | None = Field(
        None, description="folder of images for accuracy (default: calibration)"
    )
    labels: Labels = Field(
        "folders",
        description="`folders`: one folder a class; `none`: no labels; a CSV file with the "
        "columns `file` (below the folder of images) and `label` (a class, its index, or a text); "
        "or a folder (`masks/`) with an image of classes for each image",
    )
    classes: Path | None = Field(
        None,
        description="the classes in the model's order: a text file, one a line, or a JSON file "
        "with a list, `{class: index}` or `{index: class}` (default: folder names, sorted)",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="`skip`: files that cannot be read are left out, named and counted"
    )
    preprocess: Preprocess = Field(
        Preprocess(), description="keys that are not set are the model's own with timm"
    )
    transform: str | None = Field(
        None,
        description="instead of `preprocess`: `package.module:callable` or "
        "`path/to/file.py:callable`, from an RGB image (PIL) to a float tensor (channels, height, "
        "width), or to a tuple of tensors for a model of several inputs; with `input: uint8` to "
        "the pixels",
    )
    input: Literal["float32", "uint8"] = Field(
        "float32",
        description="what the files take: `float32`: normalized pixels, as the model; `uint8`: the "
        "pixels of the image after `resize` and `crop`, as they are; `mean` and `std` are then "
        "inside ([docs/images.md](images.md))",
    )

    @property
    def takes_pixels(self) -> bool:
        """Whether the files take pixels and normalize them inside."""
        return self.input == "uint8"

    @model_validator(mode="after")
    def _one_way(self) -> DataSection:
        if self.transform is None:
            return self
        given = self.preprocess.model_fields_set if "preprocess" in self.model_fields_set else set()
        if not self.takes_pixels:
            if "preprocess" in self.model_fields_set:
                raise ValueError("give either `preprocess` or `transform`")
        elif not {"mean", "std"} <= given:
            raise ValueError(
                "`input: uint8` with `transform`, which then returns pixels: give `mean` and `std` "
                "in `preprocess`, by which the files normalize them"
            )
        elif more := sorted(given - {"channels", "mean", "std"}):
            raise ValueError(
                f"with `transform`, which does it, `preprocess` has no {', '.join(more)}"
            )
        return self


class FuseSection(Section):
    """Which batch norms are folded and which activations paired."""

    modules: Literal["auto"] | tuple[tuple[str, ...], ...] = Field(
        "auto", description="`auto`, or lists of module names to fuse"
    )


class CalibrationSection(Section):
    """How many images set the ranges."""

    images: Count = Field(512, description="at most so many, drawn evenly by `seed`")
    batch_size: Count = Field(
        8, description="images a worker takes at a time; no effect on results"
    )
    seed: Annotated[int, Field(ge=0, strict=True)] = Field(0, description="draws the images")
    averaging: Share = Field(
        0.01, description="weight of a new image in the observer `moving_average`"
    )


class ActivationScheme(Section):
    """How the ranges of activations are chosen (quint8, per tensor)."""

    observer: Literal[choices(ACTIVATION_OBSERVERS)] = Field(  # type: ignore[valid-type]
        "auto", description="see below"
    )
    scheme: Literal["affine", "symmetric"] = Field(
        "affine", description="symmetric: zero is 128, with equal steps to both sides"
    )
    percentile: UpperShare = Field(
        0.9999, description="share of values inside the range (observer `percentile`)"
    )


class WeightScheme(Section):
    """How the ranges of weights are chosen (qint8)."""

    observer: Literal[choices(WEIGHT_OBSERVERS)] = Field(  # type: ignore[valid-type]
        "auto", description="see below"
    )
    granularity: Literal["per_channel", "per_tensor"] | None = Field(
        None, description="default: per_channel, but per_tensor with observer `minmax`"
    )
    scheme: Literal["symmetric", "affine"] = Field(
        "symmetric", description="symmetric: zero is 0, integers from -127 to 127"
    )
    percentile: UpperShare = Field(
        0.9999, description="share of values inside the range (observer `percentile`)"
    )

    @model_validator(mode="after")
    def _agree(self) -> WeightScheme:
        if self.observer == "per_channel_minmax" and self.granularity == "per_tensor":
            raise ValueError(
                "observer 'per_channel_minmax' contradicts granularity 'per_tensor'; "
                "use observer 'minmax'"
            )
        return self

    @property
    def per_channel(self) -> bool:
        """Whether every output channel has its own scale and zero point."""
        if self.granularity is None:
            return self.observer != "minmax"
        return self.granularity == "per_channel"


class LayerRule(Section):
    """Another precision or observer for the operators that match; the last match wins."""

    match: str | None = Field(
        None, description="glob over operator names, or over modules that hold them"
    )
    type: str | None = Field(
        None, description="module class or operator, such as `Conv2d` or `add`"
    )
    precision: Precision = Field(
        "auto",
        description="`auto`: int8 where torch can and it pays; `dynamic`: int8 weights, ranges as "
        "the model runs (linear, LSTM, GRU)",
    )
    activations: ActivationScheme | None = Field(None, description="of the operator's result")
    weights: WeightScheme | None = Field(None, description="of the operator's weight")

    @model_validator(mode="after")
    def _one_selector(self) -> LayerRule:
        if (self.match is None) == (self.type is None):
            raise ValueError("give either `match` or `type`")
        return self


class QuantizationSection(Section):
    """What becomes int8, and with which ranges."""

    isa: Isa = Field(
        "portable",
        description="the weakest CPU that the file must be right on; `portable`: any with AVX2, "
        "where layers that overflow without VNNI have slightly coarser weights",
    )
    decide: Literal["table", "measure", "int8"] = Field(
        "table",
        description="where int8 pays: by the shipped table of costs, by timing this model's own "
        "operators here, or `int8` wherever torch has an operator",
    )
    lowering: Literal["auto", "classic", "direct"] = Field(
        "auto",
        description="torch's quantized operators (`classic`), oneDNN's on plain uint8 tensors "
        "(`direct`), or for each operator what is faster",
    )
    activations: ActivationScheme = ActivationScheme()
    weights: WeightScheme = WeightScheme()
    layers: tuple[LayerRule, ...] = Field(())


class RecoverySection(Section):
    """How accuracy that int8 costs is got back, from calibration images alone. `auto` keeps a
    method if it helps on those calibration images that it did not see."""

    equalization: Switch = Field(
        "auto",
        description="channels are scaled so that all of a tensor use its 8 bits alike; what reads "
        "them is scaled back",
    )
    two_terms: Switch = Field(
        "auto",
        description="tensors that cost most accuracy are read in two terms of 8 bits instead of "
        "one, and made in float up to there; at most 8 % slower. `auto`: only below 30 dB",
    )
    rounding: Switch = Field(
        "auto",
        description="weights are rounded together, so that their errors cancel on the inputs that "
        "a layer reads, instead of each to the nearest integer",
    )
    bias_correction: Switch = Field(
        "auto", description="biases make up for what rounding does to a layer's mean result"
    )
    minutes: Positive = Field(
        15.0,
        description="`rounding` and `bias_correction` end after so many minutes each: layers that "
        "they did not come to stay as they are",
    )

    @property
    def switches(self) -> dict[str, str]:
        """What is `on`, `off` or `auto`, by method."""
        return self.model_dump(exclude={"minutes"})


class AugmentationSection(Section):
    """What is done to images as training reads them, anew in each epoch, before `data.preprocess`
    or `data.transform`."""

    flip: Annotated[bool, Field(strict=True)] = Field(
        True, description="half of the images are mirrored, left to right"
    )
    crop: Share = Field(
        0.4,
        description="a part of the image is cut out and made as large as the image: of its "
        "area at least this share; 1: all of it",
    )
    color: Fraction = Field(
        0.2, description="brightness, contrast and saturation are changed by at most this share"
    )


class FinetuneSection(Section):
    """`qconvert finetune`: quantization-aware training ([finetune.md](finetune.md)). Training ends
    with the epochs, the minutes or the patience, whichever comes first."""

    apply: Annotated[Literal["on", "off"], BeforeValidator(_as_word)] = Field(
        "on", description="`off`: `convert` leaves out what was trained"
    )
    teacher: Literal["float", "labels", "both"] = Field(
        "float",
        description="`float`: the float model's outputs and values inside, which needs images "
        "only; `labels`: classes, by `data.labels`; or both together",
    )
    images: Path | None = Field(
        None, description="folder of images to train with (default: those of calibration)"
    )
    epochs: Count = Field(40, description="at most so many passes over the images")
    minutes: Positive | None = Field(15.0, description="at most so long; null: however long")
    patience: Count | None = Field(
        None, description="ends after so many epochs without a better one on held-out images"
    )
    batch_size: Count = Field(8, description="images for each step")
    learning_rate: Positive = Field(
        0.01, description="of weights and biases, in steps of int8; falls to zero as a cosine"
    )
    scale_learning_rate: Positive = Field(
        0.001, description="of weight scales and of ranges, as a share of them; falls likewise"
    )
    channel_learning_rate: Positive = Field(
        0.0002,
        description="of the sizes of whole channels, as a share of them, while weights are not "
        "rounded; more (0.01) where channels of a tensor differ in size by far",
    )
    unrounded: Fraction = Field(
        0.75,
        description="share of the training in which tensors are rounded and weights are not; then "
        "their integers are chosen together, and the rest of the training refines them",
    )
    features: Annotated[float, Field(ge=0, strict=True), AfterValidator(_finite)] = Field(
        1.0, description="how much values inside of the float model count beside its outputs"
    )
    held_out: Annotated[float, Field(gt=0, le=0.5, strict=True)] = Field(
        0.125, description="share of the images that judge each epoch and are not trained with"
    )
    augmentation: AugmentationSection = AugmentationSection()
    seed: Annotated[int, Field(ge=0, strict=True)] = Field(
        0, description="draws the order of the images and their changes"
    )


_LABELS_FOR = {
    "classes": "classes: data.labels as `folders` or a CSV file, and no benchmark.decoder",
    "texts": "texts: a CSV file as data.labels, and benchmark.decoder",
    "masks": "a folder of masks as data.labels (`masks/`)",
}


class BenchmarkSection(Section):
    """What is timed."""

    batch_sizes: tuple[Count, ...] = Field(
        (1,), min_length=1, description="budgets judge the first"
    )
    threads: tuple[Count | Literal["all"], ...] = Field(
        (1, "all"), min_length=1, description="`all`: every core; budgets judge the first"
    )
    seconds: Positive = Field(6.0, description="measuring time of each batch size and thread count")
    metrics: Literal["auto"] | Annotated[tuple[Metric, ...], Field(min_length=1)] = Field(
        "auto",
        description="what is measured against labels, see below; budgets judge the first; `auto`: "
        "top1 and top5 of classes, exact_match and character_error_rate of texts, mean_iou of "
        "masks",
    )
    decoder: Decoder | None = Field(
        None, description="from an output to a text and how sure the model is of it, see below"
    )
    ctc_blank: Annotated[int, Field(ge=-1, strict=True)] = Field(
        0, description="the place of CTC's blank among the outputs; -1: the last"
    )
    automation_accuracy: UpperShare = Field(
        0.99,
        description="accuracy that is required of the answers which no human looks at; the share "
        "of images that can be answered so is measured",
    )


# The budgets that more layers in float help to meet.
OF_ACCURACY = ("max_accuracy_drop", "max_automation_drop", "min_agreement", "min_cosine")


class BudgetSection(Section):
    """Limits; one missed is exit code 1. All are fractions or ratios."""

    max_accuracy_drop: Fraction | None = Field(
        None, description="by how much int8 may be worse than float in the first metric"
    )
    max_automation_drop: Fraction | None = Field(
        None,
        description="float's automation rate minus int8's, each with its own threshold "
        "(`benchmark.automation_accuracy`)",
    )
    min_agreement: Fraction | None = Field(None, description="share of equal answers")
    min_cosine: Fraction | None = Field(
        None, description="mean cosine of the angle between float's and int8's outputs"
    )
    min_speedup: Positive | None = Field(None, description="float latency over int8 latency")
    max_size_ratio: Positive | None = Field(None, description="int8 file over float file")
    min_int8_macs: Fraction | None = Field(
        None, description="share of multiply-accumulates in int8"
    )

    @property
    def set_of_accuracy(self) -> tuple[str, ...]:
        """The limits of accuracy that are set: what `tune` works towards."""
        return tuple(name for name in OF_ACCURACY if getattr(self, name) is not None)


class TuneSection(Section):
    """How `qconvert tune` looks for settings that meet the budgets."""

    trials: Count = Field(
        40, description="at most so many, those of earlier runs on the same inputs included"
    )
    minutes: Positive = Field(
        30.0,
        description="after so many no trial is begun; the best one is converted and measured then",
    )
    images: Path | None = Field(
        None,
        description="folder of images that trials are judged on, with labels as `data.labels` says "
        "(default: data.evaluation, and it is said)",
    )
    qconfig: Path | None = Field(
        None, description="the file to write (default: `tuned.yaml` in the output folder)"
    )


class QConfig(Section):
    """One conversion."""

    version: Literal[1] = Field(description="of this format")
    model: ModelSection
    data: DataSection
    fuse: FuseSection = FuseSection()
    calibration: CalibrationSection = CalibrationSection()
    quantization: QuantizationSection = QuantizationSection()
    recovery: RecoverySection = RecoverySection()
    finetune: FinetuneSection = FinetuneSection()
    benchmark: BenchmarkSection = BenchmarkSection()
    budgets: BudgetSection = BudgetSection()
    tune: TuneSection = TuneSection()
    output: Path = Field(description="folder of everything that is written")

    @field_validator("version", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if type(value) is not int or value != 1:
            raise ValueError(f"must be 1, not {value!r}")
        return value

    @model_validator(mode="after")
    def _measurable(self) -> QConfig:
        kind, names = self.label_kind, self.benchmark.metrics
        if self.finetune.teacher != "float" and kind != "classes":
            raise ValueError(
                f"finetune.teacher: {self.finetune.teacher} needs {_LABELS_FOR['classes']}"
            )
        if self.benchmark.decoder is not None and kind not in ("texts", "none"):
            raise ValueError(
                "benchmark.decoder makes texts: let data.labels be a CSV file with the right "
                "texts, or `none`"
            )
        for name in () if names == "auto" else names:
            needed = "classes" if TOP_K.fullmatch(name) else _NEEDS.get(name)
            if needed not in (None, kind):
                raise ValueError(f"benchmark.metrics: {name} needs {_LABELS_FOR[needed]}")
        return self

    @property
    def label_kind(self) -> LabelKind:
        """What the labels of the evaluation images are."""
        labels = self.data.labels
        if labels == "none":
            return "none"
        if labels == "folders":
            return "classes"
        if not is_csv(str(labels)):
            return "masks"
        numbers = self.model.answers == "none"
        return "texts" if numbers or self.benchmark.decoder is not None else "classes"

    @property
    def evaluation(self) -> Path:
        """The folder that accuracy is measured on."""
        return self.data.evaluation or self.data.calibration

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain JSON values."""
        return self.model_dump(mode="json")
