"""64-bit digests, and tables of them that cost 8 or 16 bytes a slot instead of a dict's hundred. Pure.

A million ids as a set of strings take 124 MB; here they take 16 MB. Two of a million ids share a key with a
probability of 3 × 10⁻⁸.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

_EMPTY: Final = 0
_MASK64: Final = (1 << 64) - 1
_HASHES: Final = sys.hash_info.width == 64 and sys.hash_info.algorithm.startswith("siphash")


def digest64(data: bytes) -> int:
    """BLAKE2b-64 of `data`, unsigned."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def id_key(name: str) -> int:
    """The key of an id in this process's tables: unsigned, 64 bits. Another process has another: never write it down.

    Python's own hash of strings where that is a keyed 64-bit SipHash, in a tenth of BLAKE2b's time.
    """
    return hash(name) & _MASK64 if _HASHES else digest64(name.encode())


def id_keys(names: Iterable[str]) -> array[int]:
    """`id_key` of each of many."""
    if _HASHES:
        return array("Q", array("q", map(hash, names)).tobytes())  # as unsigned numbers
    return array("Q", map(id_key, names))


def unsigned64(data: bytes) -> array[int]:
    """The big-endian 64-bit integers in `data`."""
    found = array("Q", data)
    if sys.byteorder == "little":
        found.byteswap()
    return found


class DigestSet:
    """Unsigned 64-bit keys: open addressing, linear probing, at most 60 % full.

    Keys are digests, hence spread evenly by themselves.
    """

    __slots__ = ("_has_empty", "_keys", "_len")

    def __init__(self) -> None:
        self._has_empty = False  # whether it holds the key that marks an empty slot in the table
        self._len = 0
        self._keys = array("Q", bytes(8)) * 64

    def _slot(self, key: int) -> int:
        """Where the key is, or the empty slot where it would go."""
        keys, mask = self._keys, len(self._keys) - 1
        slot = key & mask
        while (found := keys[slot]) != key and found != _EMPTY:
            slot = (slot + 1) & mask
        return slot

    def add(self, key: int) -> bool:
        """Adds a key; False if it was there."""
        if key == _EMPTY:
            is_new, self._has_empty = not self._has_empty, True
            return is_new
        slot = self._slot(key)
        if self._keys[slot] == key:
            return False
        self._keys[slot] = key
        self._len += 1
        if self._len > len(self._keys) * 6 // 10:
            self._grow()
        return True

    def _grow(self) -> None:
        old = self._keys
        keys = self._keys = array("Q", bytes(8)) * (2 * len(old))
        mask = len(keys) - 1
        for key in old:  # all differ; to call `_slot` for each would be half of what a key costs
            if key != _EMPTY:
                slot = key & mask
                while keys[slot] != _EMPTY:
                    slot = (slot + 1) & mask
                keys[slot] = key

    def __contains__(self, key: int) -> bool:
        return self._has_empty if key == _EMPTY else self._keys[self._slot(key)] == key

    def __len__(self) -> int:
        return self._len + self._has_empty


class DigestMap:
    """Unsigned 64-bit key → unsigned 64-bit value: open addressing, linear probing, at most 60 % full.

    Keys are digests, hence spread evenly by themselves; a value stands behind its key. `expected` entries fit without
    growing.
    """

    __slots__ = ("_len", "_limit", "_mask", "_table", "_zero")

    def __init__(self, expected: int = 0) -> None:
        size = 64
        while size * 6 // 10 < expected:
            size *= 2
        self._zero: int | None = None  # the value of key 0, which marks an empty slot in the table
        self._len = 0
        self._allocate(size)

    def _allocate(self, size: int) -> None:
        self._table = array("Q", bytes(16)) * size
        self._mask = 2 * size - 2
        self._limit = size * 6 // 10

    def _slot(self, key: int) -> int:
        """Where the key is, or the empty slot where it would go."""
        table, mask = self._table, self._mask
        slot = key & mask
        while (found := table[slot]) != key and found != _EMPTY:
            slot = (slot + 2) & mask
        return slot

    def get(self, key: int) -> int | None:
        """The key's value, or None."""
        if key == _EMPTY:
            return self._zero
        slot = self._slot(key)
        return self._table[slot + 1] if self._table[slot] == key else None

    def set(self, key: int, value: int) -> None:
        """Sets the key's value."""
        if key == _EMPTY:
            self._len += self._zero is None
            self._zero = value
            return
        slot = self._slot(key)
        if self._table[slot] == _EMPTY:
            if self._len >= self._limit:
                self._grow()
                slot = self._slot(key)
            self._table[slot] = key
            self._len += 1
        self._table[slot + 1] = value

    def increment(self, key: int) -> int:
        """Adds one to the key's count; returns what it was before."""
        before = self.get(key) or 0
        self.set(key, (before + 1) & _MASK64)
        return before

    def add(self, keys: Sequence[int], values: Sequence[int]) -> int:
        """Adds new keys, in order, up to the first that is there already; how many it added."""
        while self._len + len(keys) > self._limit:
            self._grow()
        count = self._fill(zip(keys, values, strict=True))
        self._len += count
        if count < len(keys) and keys[count] == _EMPTY and self._zero is None:
            self.set(_EMPTY, values[count])
            return count + 1 + self.add(keys[count + 1 :], values[count + 1 :])
        return count

    def _fill(self, entries: Iterable[tuple[int, int]]) -> int:
        """Puts entries into free slots, up to the first whose key is there or is none; how many."""
        table, mask = self._table, self._mask  # a call for each would take three times as long
        count = 0
        for key, value in entries:
            slot = key & mask
            while (found := table[slot]) != key and found != _EMPTY:
                slot = (slot + 2) & mask
            if found == key:
                break
            table[slot] = key
            table[slot + 1] = value
            count += 1
        return count

    def ticks(self) -> bytearray:
        """For `tick`: nothing is ticked off. It is good for as long as the map doesn't change."""
        return bytearray(len(self._table) // 2)

    def tick(self, keys: Iterable[int], ticks: bytearray) -> bool:
        """Ticks keys off; False if one isn't there, or was ticked off before, or is 0."""
        table, mask = self._table, self._mask
        for key in keys:
            slot = key & mask
            while (found := table[slot]) != key and found != _EMPTY:
                slot = (slot + 2) & mask
            if found == _EMPTY or ticks[slot >> 1]:
                return False
            ticks[slot >> 1] = 1
        return True

    def _grow(self) -> None:
        old = memoryview(self._table)
        self._allocate(len(old))
        self._fill(entry for entry in zip(old[::2], old[1::2], strict=True) if entry[0] != _EMPTY)

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        return self._len
