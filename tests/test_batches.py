"""Batches: the order of samples, their augmentation, reading ahead."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.configuration import Configuration
from glass_cnn.data import batches
from glass_cnn.data import dataset as data
from glass_cnn.data.render import render
from glass_cnn.streams import Stream, permutation, philox
from glass_cnn.train_settings import Augmentation
from tests.small_data import SETTINGS, with_changes


@pytest.fixture(scope="module")
def tiny(small_logs: Path) -> data.Dataset:
    return data.load(SETTINGS, small_logs)


@given(
    seed=st.integers(0, 2**31 - 1),
    batch=st.integers(1, 50),
    count=st.integers(1, 40),
)
def test_every_epoch_visits_every_sample_once(seed: int, batch: int, count: int) -> None:
    steps = -(-3 * count // batch)
    visited = np.concatenate([batches.order(seed, step, batch, count) for step in range(steps)])
    for epoch in range(3):
        assert sorted(visited[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert (batches.order(seed, steps - 1, batch, count) == visited[-batch:]).all()


def test_orders_far_along_are_those_of_their_epoch() -> None:
    """Against the definition, permutation after permutation, at the end of a very long run."""
    count, batch, step = 13, 8, 10**7
    first = step * batch
    epochs = range(first // count, (first + batch) // count + 1)
    whole = [permutation(philox(Stream.ORDER, 5, e), count) for e in epochs]
    start = first - epochs[0] * count
    assert (batches.order(5, step, batch, count) == np.concatenate(whole)[start:][:batch]).all()
    assert len({tuple(order) for order in whole}) == len(whole)


def test_orders_differ_between_seeds_and_epochs() -> None:
    first = batches.order(1, 0, 100, 100)
    assert (first != batches.order(2, 0, 100, 100)).any()
    assert (first != batches.order(1, 1, 100, 100)).any()


@given(seed=st.integers(0, 2**31 - 1), step=st.integers(0, 10**7), count=st.integers(1, 40))
def test_shuffled_batches_hold_no_sample_twice_while_there_are_enough(
    seed: int, step: int, count: int
) -> None:
    whole = batches.order(seed, step, count, count, "batch")
    assert sorted(whole) == list(range(count))
    part = batches.order(seed, step, -(-count // 2), count, "batch")
    assert (part == whole[: len(part)]).all()
    more = batches.order(seed, step, 2 * count + 1, count, "batch")
    assert sorted(more[:count]) == sorted(more[count : 2 * count]) == list(range(count))


def test_shuffled_batches_take_every_sample_as_often_and_know_nothing_of_each_other() -> None:
    drawn = [batches.order(3, step, 5, 20, "batch") for step in range(4000)]
    taken = np.bincount(np.concatenate(drawn), minlength=20)
    assert abs(taken - 1000).max() < 5 * math.sqrt(1000)
    again = np.mean([len(set(a) & set(b)) for a, b in itertools.pairwise(drawn)])
    assert again == pytest.approx(5 * 5 / 20, abs=0.06)
    assert len({tuple(one) for one in drawn}) > 3900


def test_streams_never_change() -> None:
    """Runs that were stopped under another version must go on in the same order."""
    assert batches.order(7, 3, 6, 10).tolist() == [2, 8, 1, 0, 2, 7]
    assert batches.order(7, 3, 6, 10, "batch").tolist() == [3, 8, 2, 0, 9, 7]
    rotation, flip, row, column = (choice.tolist() for choice in batches.augment(7, 3, 3))
    assert (rotation, flip) == ([0, 1, 0], [1, 1, 1])
    assert row == [1220886660, 2257623138, 1670817295]
    assert column == [4065016017, 4117752372, 2080058311]


def test_augmentation_does_not_depend_on_the_batch_size() -> None:
    one = batches.augment(5, 2, 12)
    two = batches.augment(5, 4, 6)
    assert all((a[:6] == b).all() for a, b in zip(one, two, strict=True))
    many = batches.augment(5, 0, 4000)
    assert np.bincount(many.rotation).tolist() == pytest.approx([1000] * 4, abs=120)
    assert np.bincount(many.flip).tolist() == pytest.approx([2000] * 2, abs=150)
    assert many.shift_row.mean() == pytest.approx(2**31, rel=0.05)
    assert abs(np.corrcoef(many.shift_row, many.shift_column)[0, 1]) < 0.05


@pytest.mark.parametrize(("rotations", "flips"), [(True, True), (True, False), (False, True)])
def test_each_symmetry_of_the_square_is_as_frequent_as_the_others(
    rotations: bool, flips: bool
) -> None:
    """All eight, or the four turns, or the two of a mirror, of an image that has none itself."""
    image = np.random.default_rng(2).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    count = 4000
    settings = Augmentation(rotations=rotations, flips=flips)
    seen = batches.apply(np.stack([image] * count), batches.augment(9, 3, count), settings)
    turns = range(4 if rotations else 1)
    allowed = {np.rot90(image, turn).tobytes() for turn in turns}
    if flips:
        allowed |= {np.rot90(image[:, ::-1], turn).tobytes() for turn in turns}
    counts = Counter(picture.tobytes() for picture in seen)
    assert counts.keys() == allowed
    expected = count / len(allowed)
    assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in counts.values())


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"rotations": True},
        {"flips": True},
        {"translations": True},
        {"rotations": True, "flips": True, "translations": True},
    ],
)
def test_apply_equals_one_image_at_a_time(chosen: dict[str, bool]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    choices = batches.augment(3, 1, 40)
    result = batches.apply(images, choices, Augmentation(**chosen))
    for image, got, turn, flip_it, row, column in zip(images, result, *choices, strict=True):
        expected = image
        if chosen.get("translations"):
            shift = (int(row * 12 / 2**32), int(column * 12 / 2**32))
            expected = np.roll(expected, shift, axis=(0, 1))
        if chosen.get("flips") and flip_it:
            expected = np.fliplr(expected)
        if chosen.get("rotations"):
            expected = np.rot90(expected, turn)
        assert (got == expected).all()


def test_rotation_by_the_augmentation_is_rotation_of_the_particles(tiny: data.Dataset) -> None:
    (liquid,) = tiny.configurations(np.array([0]))
    settings = with_changes(render={"pixels": 32, "style": "disc"}).render
    image = render(liquid, settings)[None]
    choices = batches.Choices(*(np.array([k]) for k in (1, 1, 0, 0)))
    turned = batches.apply(image, choices, Augmentation(rotations=True, flips=True))
    mirrored = liquid.positions.astype(float) * [-1, 1]
    there = Configuration(mirrored[:, ::-1] * [-1, 1], liquid.species, liquid.box)
    expected = render(there, settings)
    assert np.abs(turned[0] - expected.astype(int)).max() <= 1


# Batches


def take(tiny: data.Dataset, count: int, **how: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    options = {"seed": 3, "batch_size": 25, "augmentation": Augmentation(flips=True), **how}
    reading = batches.batches(tiny, data.split(tiny, SETTINGS).train, **options)
    taken = [next(reading) for _ in range(count)]
    reading.close()
    return taken


@pytest.mark.parametrize("kind", ["epoch", "batch"])
def test_batches_hold_what_order_and_augment_say(tiny: data.Dataset, kind: batches.Order) -> None:
    part = data.split(tiny, SETTINGS).train
    for step, (images, labels) in enumerate(take(tiny, 30, kind=kind)):
        chosen = part[batches.order(3, step, 25, len(part), kind)]
        assert (labels == tiny.labels[chosen]).all()
        drawn = batches.augment(3, step, 25)
        assert (images == batches.apply(tiny.images[chosen], drawn, Augmentation(flips=True))).all()


@pytest.mark.parametrize("kind", ["epoch", "batch"])
def test_a_run_reads_its_batches_in_the_order_of_its_settings(
    tiny: data.Dataset, kind: batches.Order
) -> None:
    train = SETTINGS.train.model_copy(update={"order": kind})
    settings = SETTINGS.model_copy(update={"train": train})
    whole = batches.TrainingData(settings, tiny, data.split(tiny, settings))
    reading = whole.batches(slice(None), slice(None), 5, lambda *batch: ("there", batch[1]))
    where, labels = next(reading)
    reading.close()
    assert where == "there"
    part = whole.parts.train
    chosen = part[batches.order(settings.seed, 5, train.batch_size, len(part), kind)]
    assert (labels == tiny.labels[chosen]).all()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_together_see_the_same_batch(tiny: data.Dataset, ranks: int) -> None:
    whole = take(tiny, 3, first_step=17)
    shares = [
        take(tiny, 3, first_step=17, share=slice(25 * r // ranks, 25 * (r + 1) // ranks))
        for r in range(ranks)
    ]
    for step in range(3):
        for kind in (0, 1):
            joined = np.concatenate([share[step][kind] for share in shares])
            assert (joined == whole[step][kind]).all()


@pytest.mark.parametrize("turned", [False, True])
def test_ranks_together_see_the_same_images(tiny: data.Dataset, turned: bool) -> None:
    """Each a strip of them, as they are after turns, mirrors and translations."""
    how = dict.fromkeys(("rotations", "flips", "translations"), turned)
    options: dict[str, Any] = {"first_step": 17, "augmentation": Augmentation(**how)}
    whole = take(tiny, 3, **options)
    upper, lower = (
        take(tiny, 3, **options, strip=strip) for strip in (slice(0, 11), slice(11, 99))
    )
    for step, (images, labels) in enumerate(whole):
        joined = np.concatenate([upper[step][0], lower[step][0]], axis=1)
        assert (joined == images).all()
        assert (upper[step][1] == labels).all()


def test_restart_goes_on_where_it_stopped(tiny: data.Dataset) -> None:
    run = take(tiny, 6)
    resumed = take(tiny, 2, first_step=4)
    for (images, labels), (images_again, labels_again) in zip(run[4:], resumed, strict=True):
        assert (images == images_again).all()
        assert (labels == labels_again).all()


def readers() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def test_two_batches_are_handed_over_ahead_and_the_thread_ends(tiny: data.Dataset) -> None:
    """By a thread of its own: a GPU lets whoever hands over wait for its steps."""
    read, handed_over = [], []

    class Watched(np.ndarray):
        def __getitem__(self, index: Any) -> Any:
            read.append(len(index))
            return super().__getitem__(index)

    watched = dataclasses.replace(tiny, images=tiny.images.view(Watched))

    def hand_over(images: np.ndarray, labels: np.ndarray) -> tuple[str, int]:
        handed_over.append(threading.current_thread().name)
        return "batch", len(handed_over)

    part, plain = np.arange(10), Augmentation()
    reading = batches.batches(watched, part, 1, 5, plain, hand_over=hand_over)
    assert next(reading) == ("batch", 1)
    deadline = time.monotonic() + 10
    while len(handed_over) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(read) == len(handed_over) == 3
    assert all(name.startswith("batches") for name in handed_over)
    assert readers() == 1
    reading.close()
    assert readers() == 0


def test_error_of_the_reader_reaches_the_loop(tiny: data.Dataset) -> None:
    reading = batches.batches(tiny, np.array([0, len(tiny)]), 1, 2, Augmentation())
    with pytest.raises(IndexError):
        next(reading)
    assert readers() == 0
