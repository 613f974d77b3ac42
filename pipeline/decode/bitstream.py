"""Damage that shows in a video's packets before anything is decoded: holes, and units whose lengths do not add up.

A file that lost sectors or parts of a download has runs of zeros where its pictures were. Arithmetic decoders take
them for pictures and say nothing. What they cannot contain is known: no encoder writes long runs of zeros, and H.264
and HEVC forbid some short sequences of bytes inside a unit. A few changed bytes break neither rule; most decoders
notice those, not all (see `docs/extraction.md`).
"""

from __future__ import annotations

from collections.abc import Callable

_HOLE = bytes(256)  # half a sector; the output of an arithmetic coder has no such run
_SHORT_HOLE = bytes(16)  # inside one H.264 or HEVC unit, where three zero bytes are forbidden already
_ENTROPY_CODED = ("vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "libaom-av1")
_FORBIDDEN = (0, 1, 2)  # after two zero bytes

Check = Callable[[bytes], str]  # a packet -> what is wrong with it; "": nothing that shows


def packet_check(codec: str, extradata: bytes | None) -> Check:
    """Return the check for a codec's packets.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: the codec's header in the container; it tells how units are delimited.
    """
    head = extradata or b""
    if codec == "h264" and len(head) > 6 and head[0] == 1:
        return lambda data: _units(data, 1 + (head[4] & 3), _h264_coded)
    if codec == "hevc" and len(head) > 22 and head[0] == 1:
        return lambda data: _units(data, 1 + (head[21] & 3), _hevc_coded)
    if codec in ("h264", "hevc"):
        return _start_codes
    if codec in _ENTROPY_CODED:
        return _hole
    return _nothing


def _nothing(_data: bytes) -> str:
    return ""


def _hole(data: bytes) -> str:
    """Zeros are padding at the end of a packet, damage before it."""
    begin = data.find(_HOLE)
    return "it has a hole of zeros" if begin >= 0 and data[begin:].strip(b"\0") else ""


def _start_codes(data: bytes) -> str:
    """Between units zeros are padding; a hole is zeros that no start code follows."""
    begin = data.find(_HOLE)
    rest = data[begin:].lstrip(b"\0") if begin >= 0 else b""
    return "it has a hole of zeros" if rest and rest[0] != 1 else ""


def _h264_coded(header: int) -> bool:
    return 1 <= header & 31 <= 5


def _hevc_coded(header: int) -> bool:
    return header >> 1 & 63 < 32


def _units(data: bytes, width: int, is_coded: Callable[[int], bool]) -> str:
    """Check a packet of units that follow their lengths.

    Args:
        data: the packet.
        width: bytes of a length.
        is_coded: whether a unit with this first byte holds a part of a picture.
    """
    if data[:4] == b"\0\0\0\1" and int.from_bytes(data[:width], "big") == 1:
        return ""  # start codes in spite of what the container says; decoders accept them
    position, size = 0, len(data)
    while position + width <= size:
        begin = position + width
        end = begin + int.from_bytes(data[position:begin], "big")
        if end > size:
            return "its parts are longer than the whole"
        if end > begin:
            if data[begin] & 0x80:
                return "one of its parts has no valid header"
            if is_coded(data[begin]) and _is_forbidden(data, begin, end):
                return "it has bytes that its codec forbids"
        elif not data[position:].strip(b"\0") and size - position > len(_SHORT_HOLE):
            return "it has a hole of zeros"
        position = end
    return ""


def _is_forbidden(data: bytes, begin: int, end: int) -> bool:
    """Whether a unit holds two zero bytes and 0, 1 or 2 after them; zeros at its end may be padding."""
    found = data.find(b"\0\0", begin, end)
    while 0 <= found < end - 2:
        if data[found + 2] in _FORBIDDEN:
            rest = data[found:end].strip(b"\0")
            return bool(rest) or end - found > len(_SHORT_HOLE)
        found = data.find(b"\0\0", found + 1, end)
    return False
