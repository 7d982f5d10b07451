"""A qconfig is read with every mistake in one message, in words that lead to the right key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from qconvert.errors import QConfigError
from qconvert.qconfig import QConfig
from qconvert.qconfig_file import as_given, load

MINIMAL = {
    "version": 1,
    "model": {"source": "torchvision:resnet18"},
    "data": {"calibration": "images"},
    "output": "out",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A project with a folder `images`, beside the working directory."""
    (tmp_path / "project/images").mkdir(parents=True)
    (tmp_path / "elsewhere/images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def read(folder: Path, text: str = "", **settings) -> QConfig:
    """Loads the minimal qconfig with some keys replaced, or `text`."""
    path = folder / "q.yaml"
    overrides, output = settings.pop("overrides", ()), settings.pop("output_option", None)
    path.write_text(text or yaml.safe_dump({**MINIMAL, **settings}), encoding="utf-8")
    return load(path, overrides, output)


def facts(folder: Path, text: str = "", **settings) -> list[str]:
    with pytest.raises(QConfigError) as caught:
        read(folder, text, **settings)
    assert caught.value.where == "q.yaml"
    return caught.value.facts


def nested(dotted: str, value: object) -> dict[str, object]:
    """The setting of one key, beside what the minimal qconfig has there."""
    top, *rest = dotted.split(".")
    for key in reversed(rest):
        value = {key: value}
    return {top: {**MINIMAL[top], **value} if top in MINIMAL and rest else value}


def test_minimal_qconfig_has_every_default(folder):
    config = read(folder)
    assert config.evaluation == config.data.calibration == folder / "images"
    assert config.quantization.activations.observer == "auto"
    assert config.quantization.weights.per_channel
    assert config.benchmark.threads == (1, "all")
    assert json.loads(json.dumps(config.resolved()))["output"] == str(folder / "out")
    with pytest.raises(ValidationError):
        config.output = Path("/")


def test_qconfig_of_the_sample_is_valid():
    path = Path(__file__).parents[1] / "configs/fashion.yaml"
    assert load(path).data.calibration.is_dir()


OBSERVERS = "(one of 'auto', 'minmax', 'moving_average', 'percentile' or 'histogram')"
MISTAKES = [
    ("calibration.image", 4, "calibration.image: unknown key; did you mean 'images'?"),
    ("data.lables", "none", "data.lables: unknown key; did you mean 'labels'?"),
    ("qantization", {}, "qantization: unknown key; did you mean 'quantization'?"),
    ("calibration.zzz", 4,
     "calibration.zzz: unknown key; known: images, batch_size, seed, averaging"),
    ("quantization.intervals", 4,
     "quantization.intervals: unknown key; known: isa, decide, lowering, activations, weights, "
     "layers"),
    ("quantization.layers", [{"match": "a", "weight": {}}],
     "quantization.layers[0].weight: unknown key; did you mean 'weights'?"),
    ("quantization.activations.observer", "histgram", "quantization.activations.observer: unknown "
     f"observer 'histgram'; did you mean 'histogram'? {OBSERVERS}"),
    ("data.preprocess.interpolation", "cubic", "data.preprocess.interpolation: unknown "
     "interpolation 'cubic'; did you mean 'bicubic'? (one of 'bilinear', 'bicubic' or 'nearest')"),
    ("calibration.images", "5", "calibration.images: input should be a valid integer, not '5'"),
    ("calibration.images", True, "calibration.images: input should be a valid integer, not True"),
    ("calibration.images", 2.0, "calibration.images: input should be a valid integer, not 2.0"),
    ("calibration.images", 0,
     "calibration.images: input should be greater than or equal to 1, not 0"),
    ("budgets.min_speedup", False,
     "budgets.min_speedup: input should be a valid number, not False"),
    ("budgets.min_speedup", float("inf"), "budgets.min_speedup: is not a finite number"),
    ("data.preprocess.mean", [float("nan"), 0, 0],
     "data.preprocess.mean[0]: is not a finite number"),
    ("data.preprocess.mean", [0, 1], "data.preprocess: mean has 2 values for 3 channels"),
    ("model.source", 5, "model.source: input should be a valid string, not 5"),
    ("version", 2, "version: must be 1, not 2"),
    ("version", True, "version: must be 1, not True"),
    ("quantization.layers", [{"match": "a", "type": "Conv2d"}],
     "quantization.layers[0]: give either `match` or `type`"),
    ("quantization.layers", [{"precision": "int8"}],
     "quantization.layers[0]: give either `match` or `type`"),
    ("quantization.weights", {"observer": "per_channel_minmax", "granularity": "per_tensor"},
     "quantization.weights: observer 'per_channel_minmax' contradicts granularity 'per_tensor'; "
     "use observer 'minmax'"),
    ("output", "${QCONVERT_NOT_SET}/x",
     "output: the environment variable 'QCONVERT_NOT_SET' is not set"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "fact"), MISTAKES, ids=[row[2][:50] for row in MISTAKES])
def test_mistake_is_one_exact_message(folder, key, value, fact):
    assert facts(folder, **nested(key, value)) == [fact]


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("budgets.max_accuracy_drop", float("nan"), "budgets.max_accuracy_drop: "),
        ("benchmark.threads", [2, "al"], "benchmark.threads[1]: "),
        ("benchmark.threads", [0], "benchmark.threads[0]: "),
        ("data.preprocess.resize", True, "data.preprocess.resize: "),
        ("fuse.modules", "none", "fuse.modules: "),
        ("fuse.modules", [["conv", 5]], "fuse.modules[0][1]: "),
    ],
    ids=str,
)
def test_mistake_in_a_key_of_several_types_is_one_message(folder, key, value, place):
    assert [fact.startswith(place) for fact in facts(folder, **nested(key, value))] == [True]


