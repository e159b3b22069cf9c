"""Seeded damage to a file: flipped bits, lost and doubled blocks, cut ends, and values that no text should hold."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_NUMBER = re.compile(rb"(?<![\w.\"])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][\w-]{2,}")
_ODD_NUMBERS = [
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"null",
    b"99999999999999999999",
    b"1e-320",
    b"true",
    b"[]",
    b'"7"',
    b"{}",
]
_ODD_WORDS = [
    b"", b"null", b"../../etc/passwd", b"/dev/zero", b"\xff\xfe", b"__class__", b"a" * 5000, b"*a", b"!!x",
    "ä\u202e".encode(),
]  # fmt: skip


def mutate(content: bytes, draw: random.Random, text: bool) -> tuple[bytes, str]:
    """Return damaged content, and what was done to it, one to three times.

    Args:
        content: of the file.
        draw: decides what and where.
        text: also put values in that the format can hold and its reader should not believe.
    """
    kinds = [*_BINARY, *(_TEXT if text else {})]
    done = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        kind = draw.choice(kinds)
        content = (_BINARY | _TEXT)[kind](content, draw)
        done.append(kind)
    return content, ", ".join(done)


def _flip_bits(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 2, 16))):
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _extreme_bytes(content: bytes, draw: random.Random) -> bytes:
    at, size = _block(content, draw, 16)
    return content[:at] + bytes([draw.choice((0x00, 0x7F, 0x80, 0xFF))]) * size + content[at + size :]


def _cut_end(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _insert(content: bytes, draw: random.Random) -> bytes:
    at, _ = _block(content, draw, 1)
    return content[:at] + draw.randbytes(draw.choice((1, 8, 4096))) + content[at:]


def _delete(content: bytes, draw: random.Random) -> bytes:
    at, size = _block(content, draw, 256)
    return content[:at] + content[at + size :]


def _double(content: bytes, draw: random.Random) -> bytes:
    at, size = _block(content, draw, 4096)
    return content[: at + size] + content[at : at + size] * draw.choice((1, 50)) + content[at + size :]


def _swap(content: bytes, draw: random.Random) -> bytes:
    (first, size), (second, _) = _block(content, draw, 64), _block(content, draw, 64)
    first, second = min(first, second), max(first, second)
    size = min(size, second - first, len(content) - second)
    parts = content[:first], content[second : second + size], content[first + size : second]
    return b"".join([*parts, content[first : first + size], content[second + size :]])


def _near_an_end(content: bytes, draw: random.Random) -> bytes:
    """Flip a bit among the first or last bytes, where formats keep their sizes."""
    if not content:
        return content
    at = draw.randrange(min(64, len(content)))
    at = at if draw.random() < 0.5 else len(content) - 1 - at
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def _odd_number(content: bytes, draw: random.Random) -> bytes:
    return _replace_one(content, _NUMBER, draw.choice(_ODD_NUMBERS), draw)


def _odd_word(content: bytes, draw: random.Random) -> bytes:
    return _replace_one(content, _WORD, draw.choice(_ODD_WORDS), draw)


def _deep(content: bytes, draw: random.Random) -> bytes:
    return _replace_one(content, _NUMBER, b"[" * draw.choice((10, 100_000)), draw)


def _replace_one(content: bytes, pattern: re.Pattern[bytes], value: bytes, draw: random.Random) -> bytes:
    found = list(pattern.finditer(content))
    if not found:
        return content + value
    match = draw.choice(found)
    return content[: match.start()] + value + content[match.end() :]


def _block(content: bytes, draw: random.Random, most: int) -> tuple[int, int]:
    at = draw.randrange(len(content) + 1)
    return at, min(draw.randint(1, most), len(content) - at)


_BINARY: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": _flip_bits,
    "bytes of one value": _extreme_bytes,
    "cut at the end": _cut_end,
    "bytes put in": _insert,
    "bytes taken out": _delete,
    "a block doubled": _double,
    "two blocks swapped": _swap,
    "a bit near an end": _near_an_end,
}
_TEXT: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "an odd number": _odd_number,
    "an odd word": _odd_word,
    "lists without end": _deep,
}
