"""TFRecord files, read without TensorFlow.

A file is a row of records, each framed as: length (uint64), checksum of the length
(uint32), that many bytes, checksum of the bytes (uint32), all little-endian. A checksum
is the CRC-32C, rotated right by 15 bits, plus a constant.
"""

import struct
from pathlib import Path

import numpy as np

from data.base.progress import counting

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
_MASK_DELTA = 0xA282EAD8
_BATCH = 4096  # records whose checksums are computed side by side
_LARGEST = 2**20  # bytes of a record; one of ours is an image of a few thousand
_BLOCK = 2**26  # bytes of such records, each counted as the longest of them


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


_TABLE = _crc_table()


def masked_crc32c(rows: list[bytes]) -> np.ndarray:
    """The checksum of each of `rows`: uint32 [len(rows)].

    A CRC goes byte by byte, which is slow in Python; so byte k of all rows is done at once.
    """
    lengths = np.array([len(row) for row in rows])
    order = np.argsort(-lengths, kind="stable")
    block = np.zeros((lengths.max(initial=0), len(rows)), np.uint8)  # a column is a row's bytes
    for column, index in enumerate(order):
        block[: lengths[index], column] = np.frombuffer(rows[index], np.uint8)
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    longer = np.searchsorted(-lengths[order], -np.arange(len(block)))  # rows with a byte k
    for count, column in zip(longer, block, strict=True):
        active = crc[:count]
        crc[:count] = _TABLE[(active ^ column[:count]) & 0xFF] ^ (active >> 8)
    crc = ~crc
    masked = np.empty_like(crc)
    masked[order] = ((crc >> 15) | (crc << 17)) + np.uint32(_MASK_DELTA)
    return masked


def count_records(path: Path) -> int:
    """How many records a file has, by their lengths alone. ValueError if it is truncated."""
    size, at, count = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while at < size:
            head = file.read(8)
            (length,) = struct.unpack("<Q", head) if len(head) == 8 else (size,)
            at += length + 16
            if at > size:
                raise ValueError("the file is truncated or damaged")
            file.seek(at)
            count += 1
    return count


def read_records(path: Path) -> list[bytes]:
    """All records of a file. Raises ValueError if it is truncated or a checksum is wrong."""
    data = path.read_bytes()
    records, heads, sums = [], [], []
    at = 0
    while at < len(data):
        head = data[at : at + 12]
        if len(head) < 12:
            raise ValueError("the file is truncated")
        length, head_sum = struct.unpack("<QI", head)
        if length > _LARGEST:
            raise ValueError("it is damaged: a record is too long")
        end = at + 12 + length
        if end + 4 > len(data):
            raise ValueError("the file is truncated or damaged")
        records.append(data[at + 12 : end])
        heads.append(head[:8])
        sums.append((head_sum, *struct.unpack_from("<I", data, end)))
        at = end + 4
    longest = max(map(len, records), default=1)
    batch = max(1, min(_BATCH, _BLOCK // max(longest, 1)))
    with counting(f"checking {path.name}", len(records)) as advance:
        for start in range(0, len(records), batch):
            part = slice(start, start + batch)
            expected = np.array(sums[part], np.uint32)
            found = np.stack([masked_crc32c(heads[part]), masked_crc32c(records[part])], axis=1)
            if not np.array_equal(found, expected):
                raise ValueError("the file is damaged (a checksum is wrong)")
            advance(len(expected))
    return records