def test_several_mistakes_are_in_one_error(folder):
    text = "version: 1\ndata: {calibration: images, lables: none}\ncalibration: {images: 0}\n"
    assert sorted(facts(folder, text, overrides=["budgets"])) == [
        "--set budgets: is not key=value",
        "calibration.images: input should be greater than or equal to 1, not 0",
        "data.lables: unknown key; did you mean 'labels'?",
        "model: is missing",
        "output: is missing",
    ]


def test_everything_that_is_not_there_is_named(folder):
    here = folder
    (folder / "out").write_text("")
    model = {"source": "net.py:net", "checkpoint": "w.pt"}
    data = {"calibration": "no", "evaluation": "q.yaml", "classes": "images"}
    assert sorted(facts(folder, model=model, data=data)) == [
        f"data.calibration: there is no folder {here}/no",
        f"data.classes: there is no file {here}/images",
        f"data.evaluation: there is no folder {here}/q.yaml",
        f"model.checkpoint: there is no file {here}/w.pt",
        f"model.source: there is no file {here}/net.py",
        f"output: {here}/out is a file, not a folder",
    ]


@pytest.mark.parametrize(
    ("text", "where", "fact"),
    [
        ("data:\n  a: 1\n  a: 2\n", "q.yaml:3:3", "is not valid YAML: the key 'a' stands twice"),
        ("version: 1\nversion: 1\n", "q.yaml:2:1",
         "is not valid YAML: the key 'version' stands twice"),
        ("version: 1\ndata: [1\n", "q.yaml:3:1",
         "is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("- version\n", "q.yaml", "is not a mapping of keys to values"),
        ("# nothing\n", "q.yaml", "is empty"),
    ],
    ids=["key twice", "top key twice", "open bracket", "list", "empty"],
)  # fmt: skip
def test_wrong_yaml_is_named_with_its_line(folder, text, where, fact):
    with pytest.raises(QConfigError) as caught:
        read(folder, text)
    assert (caught.value.where, caught.value.facts) == (where, [fact])


@pytest.mark.parametrize(
    "line",
    ["output: 2024-02-30", "output: ~no-such-user/x", 'output: "a\\0b"', "output: !!int x",
     "model: &a {kwargs: *a}", "1: 2", "? [a]\n: b", "output: !!python/object:os.system {}"],
)  # fmt: skip
def test_odd_yaml_is_an_error_of_the_qconfig(folder, line):
    with pytest.raises(QConfigError):
        read(folder, f"version: 1\ndata: {{calibration: images}}\n{line}\n")


def test_unreadable_file_is_named(folder):
    with pytest.raises(QConfigError, match="cannot be read: No such file or directory") as caught:
        load(folder / "none.yaml")
    assert caught.value.where == str(folder / "none.yaml")
    (folder / "latin.yaml").write_bytes("output: käfer\n".encode("latin-1"))
    with pytest.raises(QConfigError, match="is not UTF-8 text"):
        load(folder / "latin.yaml")


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 0.001), ("5E-1", 0.5), (".5e0", 0.5), ("1", 1.0)]
)
def test_exponents_are_numbers(folder, written, value):
    text = f"{yaml.safe_dump(MINIMAL)}budgets: {{max_accuracy_drop: {written}}}\n"
    assert read(folder, text).budgets.max_accuracy_drop == value


