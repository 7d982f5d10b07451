"""Latency of files: what is measured and how the figures hang together, never how fast it is."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import TimingError
from qconvert.measurement.latency import Latency, Timing, _latency, measure, thread_counts

EXAMPLE = (torch.zeros(1, 3, 8, 8),)
FORMS = {
    f"{form}{layout}"
    for form in ("traced", "frozen", "optimize_for_inference")
    for layout in ("", ", channels last")
}


class ForOneImage(nn.Module):
    """Works for batch size 1 only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(1, -1))


def save(module: nn.Module, path: Path) -> Path:
    path.write_bytes(torchscript.to_bytes(torchscript.trace(module, EXAMPLE)))
    return path


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )
    return save(network, tmp_path_factory.mktemp("latency") / "float.pt")


@dataclass(frozen=True)
class Measured:
    rows: list[Latency]
    seconds: float
    before: tuple[dict[str, str], int]
    after: tuple[dict[str, str], int]

    def timings(self) -> list[tuple[Latency, Timing]]:
        return [(row, t) for row in self.rows for t in (row.baseline, *row.models.values())]


def process_state() -> tuple[dict[str, str], int]:
    return dict(os.environ), torch.get_num_threads()


@pytest.fixture(scope="module")
def measured(float_file: Path) -> Measured:
    """A float file and its copy, at two batch sizes and thread counts (one asked for twice)."""
    copy = Path(shutil.copy(float_file, float_file.with_name("copy.pt")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "7")
        patch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
        before, start = process_state(), time.perf_counter()
        rows = measure(
            float_file,
            {"int8": copy},
            [EXAMPLE],
            batch_sizes=[3, 1],
            threads=[2, 1, 2],
            seconds=0.15,
        )
        return Measured(rows, time.perf_counter() - start, before, process_state())


def test_every_batch_size_and_thread_count_has_its_row(measured: Measured) -> None:
    settings = [(row.threads, row.batch_size) for row in measured.rows]
    assert settings == [(2, 3), (2, 1), (1, 3), (1, 1)]


def test_float_is_the_fastest_of_six_forms(measured: Measured) -> None:
    for row in measured.rows:
        assert set(row.float_forms_s) == FORMS
        fastest = min(row.float_forms_s, key=lambda form: row.float_forms_s[form])
        assert (row.baseline.model, row.baseline.form) == ("float", fastest)


def test_models_are_those_that_were_given(measured: Measured) -> None:
    for row in measured.rows:
        assert set(row.models) == set(row.speedups) == {"int8"}
        assert row.models["int8"].model == "int8"
        assert row.models["int8"].form == "as saved"
        assert set(row.unsteady) <= {"float", "int8"}


def test_speedup_lies_in_its_interval(measured: Measured) -> None:
    for row in measured.rows:
        speedup = row.speedups["int8"]
        assert 0 < speedup.low <= speedup.value <= speedup.high


def test_speedup_is_float_over_the_model_within_a_round() -> None:
    """Rounds of 4, 2, 4, 10 and 10 times, in the last two of which the machine was slow; the
    medians of the models, 4 and 2 seconds, would say 2."""
    calls = {"float": [4, 4, 4, 80, 80], "int8": [1, 2, 1, 8, 8]}
    found = _latency(
        {
            "batch_size": 6,
            "shapes": [[6, 3, 8, 8]],
            "forms": {"float": "frozen", "int8": "as saved"},
            "float_forms_s": {"frozen": 4.0},
            "failed_forms": {},
            "calls_s": calls,
        },
        threads=1,
    )
    assert found.speedups["int8"].value == 4
    assert (found.baseline.median_s.value, found.models["int8"].median_s.value) == (4, 2)
    assert found.models["int8"].images_per_s == 3
    assert found.unsteady == ("float", "int8")


def test_figures_of_a_model_agree(measured: Measured) -> None:
    for row, timing in measured.timings():
        middle = timing.median_s
        assert timing.calls >= 11
        assert timing.calls == row.baseline.calls
        assert timing.images_per_s == pytest.approx(row.batch_size / middle.value)
        assert 0 < middle.low <= middle.value <= middle.high
        assert timing.middle_half_s[0] <= middle.value <= timing.middle_half_s[1]
        assert timing.middle_half_s[1] <= timing.p90_s <= timing.p99_s


def test_unsteady_is_a_middle_half_wider_than_a_quarter(measured: Measured) -> None:
    for row in measured.rows:
        for name, timing in {"float": row.baseline, **row.models}.items():
            width = timing.middle_half_s[1] - timing.middle_half_s[0]
            assert (name in row.unsteady) == (width > 0.25 * timing.median_s.value)


def test_times_are_seconds(measured: Measured) -> None:
    """Half of the calls took the median or more, and all of them less than the whole."""
    least = sum(t.calls / 2 * t.median_s.value for _, t in measured.timings())
    assert least < measured.seconds
    # Of 4 settings with 0.15 s each, a quarter at least is in timed calls of the two models.
    assert sum(t.calls * t.p99_s for _, t in measured.timings()) > 4 * 0.15 / 10


def test_parent_keeps_its_environment_and_threads(measured: Measured) -> None:
    assert measured.after == measured.before


@pytest.mark.parametrize("broken", ["float", "int8"])
def test_file_that_does_not_load_is_an_error(float_file: Path, tmp_path: Path, broken: str) -> None:
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(float_file.read_bytes()[:2000])
    files = {"float": float_file, "int8": float_file, broken: damaged}
    with pytest.raises(TimingError, match=r"do not run side by side: .*zip") as e:
        measure(
            files["float"], {"int8": files["int8"]}, [EXAMPLE],
            batch_sizes=[1], threads=[1], seconds=0.05,
        )  # fmt: skip
    assert "\n" not in e.value.facts[0]


def test_file_that_does_not_run_is_an_error(float_file: Path, tmp_path: Path) -> None:
    for_one = save(ForOneImage(), tmp_path / "one.pt")
    with pytest.raises(TimingError, match="cannot be multiplied"):
        measure(
            float_file, {"int8": for_one}, [EXAMPLE], batch_sizes=[3], threads=[1], seconds=0.05
        )


class TwoInputs(nn.Module):
    """An image and a row; only equal batch sizes fit together."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": x.mean((1, 2, 3)) + y[:, 0]}


def test_model_of_several_inputs_is_measured_at_every_batch_size(tmp_path: Path) -> None:
    example = (*EXAMPLE, torch.ones(1, 2))
    path = tmp_path / "two.pt"
    path.write_bytes(torchscript.to_bytes(torchscript.trace(TwoInputs(), example)))
    rows = measure(path, {"int8": path}, [example], batch_sizes=[1, 3], threads=[1], seconds=0.05)
    assert [row.batch_size for row in rows] == [1, 3]
    assert all(set(row.float_forms_s) == FORMS for row in rows)


class Views(nn.Module):
    """Raises on memory that is channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


def test_form_of_float_that_does_not_run_is_named_with_its_reason(tmp_path: Path) -> None:
    (row,) = measure(
        save(Views(), tmp_path / "views.pt"), {}, [EXAMPLE], batch_sizes=[1], threads=[1],
        seconds=0.05,
    )  # fmt: skip
    assert set(row.failed_forms) == {form for form in FORMS if "channels last" in form}
    assert all("view size is not compatible" in why for why in row.failed_forms.values())
    assert set(row.float_forms_s) == FORMS - set(row.failed_forms)


def test_modules_of_the_working_folder_are_not_imported(
    float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's folder may hold a `random.py`; the command does not see it, nor must its worker."""
    (tmp_path / "random.py").write_text("raise RuntimeError('the file of the user')\n")
    monkeypatch.chdir(tmp_path)
    rows = measure(float_file, {}, [EXAMPLE], batch_sizes=[1], threads=[1], seconds=0.05)
    assert rows[0].models == {}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [([2, 1], [2, 1]), ([1, 2, 1], [1, 2]), (["all", 1], [1]), ([1, "all", 4], [1, 4])],
)
def test_thread_counts_of_a_process_on_one_core(asked, expected: list[int]) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert thread_counts(asked) == expected
    finally:
        os.sched_setaffinity(0, allowed)


def test_all_is_the_number_of_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert thread_counts(["all", 1]) == ([cores, 1] if cores > 1 else [1])
