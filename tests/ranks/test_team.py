"""Rank 0 and others in threads of one process, on a store of torch's: shares of the images,
messages of any size, and errors in their place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from qconvert.errors import BadImageError, ModelInputError, RankLostError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import Inputs, Preprocessed
from qconvert.images.stream import lend, map_numbered
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.qconfig import Preprocess
from qconvert.quantization.audit.facts import SetFacts
from qconvert.quantization.calibration import calibrate, lend_calibration
from qconvert.ranks.place import Place
from qconvert.ranks.team import First, Helper, Over
from qconvert.ranks.watch import End, Watch

# A rank whose threads are inside the store at any time, the end of the process included.
BUSY = """
from qconvert.ranks import team, watch
watch._INTERVAL_S = watch._AFTER_S = 0
with team.joined(print) as rank:
    for _ in range(2000):
        rank._post._store.check(["any"])
"""
WORLD = 3
COUNT = 40
READ = Preprocessed(Preprocess(resize=(16, 16), mean=(0.5,), std=(0.25,)))


def never(error: RankLostError) -> None:
    """The store is in this process."""
    raise error


@pytest.fixture
def team() -> Iterator[tuple[First, list[Helper], list[Watch]]]:
    """Three ranks."""
    store, watches, ranks = HashStore(), [], []
    for rank in range(WORLD):
        here = Place(rank, WORLD, limit_s=5)
        watch = Watch(store, here, never)
        watches.append(watch)
        ranks.append((Helper if rank else First)(store, watch, here))
    yield ranks[0], ranks[1:], watches
    for watch in watches:
        watch.stop()


@pytest.fixture
def images(tmp_path: Path, save_image: Callable[..., Path]) -> ImageSet:
    for i in range(COUNT):
        save_image(tmp_path / f"{i:02}.png", seed=i)
    return read_folder(tmp_path, "none", None)


def beside(helpers: list[Helper], work: Callable[[Helper], None]) -> ThreadPoolExecutor:
    """Lets each helper work in a thread, as the process of that rank does."""

    def done(helper: Helper) -> None:
        try:
            work(helper)
        except Exception as error:
            helper.fail(error)

    pool = ThreadPoolExecutor(len(helpers))
    for helper in helpers:
        pool.submit(done, helper)
    pool.shutdown(wait=False)
    return pool


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_results_are_in_the_order_of_the_images(team, images, batch_size) -> None:
    first, helpers, _ = team
    ran: list[set[int]] = [set() for _ in range(WORLD)]

    def run(rank: int) -> Callable[[Inputs, int], tuple[int, float]]:
        def run(inputs: Inputs, place: int) -> tuple[int, float]:
            ran[rank].add(place)
            return place, inputs[0].mean().item()

        return run

    beside(helpers, lambda h: lend(run(h.place.rank), images, READ, h, batch_size=batch_size))
    found = list(map_numbered(run(0), images, READ, batch_size=batch_size, others=first))
    assert found == list(map_numbered(run(0), images, READ))
    batches = -(-COUNT // batch_size)
    for rank in range(1, WORLD):
        assert ran[rank] == {
            i for b in range(rank, batches, WORLD)
            for i in range(b * batch_size, min(COUNT, (b + 1) * batch_size))
        }  # fmt: skip


def test_error_of_a_share_is_raised_in_its_place(team, images) -> None:
    first, helpers, _ = team

    def run(inputs: Inputs, place: int) -> int:
        if place in (7, 9):
            raise RuntimeError("too small")
        return place

    def results(**others: Any) -> Iterator[int]:
        return map_numbered(run, images, READ, batch_size=2, **others)

    beside(helpers, lambda h: lend(run, images, READ, h, batch_size=2))
    messages = []
    for others in (None, first):
        done: list[int] = []
        with pytest.raises(ModelInputError) as caught:
            done.extend(results(others=others))
        messages.append((done, caught.value.message))
    assert messages[0] == messages[1]
    assert "07.png" in messages[1][1]


def test_unreadable_images_of_a_share_are_all_named(team, images) -> None:
    first, helpers, _ = team
    for place in (5, 11, 39):
        images.files[place].write_bytes(b"no image")
    beside(helpers, lambda h: lend(lambda x, i: i, images, READ, h, batch_size=2))
    with pytest.raises(BadImageError) as caught:
        list(map_numbered(lambda x, i: i, images, READ, batch_size=2, others=first))
    assert [f"{i:02}.png" in caught.value.message for i in (5, 11, 39, 6)] == [
        True, True, True, False,
    ]  # fmt: skip


@pytest.fixture
def model(images: ImageSet) -> FusedModel:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 3), nn.ReLU())
    return fuse(capture(module.eval(), READ(images.files[0]), None, list), None)


def test_calibration_has_the_bytes_of_one_process(team, images, model) -> None:
    first, helpers, _ = team
    settings: dict[str, Any] = {"batch_size": 3, "averaging": 0.1}
    beside(helpers, lambda h: lend_calibration(model, images, READ, h, **settings))
    facts, own_facts = SetFacts(), SetFacts()
    found = calibrate(model, images, READ, others=first, facts=facts, **settings)
    alone = calibrate(model, images, READ, facts=own_facts, **settings)
    assert found.to_bytes() == alone.to_bytes()
    assert facts.clipped == own_facts.clipped
    for arrays, own in (
        (facts.tensors, own_facts.tensors),
        (facts.profiles, own_facts.profiles),
    ):
        assert arrays
        assert all((arrays[name] == own[name]).all() for name in own)
    assert len(found.tensors) > 3


def test_messages_of_any_size_and_requests_for_all(team) -> None:
    first, helpers, _ = team
    content = np.random.default_rng(0).bytes(9 << 20)  # more than the store takes at once

    def answer(helper: Helper) -> None:
        for _ in range(2):
            asked = helper.asked()
            helper.give((helper.place.rank, asked == content))

    first.ask(content)
    first.ask(b"")
    beside(helpers, answer)
    found = [first.take(rank) for _ in range(2) for rank in first.others]
    assert found == [(1, True), (2, True), (1, False), (2, False)]


def test_end_of_rank_0_reaches_who_waits(team) -> None:
    _, helpers, watches = team
    watches[0].announce(End(4))
    with pytest.raises(Over) as caught:
        helpers[0].asked()
    assert caught.value.end == End(4)


def test_rank_that_stops_to_give_signs_of_life_is_lost(team) -> None:
    first, _, watches = team
    watches[2].stop()
    with pytest.raises(RankLostError) as caught:
        first.take(1)
    assert caught.value.facts == ["nothing was heard of rank 2 for 5 s (QCONVERT_RANK_TIMEOUT)"]


def test_ranks_end_without_being_aborted_by_their_threads() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY],
            env={**os.environ, **address, "RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = [(process.communicate(timeout=240)[1], process.returncode) for process in processes]
    assert ended == [("", 0)] * 2
