"""What the environment says of this process's place."""

from __future__ import annotations

import pytest

from qconvert.errors import RankSetupError
from qconvert.ranks.place import Place, place

TORCHRUN = {
    "RANK": "2", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}  # fmt: skip


def test_place_is_that_of_torchrun() -> None:
    here = place(TORCHRUN)
    assert here == Place(rank=2, world=3, local=3, limit_s=60)
    assert not here.first
    assert list(here.others) == [1, 2]


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "0"}, {"WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": "1"}],
)
def test_process_without_others_is_alone(environment: dict[str, str]) -> None:
    assert place(environment) is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RANK", "first", "RANK is 'first', no number"),
        ("RANK", "3", "RANK is 3, WORLD_SIZE is 3"),
        ("MASTER_ADDR", "", "RANK and WORLD_SIZE are set, MASTER_ADDR not"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http', no number"),
        ("QCONVERT_RANK_TIMEOUT", "1", "QCONVERT_RANK_TIMEOUT is '1'"),
        ("QCONVERT_RANK_TIMEOUT", "nan", "QCONVERT_RANK_TIMEOUT is 'nan'"),
        ("QCONVERT_RANK_TIMEOUT", "soon", "QCONVERT_RANK_TIMEOUT is 'soon'"),
    ],
)
def test_environment_that_makes_no_sense_is_refused(name: str, value: str, said: str) -> None:
    with pytest.raises(RankSetupError) as caught:
        place({**TORCHRUN, name: value})
    assert caught.value.facts == [said]


def test_time_to_wait_is_a_setting() -> None:
    here = place({**TORCHRUN, "QCONVERT_RANK_TIMEOUT": "7.5"})
    assert here is not None
    assert here.limit_s == 7.5