def test_environment_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("QCONVERT_TEST", "images")
    data = {"calibration": "${QCONVERT_TEST}", "evaluation": "../project/${QCONVERT_TEST}"}
    config = read(
        folder, data=data, model={"source": "a:b", "kwargs": {"x": ["$1 ${QCONVERT_TEST}"]}}
    )
    assert config.data.calibration == config.data.evaluation == folder / "images"
    assert config.model.kwargs == {"x": ["$1 images"]}


def test_paths_of_the_file_are_relative_to_it_and_others_to_the_working_directory(folder):
    cwd = Path.cwd()
    (folder / "net.py").touch()
    (cwd / "other.py").touch()
    model = {"source": "net.py:net"}
    config = read(folder, model=model)
    assert config.model.source == f"{folder}/net.py:net"
    assert (config.data.calibration, config.output) == (folder / "images", folder / "out")
    sets = ["data.calibration=images", "output=there", "model.source=other.py:net"]
    config = read(folder, model=model, overrides=sets)
    assert config.model.source == f"{cwd}/other.py:net"
    assert (config.data.calibration, config.output) == (cwd / "images", cwd / "there")
    assert read(folder, overrides=sets, output_option=Path("last")).output == cwd / "last"


def test_overrides_are_yaml_and_the_last_one_wins(folder):
    sets = ["calibration.images=4", "calibration.images=7", "budgets.max_accuracy_drop=1e-2",
            "benchmark.threads=[2, all]", "quantization.activations.observer=minmax"]  # fmt: skip
    config = read(folder, calibration={"images": "wrong", "seed": 3}, overrides=sets)
    assert (config.calibration.images, config.calibration.seed) == (7, 3)
    assert config.budgets.max_accuracy_drop == 0.01
    assert config.benchmark.threads == (2, "all")
    assert config.quantization.activations.observer == "minmax"


def test_wrong_override_is_named(folder):
    wrong = ["calibration.image=4", "=3", "a..b=3"]
    assert sorted(facts(folder, overrides=wrong)) == [
        "--set =3: is not key=value",
        "--set a..b=3: is not key=value",
        "calibration.image: unknown key; did you mean 'images'?",
    ]
    with pytest.raises(QConfigError, match=r"--set calibration.images.*is not valid YAML"):
        read(folder, overrides=["calibration.images=["])


def test_path_that_cannot_be_looked_at_is_a_fact(folder, monkeypatch):
    """A name that is too long, and a folder that this user may not enter."""
    long = "x" * 300
    reason = "cannot be reached: File name too long"
    assert facts(folder, data={"calibration": long}, output=long) == [
        f"data.calibration: {folder}/{long} {reason}",
        f"output: {folder}/{long} {reason}",
    ]

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    assert facts(folder, model={"source": "a:b", "checkpoint": "w.pt"}) == [
        f"model.checkpoint: {folder}/w.pt cannot be reached: Permission denied"
    ]


def test_table_of_labels_is_known_in_upper_case(folder):
    (folder / "LABELS.CSV").touch()
    config = read(folder, data={"calibration": "images", "labels": "LABELS.CSV"})
    assert config.data.labels == folder / "LABELS.CSV"


def test_as_given_means_the_same_elsewhere(folder):
    """Without the defaults, which would stand for something: `preprocess` beside `transform`."""
    (folder / "q.py").write_text("")
    data = {"calibration": "images", "transform": "q.py:read"}
    layers = [{"match": "a.*", "weights": {"observer": "minmax"}}]
    config = read(folder, data=data, quantization={"layers": layers}, tune={"qconfig": "t.yaml"})
    elsewhere = folder.parent / "elsewhere"
    tree = as_given(config, elsewhere)
    assert tree["data"] == {"calibration": "../project/images", "transform": "../project/q.py:read"}
    assert tree["quantization"] == {"layers": layers}
    path = elsewhere / "same.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert load(path) == config
    assert load(path).model_dump(exclude_unset=True) == config.model_dump(exclude_unset=True)
