"""Cases for the readers of containers: the first byte says whether the rest is the file itself, or what a sound one holds.

Mutated bytes of a zip mostly break its directory and go no further; a sound zip with a mutated member gets to the reader behind it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping

import zstandard

STORED, DEFLATED, ZSTANDARD = 0, 8, 93
RAW, HEADER, BEGUN, DEFLATED_HEADER, PLAIN = b"r", b"h", b"b", b"d", b"j"


def compress(method: int, content: bytes) -> bytes:
    """An entry's bytes by a method of the zip format."""
    if method == ZSTANDARD:
        return zstandard.ZstdCompressor().compress(content)
    if method == DEFLATED:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(content) + packer.flush()
    return content


def archive(entries: Mapping[str, bytes], method: int = ZSTANDARD, claimed: int | None = None) -> bytes:
    """A zip of any method, which zipfile cannot write before Python 3.14; ``claimed`` lies about what each entry holds."""
    return packed_archive([(name, compress(method, content), content) for name, content in entries.items()], method, claimed)


def packed_archive(entries: list[tuple[str, bytes, bytes]], method: int, claimed: int | None = None) -> bytes:
    """A zip of entries that are compressed already: name, bytes, and what the directory says is in them."""
    body, directory = bytearray(), bytearray()
    for name, packed, content in entries:
        size = len(content) if claimed is None else claimed
        common = struct.pack("<HHHHHLLLHH", 20, 0, method, 0, 0x21, zlib.crc32(content), len(packed), size, len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHLL", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\x03\x04" + common + name.encode() + packed
    return bytes(body + directory) + end_of_archive(len(entries), len(directory), len(body))


def end_of_archive(count: int, size: int, offset: int) -> bytes:
    """The end record of a zip: how many entries its directory has, how large it is and where it begins."""
    return b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), size, offset, 0)


def eval_log(data: bytes) -> bytes:
    """The file of a case: as it is, or with the case as its header (of a finished or a begun run), or as a plain log."""
    kind, content = data[:1], data[1:]
    if kind == HEADER:
        return archive({"header.json": content, "samples/1_epoch_1.json": b"{}"})
    if kind == DEFLATED_HEADER:
        return archive({"header.json": content}, DEFLATED)
    if kind == BEGUN:
        return archive({"_journal/start.json": content})
    return content


def torch_zip(data: bytes) -> bytes:
    """The file of a case: as it is, or a zip with the case as its pickle."""
    kind, content = data[:1], data[1:]
    if kind == HEADER:
        return archive({"x/data.pkl": content, "x/data/0": b"\0" * 8}, STORED)
    return archive({"x/data.pkl": content}, DEFLATED) if kind == DEFLATED_HEADER else content


def safetensors(data: bytes) -> bytes:
    """The file of a case: as it is, or with the case as its header under the right length, and as much behind it as it asks for."""
    kind, content = data[:1], data[1:]
    if kind != HEADER:
        return content
    return struct.pack("<Q", len(content)) + content + bytes(_tensors(content))


def _tensors(header: bytes) -> int:
    try:
        ends = [tensor["data_offsets"][1] for tensor in json.loads(header).values() if "data_offsets" in tensor]
        return max(0, min(int(max(ends, default=0)), 4096))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        return 0


def entry(archive: bytes, name: str) -> bytes:
    """What the entry of this ending holds, read from the directory of a sound zip, independently of the code under test."""
    at = archive.rfind(b"PK\x05\x06")
    at = struct.unpack("<L", archive[at + 16 : at + 20])[0]
    while archive[at : at + 4] == b"PK\x01\x02":
        method, size, names, extra, comment, offset = struct.unpack("<10xH8xL4xHHH8xL", archive[at : at + 46])
        if archive[at + 46 : at + 46 + names].decode().endswith(name):
            start = offset + 30 + sum(struct.unpack("<HH", archive[offset + 26 : offset + 30]))
            return _expand(method, archive[start : start + size])
        at += 46 + names + extra + comment
    raise KeyError(name)


def _expand(method: int, packed: bytes) -> bytes:
    if method == ZSTANDARD:
        return zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    return zlib.decompress(packed, -15) if method == DEFLATED else packed
