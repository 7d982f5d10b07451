"""What the steps of one run share: settings, images, models built once, and a voice."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch

from qconvert import __version__, torchscript
from qconvert.errors import BadImageError, QConfigError, TransformError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import Inputs, Preprocessed, Reader, Transformed
from qconvert.images.stream import Size, all_unreadable, one_thread, sizes
from qconvert.models.detectors import Detector
from qconvert.models.division import Wishes
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture, check_inputs
from qconvert.models.operators import is_tensor, shape_of
from qconvert.models.pixels import PixelInput, inner_path
from qconvert.models.source import FloatModel, build
from qconvert.qconfig import Preprocess, QConfig
from qconvert.quantization.recovery.equalization import equalized
from qconvert.ranks.team import First
from qconvert.steps.readable import Readable, Skipped, same_images
from qconvert.steps.voice import Voice
from qconvert.user_code import Imports, folder_of, keep_importable, resolve
from qconvert.workspace import Workspace, digest

Item = TypeVar("Item")
# Images that prove a model equal to another; enough for every layer to be used.
PROOF_IMAGES = 16
# Images that methods of recovery look at, of which each fourth judges what the others suggest;
# about so many bytes of values are held at a time, in float and in int8.
FEWEST_FOR_RECOVERY, _RECOVERY_IMAGES, _JUDGING = 8, 64, 4
_RECOVERY_BYTES = 2 << 30
# So many sizes of images are timed, where sizes differ.
_TIMED_SIZES = 8
# The record of `fuse`, and where it keeps the preprocessing that a library gave.
FUSE_RECORD = "fused.json"
LIBRARY_PREPROCESS = "library_preprocess"
# The record of `calibrate`.
CALIBRATION_RECORD = "calibration.json"


@dataclass(frozen=True)
class Session:
    """One run of one command on one qconfig. What is expensive is made when first asked for."""

    config: QConfig
    config_path: Path
    voice: Voice
    force: bool = False
    # The other ranks, where this is the first of several.
    others: First | None = None
    # On another rank: the images that rank 0 skips (see `skipped`), instead of looking for them.
    told: Set[Skipped] | None = None

    @cached_property
    def workspace(self) -> Workspace:
        """The output folder."""
        return Workspace(self.config.output)

    @cached_property
    def calibration_images(self) -> ImageSet:
        """The images that set the ranges, at most `calibration.images` of them."""
        return self._readable.only("calibration", self.listed_for_calibration, self.read)

    @cached_property
    def listed_for_calibration(self) -> ImageSet:
        """These, readable or not."""
        # Ranges need no labels: the folder may be flat while the evaluation folder is not.
        found = read_folder(self.config.data.calibration, "none", None)
        section = self.config.calibration
        drawn = found.sample(section.images, section.seed)
        if len(found) > section.images:
            self.voice.say(
                f"calibration: {section.images} of {len(found)} images, drawn with seed "
                f"{section.seed} (calibration.images)"
            )
        return drawn

    @cached_property
    def evaluation_images(self) -> ImageSet:
        """The images that accuracy is measured on."""
        return self._readable.only("evaluation", self.listed_for_evaluation, self.read)

    @cached_property
    def listed_for_evaluation(self) -> ImageSet:
        """These, readable or not."""
        data = self.config.data
        # A decoder's characters are read as such where there are no labels, too.
        kind = "texts" if self.config.benchmark.decoder else self.config.label_kind
        return read_folder(self.config.evaluation, data.labels, data.classes, kind)

    @property
    def judged_on_calibration_images(self) -> bool:
        """Whether accuracy is measured on the images that set the ranges."""
        return same_images(self.config)

    @cached_property
    def _readable(self) -> Readable:
        return Readable(self.config, self.voice, self.told)

    @property
    def skipped(self) -> frozenset[Skipped]:
        """The images of both sets that cannot be read and are skipped."""
        _ = self.calibration_images, self.evaluation_images
        return frozenset(self._readable.skipped)

    @cached_property
    def read(self) -> Reader:
        """The way from a file to the model's inputs."""
        data = self.config.data
        if data.transform is None:
            return Preprocessed(self.preprocess, data.takes_pixels)
        channels = data.preprocess.channels if data.takes_pixels else None
        return Transformed(self._transform[0], channels)

    @cached_property
    def _transform(self) -> tuple[Callable[..., Any], dict[str, str]]:
        """The user's transform, and the digests of her code that it needs."""
        source = str(self.config.data.transform)
        keep_importable(folder_of(source))
        with Imports(folder_of(source)) as imports:
            function = resolve(source, TransformError, "data.transform")
            return function, imports.digests()

    @cached_property
    def preprocess(self) -> Preprocess:
        """`data.preprocess`, where keys that are not set are the model library's own."""
        own = self.config.data.preprocess
        known = self.library_preprocess["values"]
        given = own.model_dump(exclude_unset=True)
        # A size of the user's own is not mixed with half of another.
        size = {"resize", "crop"}
        replaced = given.keys() | (size if size & given.keys() else set())
        taken = {key: value for key, value in known.items() if key not in replaced}
        if taken:
            shown = ", ".join(
                f"{key} {list(value) if isinstance(value, tuple) else value}"
                for key, value in taken.items()
            )
            self.voice.say(f"data.preprocess: the model's own where not set: {shown}")
        for key in known.keys() & (replaced - given.keys()):
            (other,) = size - {key}
            self.voice.say(
                f"data.preprocess: no {key}: the model's own, {known[key]}, is for another {other}"
            )
        try:
            return Preprocess(**{**taken, **given}) if known else own
        except ValueError as error:
            raise QConfigError(
                f"data.preprocess does not go with the model's own ({taken}): {error}",
                where="qconfig",
            ) from None

    @cached_property
    def library_preprocess(self) -> dict[str, Any]:
        """`values`: the preprocessing that the model's library knows; `of`: the model's digest."""
        if not self.config.model.source.startswith("timm:"):
            return {"of": None, "values": {}}
        of = digest([self.config.model.model_dump(mode="json"), self.versions])
        recorded = (self.workspace.read(FUSE_RECORD) or {}).get(LIBRARY_PREPROCESS, {})
        if recorded.get("of") == of:
            return dict(recorded)
        return {"of": of, "values": dict(self._source_model.preprocess)}

    @property
    def reading(self) -> dict[str, Any]:
        """What the model's inputs depend on, beside the image."""
        data = self.config.data
        if data.transform is None:
            preprocess = self.preprocess.model_dump(mode="json")
            return {"preprocess": preprocess, "input": data.input}
        found = {"transform": data.transform, "code": self._transform[1], "input": data.input}
        if data.takes_pixels:
            found["preprocess"] = data.preprocess.model_dump(mode="json")
        return found

    @cached_property
    def sizes(self) -> dict[Size, list[Path]]:
        """All images by the size of their input, the most frequent first; empty with a transform,
        which alone knows."""
        found: dict[Size, list[Path]] = {}
        for images in (self.calibration_images, self.evaluation_images):
            for size, paths in sizes(images, self.read).items():
                found.setdefault(size, []).extend(paths)
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))

    @cached_property
    def example_file(self) -> Path:
        """One calibration image, of the most frequent size."""
        first = self.calibration_images.files[0]
        if not self.sizes:
            return first
        usual = set(next(iter(self.sizes.values())))
        return next((p for p in self.calibration_images.files if p in usual), first)

    @cached_property
    def example(self) -> Inputs:
        """The inputs of `example_file`."""
        inputs = self.inputs(self.example_file)
        if self.config.data.transform is not None:
            again = self.inputs(self.example_file)
            if not all(map(torch.equal, inputs, again)):
                self.voice.say(
                    "data.transform gives another tensor for the same image each time: let it be "
                    "that of evaluation, without augmentation"
                )
        return inputs

    @cached_property
    def timed(self) -> list[Inputs]:
        """The inputs that latency is measured on: the example's; or where sizes differ, those of
        images from small to large, spread as the images are."""
        if self.config.data.transform is not None:  # it alone knows sizes
            found = sorted(self.proofs[:PROOF_IMAGES], key=lambda x: x[0].numel())
            if len({x[0].shape for x in found}) > 1:
                return _spread(found)
        elif len(self.sizes) > 1:
            by_area = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
            return [self.inputs(p) for p in _spread([p for s in by_area for p in self.sizes[s]])]
        return [self.example]

    @cached_property
    def proofs(self) -> list[Inputs]:
        """The inputs of each of `proof_files`."""
        return [self.example, *(self.inputs(path) for path in self.proof_files[1:])]

    def inputs(self, path: Path) -> Inputs:
        """Those of one image.

        Raises BadImageError that names every image beside it that cannot be read."""
        try:
            return self.read(path)
        except BadImageError as error:
            sets = (self.calibration_images, self.evaluation_images)
            images = next(images for images in sets if path in images.files)
            raise all_unreadable(images, self.read) or error from None

    @cached_property
    def proof_files(self) -> tuple[Path, ...]:
        """Images drawn evenly from calibration: the example first; and of all images the smallest
        and the largest, where sizes differ."""
        images = self.calibration_images
        step = max(1, len(images) // PROOF_IMAGES)
        chosen = list(images.files[::step][:PROOF_IMAGES])
        return tuple(dict.fromkeys((self.example_file, *chosen, *self.extremes)))

    @property
    def extremes(self) -> tuple[Path, ...]:
        """The images with the smallest and the largest input, if sizes differ."""
        if len(self.sizes) < 2:
            return ()
        by_area = sorted(self.sizes, key=lambda size: size[0] * size[1])
        return tuple(self.sizes[size][0] for size in (by_area[0], by_area[-1]))

    @cached_property
    def float_model(self) -> FloatModel:
        """The user's model with its checkpoint; where it takes pixels, behind its normalization."""
        found, data = self._source_model, self.config.data
        if not data.takes_pixels:
            return found
        check_inputs(found.module, 1)
        steps = self.preprocess if data.transform is None else data.preprocess
        return replace(found, module=PixelInput(found.module, steps.mean, steps.std))

    @cached_property
    def _source_model(self) -> FloatModel:
        """As the source builds it."""
        if self.config.model.checkpoint is None:
            self.voice.say(
                "model: no `model.checkpoint`: the weights are those that the source builds"
            )
        keep_importable(folder_of(self.config.model.source))
        with self.voice.busy("building the float model"):
            model = build(self.config.model)
        for note in model.notes:
            self.voice.say(f"checkpoint: {note}")
        if isinstance(model.module, Detector):
            self.voice.say(
                "model: one of torchvision's detection models: it is given a batch of images with "
                "values from 0 to 1, and its modules are named `model.…`"
            )
        return model

    @cached_property
    def fused(self) -> FusedModel:
        """The user's model with its batch norms folded."""
        groups = None if self.config.fuse.modules == "auto" else self.config.fuse.modules
        with torchscript.quiet():
            module = self.float_model.module
            graph = capture(module, self.example, self._wishes, lambda: self.proofs[1:])
            return fuse(graph, groups)

    @cached_property
    def equalized(self) -> FusedModel:
        """The fused model with its channels equalized, by what calibration images show."""
        with one_thread():  # or its plan is another for each number of threads
            return equalized(self.fused, self.recovery_inputs[0])

    @cached_property
    def recovery_images(self) -> tuple[ImageSet, ImageSet]:
        """Calibration images that methods of recovery see, and those that judge them: drawn evenly,
        as many as memory allows."""
        images = self.calibration_images
        nodes = self.fused.graph.graph.nodes
        largest = max((prod(shape_of(node)) for node in nodes if is_tensor(node)), default=1)
        affordable = max(FEWEST_FOR_RECOVERY, _RECOVERY_BYTES // (4 * 4 * largest))
        count = min(_RECOVERY_IMAGES, len(images), affordable)
        chosen = [images.files[i * len(images) // count] for i in range(count)]
        judging = set(chosen[_JUDGING - 1 :: _JUDGING])
        others = set(images.files) - set(chosen)
        return images.without(others | judging), images.without(set(images.files) - judging)

    @cached_property
    def recovery_inputs(self) -> tuple[list[Inputs], list[Inputs]]:
        """Those of `recovery_images`."""
        fitted, unseen = ([self.inputs(p) for p in part.files] for part in self.recovery_images)
        return fitted, unseen

    @property
    def _wishes(self) -> Wishes:
        model = self.config.model
        place = inner_path if self.config.data.takes_pixels else str
        return Wishes(
            None if model.scripted == "auto" else frozenset(map(place, model.scripted)),
            None if model.fixed == "all" else frozenset(map(place, model.fixed)),
        )

    @property
    def versions(self) -> dict[str, str]:
        """What else a result depends on."""
        names = ["torchvision", "pillow"]
        if self.config.model.source.startswith("timm:"):
            names.append("timm")
        found = {"qconvert": __version__, "torch": torch.__version__}
        for name in names:
            with suppress(ImportError):
                found[name] = version(name)
        return found

    def fresh(
        self, step: str, name: str, key_of: Callable[[dict[str, Any]], str]
    ) -> dict[str, Any] | None:
        """The record of a step that need not run (see `Workspace.why_stale`); or None, and the
        reason why it runs is said."""
        reason = self.workspace.why_stale(name, key_of)
        if reason is None and not self.force:
            return self.workspace.read(name)
        self.voice.say(f"{step}: {reason or '--force'}")
        return None


def _spread(items: Sequence[Item]) -> list[Item]:
    """`_TIMED_SIZES` of the items, in the middle of as many equal parts of them."""
    middles = ((2 * i + 1) * len(items) // (2 * _TIMED_SIZES) for i in range(_TIMED_SIZES))
    return [items[i] for i in dict.fromkeys(middles)]
