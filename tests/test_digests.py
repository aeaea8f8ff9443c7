from __future__ import annotations

from array import array

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import digests
from runner.digests import DigestMap, DigestSet, digest64, id_key, id_keys

KEYS = st.integers(0, 70) | st.integers(0, (1 << 64) - 1)
STEPS = st.lists(st.tuples(st.sampled_from(["set", "increment", "get"]), KEYS, KEYS), max_size=200)


@given(steps=STEPS, expected=st.integers(0, 100))
def test_it_is_a_dict_of_64_bit_integers(steps, expected):
    found, model = DigestMap(expected), {}
    for step, key, value in steps:
        if step == "set":
            found.set(key, value)
            model[key] = value
        elif step == "increment" and model.get(key, 0) < (1 << 64) - 1:
            assert found.increment(key) == model.get(key, 0)
            model[key] = model.get(key, 0) + 1
        assert found.get(key) == model.get(key)
        assert (key in found) == (key in model)
        assert len(found) == len(model)
    assert {key: found.get(key) for key in model} == model


@given(st.lists(KEYS, max_size=300))
def test_a_set_knows_what_it_was_given(keys):
    found, model = DigestSet(), set()
    for key in keys:
        assert (key in found) == (key in model)
        assert found.add(key) == (key not in model)
        model.add(key)
        assert len(found) == len(model)
    assert all(key in found for key in model)


def test_a_set_grows_forgets_nothing_and_takes_at_most_two_tables_of_8_bytes_for_each_60_percent():
    keys = [digest64(b"%d" % i) for i in range(10_000)]
    found = DigestSet()
    assert all(found.add(key) for key in keys)
    assert not any(found.add(key) for key in keys)
    assert found._keys.itemsize * len(found._keys) <= 2 * 8 * 10_000 / 0.6


def test_keys_of_a_set_that_want_one_slot_are_all_found():
    found = DigestSet()
    keys = [63 + (i << 32) for i in range(200)]  # the last slot: probing goes round the end
    assert all(found.add(key) for key in keys)
    assert all(key in found for key in keys)
    assert 63 + (200 << 32) not in found


def test_it_grows_and_forgets_nothing():
    entries = {digest64(b"key %d" % i): digest64(b"value %d" % i) for i in range(5_000)}
    found = DigestMap()
    for key, value in entries.items():
        found.set(key, value)
    assert len(found) == len(entries)
    assert all(found.get(key) == value for key, value in entries.items())
    assert not any(digest64(b"other %d" % i) in found for i in range(1_000))


@given(st.lists(st.lists(KEYS, max_size=30), max_size=6), st.sets(KEYS, max_size=20))
def test_many_are_added_in_order_up_to_the_first_that_is_there(groups, before):
    found, model = DigestMap(), {}
    for key in before:
        found.set(key, 1)
        model[key] = 1
    for keys in groups:
        values = [key ^ 5 for key in keys]
        added = found.add(array("Q", keys), array("Q", values))
        new = next((i for i, key in enumerate(keys) if key in model or key in keys[:i]), len(keys))
        model.update(zip(keys[:new], values, strict=False))
        assert added == new
        assert len(found) == len(model)
        assert {key: found.get(key) for key in [*model, *keys]} == {key: model.get(key) for key in [*model, *keys]}


@given(st.sets(KEYS.filter(bool), max_size=60), st.lists(KEYS, max_size=60))
def test_a_key_is_ticked_off_once_and_only_if_it_is_there(there, keys):
    found = DigestMap()
    for key in there:
        found.set(key, 0)
    ticks = found.ticks()
    assert found.tick(keys, ticks) == (there.issuperset(keys) and len(set(keys)) == len(keys))
    assert ticks.count(1) <= len(there)


@pytest.mark.parametrize("hashes", [True, False])
def test_many_keys_are_those_of_each_and_fit_the_table(monkeypatch, hashes):
    monkeypatch.setattr(digests, "_HASHES", hashes)
    names = [f"{i}-ä{chr(0x1F600 + i)}" for i in range(1_000)]
    keys = [id_key(name) for name in names]
    assert list(id_keys(names)) == keys
    assert len(set(keys)) == len(names)
    assert all(0 <= key < 1 << 64 for key in keys)
    assert max(keys) >= 1 << 63  # so that the negative half of Python's hashes is among them
    assert list(id_keys([])) == []


def test_an_id_has_one_key_whatever_read_it():
    name = "a-ä"
    assert id_key(orjson.loads(orjson.dumps(name))) == id_key("".join(["a-", "ä"])) == id_key(name)


def test_keys_that_want_one_slot_all_find_their_own():
    found = DigestMap()
    keys = [63 + (i << 32) for i in range(200)]  # the last slot: probing goes round the end
    for i, key in enumerate(keys):
        found.set(key, i)
    assert [found.get(key) for key in keys] == list(range(200))


def test_the_key_that_marks_an_empty_slot_is_a_key_like_any_other():
    found = DigestMap()
    assert found.get(0) is None
    assert 0 not in found
    found.set(0, 0)
    assert (found.get(0), 0 in found, len(found)) == (0, True, 1)
    assert found.increment(0) == 0
    assert (found.get(0), len(found)) == (1, 1)


def test_a_value_of_zero_is_not_absence():
    found = DigestMap()
    found.set(5, 0)
    assert (found.get(5), 5 in found, len(found)) == (0, True, 1)


@pytest.mark.parametrize("expected", [0, 1, 38, 39, 1_000])
def test_what_was_expected_fits_without_growing(expected):
    found = DigestMap(expected)
    table = found._table
    for i in range(expected):
        found.set(digest64(b"%d" % i), i)
    assert found._table is table


def test_it_takes_at_most_two_tables_of_16_bytes_for_each_60_percent():
    found = DigestMap()
    for i in range(10_000):
        found.set(digest64(b"%d" % i), 1)
    assert isinstance(found._table, array)
    taken = found._table.itemsize * len(found._table)
    assert taken <= 2 * 16 * 10_000 / 0.6


def test_the_digest_is_64_bits_and_the_same_on_every_machine():
    assert digest64(b"") == 0xE4A6A0577479B2B4
    assert digest64(b"a") != digest64(b"b")
    assert all(0 <= digest64(b"%d" % i) < 1 << 64 for i in range(100))
