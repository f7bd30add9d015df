"""What learning takes, told from shapes: against tensors that are there, and torch's allocator."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from isentrope.learner.ranks import Ranks, joined
from tests.sdk.memory_at_work import SHARDED, planned, work
from tests.sdk.test_ranks import succeed

STATIC = ("frozen", "trained", "gradients", "optimizer")
NOTHING: frozenset[str] = frozenset()
ENTROPY = frozenset({"entropy"})
IN_ONE_PROCESS = [
    ("wide", "whole", NOTHING),
    ("wide", "adapters", NOTHING),
    ("deep", "adapters recomputed", ENTROPY),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("wide", "adapters of the head", NOTHING),
            ("deep", "recomputed", NOTHING),
            ("large vocabulary", "whole", ENTROPY),
            ("large vocabulary", "adapters recomputed", NOTHING),
        )
    ),
]


@pytest.mark.parametrize(("shape", "case", "needs"), IN_ONE_PROCESS)
def test_the_memory_of_one_process_is_told_to_a_hundredth(
    shape: str, case: str, needs: frozenset[str]
) -> None:
    told, found = planned(shape, case, 1, needs), work(shape, case, needs, Ranks())
    assert {n: found[n] for n in STATIC} == {n: getattr(told, n) for n in STATIC}
    assert pytest.approx(found["peak"], rel=0.01) == told.kept + told.passing
    assert 0 == told.gathered


def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves() -> None:
    """Of several chunks: a head with one chunk keeps it in its own way."""
    told = planned("large vocabulary", "whole", 1, ENTROPY)
    found = work("large vocabulary", "whole", ENTROPY, Ranks())
    assert pytest.approx(found["saved"], rel=0.02) == told.kept


def test_checkpointing_keeps_less_and_adapters_have_smaller_gradients() -> None:
    whole, again = (planned("deep", case, 1, NOTHING) for case in ("whole", "recomputed"))
    assert again.kept < whole.kept / 3
    assert again.learning < whole.learning
    adapters = planned("deep", "adapters", 1, NOTHING)
    assert adapters.gradients < whole.gradients / 10


def test_shards_shrink_with_the_ranks_and_what_is_whole_does_not() -> None:
    alone, many = (planned("wide", "bfloat16", ranks, NOTHING) for ranks in (1, 8))
    assert pytest.approx(alone.optimizer / 8, rel=0.01) == many.optimizer
    assert (alone.gathered, alone.kept, alone.loaded) == (many.gathered, many.kept, many.loaded)


@pytest.mark.parametrize("case", ["bfloat16", "adapters in bfloat16"])
@pytest.mark.parametrize("shape", ["deep", "large vocabulary"])
def test_a_policy_comes_to_its_device_a_layer_at_a_time(shape: str, case: str) -> None:
    told = planned(shape, case, 1, NOTHING, device="cuda")
    with joined(sharded=True) as ranks:
        watching = Watching(ranks.rank, ranks.size)
        work(shape, case, NOTHING, watching)
    assert 0 <= watching.most - told.loaded <= 1000  # of buffers
    assert told.loaded < planned(shape, case, 1, NOTHING).loaded


class Watching(Ranks):
    """Counts the bytes of what is on the device and was not sharded yet."""

    now = most = 0

    def same(self, tensor: torch.Tensor) -> None:
        self.now += tensor.untyped_storage().nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(tensor.untyped_storage(), self.drop, tensor.untyped_storage().nbytes())

    def drop(self, size: int) -> None:
        self.now -= size


@pytest.mark.slow
def test_a_16_bit_policy_on_one_rank_is_sharded_too() -> None:
    case = ("wide", "adapters in bfloat16")
    told = planned(*case, 1, NOTHING)
    with joined(sharded=True) as ranks:
        check(told, work(*case, NOTHING, ranks), first=True)


@pytest.mark.slow
def test_the_memory_of_two_ranks_is_told_to_a_sixth(tmp_path: Path) -> None:
    succeed(2, tmp_path, "-m", "tests.sdk.memory_at_work", tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for case in SHARDED:
            check(planned(*case, 2, NOTHING), found[case], first=rank == 0)


def check(told: Any, found: dict[str, int], *, first: bool) -> None:
    """Later ranks may have less: what cannot be cut evenly is cut so that the first have more."""
    for name in STATIC:
        assert found[name] <= getattr(told, name)
        assert not first or found[name] == getattr(told, name), name
    peak = told.gathered + told.kept + told.passing
    assert 0.98 * found["peak"] <= peak <= 1.17 * found["peak"]
