"""The generator against its published answers, and the purposes of its bits."""

from __future__ import annotations

import numpy as np
import pytest

from distq_mpi.kernels import Kernel, draws
from distq_mpi.kernels.draws import NARROW, rotate, slot_of, threefry
from tests.stand_in import compiled

u8 = np.uint64
ONES = 0xFFFFFFFFFFFFFFFF

# Random123, kat_vectors: threefry 2 x 64, 13 rounds: counter, key, first word.
KNOWN = [
    ((0, 0), (0, 0), 0xF167B032C3B480BD),
    ((ONES, ONES), (ONES, ONES), 0xCCDEC5C917A874B1),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344),
        (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        0xC3AAC71561042993,
    ),
]


def reference(c0: int, c1: int, k0: int, k1: int, rounds: int = 13) -> tuple[int, int]:
    """Threefry-2x64 as the paper writes it, in Python integers."""
    rotations = (16, 42, 12, 31, 16, 32, 24, 21)
    key = (k0, k1, 0x1BD11BDAA9FC1A22 ^ k0 ^ k1)
    x0, x1 = (c0 + k0) & ONES, (c1 + k1) & ONES
    for r in range(rounds):
        x0 = (x0 + x1) & ONES
        x1 = ((x1 << rotations[r % 8]) | (x1 >> (64 - rotations[r % 8]))) & ONES ^ x0
        if r % 4 == 3:
            j = r // 4 + 1
            x0 = (x0 + key[j % 3]) & ONES
            x1 = (x1 + key[(j + 1) % 3] + j) & ONES
    return x0, x1


def scalars(*numbers: int) -> tuple[np.uint64, ...]:
    return tuple(u8(n) for n in numbers)


@pytest.mark.parametrize(("counter", "key", "first"), KNOWN)
def test_known_answers(counter: tuple[int, int], key: tuple[int, int], first: int) -> None:
    assert reference(*counter, *key)[0] == first
    with np.errstate(over="ignore"):
        words = threefry(*scalars(*counter, *key))
    assert tuple(int(w) for w in words) == reference(*counter, *key)


def test_arrays_and_compiled_code_give_the_reference() -> None:
    rng = np.random.default_rng(5)
    numbers = rng.integers(0, 2**64, (4, 200), dtype=np.uint64)
    expected = np.array(
        [reference(*(int(x) for x in column)) for column in numbers.T], np.uint64
    ).T
    assert np.array_equal(np.array(threefry(*numbers)), expected)
    found = np.zeros((2, 200), np.uint64)
    request = Kernel(fill, {}, (numbers, found))
    compiled({"fill": request})["fill"](numbers, found)
    assert np.array_equal(found, expected)


def fill(numbers, found):  # type: ignore[no-untyped-def]
    for i in range(found.shape[1]):
        found[0, i], found[1, i] = threefry(
            numbers[0, i], numbers[1, i], numbers[2, i], numbers[3, i]
        )


def test_rotate_moves_the_top_bits_to_the_bottom() -> None:
    assert int(rotate(u8(1 << 63), 1)) == 1
    assert int(rotate(u8(0x0123456789ABCDEF), 16)) == 0x456789ABCDEF0123


def test_purposes_differ() -> None:
    names = ("TRANSITION", "RESET", "INITIAL", "ROUNDING", "EVALUATION", "EVALUATION_RESET")
    assert len({int(getattr(draws, name)) for name in names}) == len(names)


@pytest.mark.parametrize("changed", ["step", "lane", "seed", "purpose"])
def test_neighbouring_counters_and_keys_are_unrelated(changed: str) -> None:
    n = 4096
    arguments = {name: np.full(n, 7, np.uint64) for name in ("step", "lane", "seed", "purpose")}
    arguments[changed] = np.arange(n, dtype=np.uint64)
    for word in threefry(*arguments.values()):
        bits = (word[:, None] >> np.arange(64, dtype=np.uint64)) & u8(1)
        # 64 frequencies of 4096 coins: standard deviation 1/128, so 6 of them.
        assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 / 128
        flips = (bits[1:] != bits[:-1]).mean()
        assert abs(flips - 0.5) < 6 * 0.5 / np.sqrt(64 * (n - 1))


@pytest.mark.parametrize("n", [2**16 + 1, 50_000_000, 2**31 - 1])
def test_any_of_many_slots_is_as_likely_as_another(n: int) -> None:
    """The words of a slot are an interval: its borders say how many there are, to one of 2^64."""
    drawn = compiled({"slots": Kernel(slots, {}, (np.zeros(1, u8), u8(1), *[np.zeros(1, u8)] * 2))})
    for slot in (1, 2, n // 3, n - 2, n - 1):
        border = -(-(slot << 64) // n)  # the first word of it
        words, found, within = np.array([border - 1, border], u8), np.zeros(2, u8), np.zeros(2, u8)
        drawn["slots"](words, u8(n), found, within)
        assert found.tolist() == [slot - 1, slot]
        assert within[0] > 0.99 * 2**32 and within[1] < 0.01 * 2**32
        with np.errstate(over="ignore"):
            assert int(slot_of(words[1], u8(n))[0]) == slot


@pytest.mark.parametrize("n", [1, 3, 64, int(NARROW)])
def test_few_slots_are_chosen_by_the_high_bits_alone(n: int) -> None:
    for word in np.random.default_rng(n).integers(0, 2**64, 50, dtype=u8).tolist():
        found = slot_of(u8(word), u8(n))
        assert [int(x) for x in found] == [((word >> 32) * n) >> 32, word & 0xFFFFFFFF]


def slots(words, n, found, within):  # type: ignore[no-untyped-def]
    for i in range(words.size):
        found[i], within[i] = slot_of(words[i], n)
