"""Kinds of hostile pictures, each among honest ones in an archive."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from random import Random
from typing import Any

from PIL import Image

from benchmarks.hostile.archives import packed, shuffled
from benchmarks.hostile.honest import Honest, zipped
from benchmarks.hostile.kinds import TAKEN, kind

_PNG = b"\x89PNG\r\n\x1a\n"
_READ = "PNG", "JPEG", "WEBP"


def among(honest: Honest, draw: Random, picture: bytes) -> bytes:
    """An archive in which one honest picture has given way to ``picture``."""
    return packed(shuffled(honest.images | {draw.choice(list(honest.images)): picture}, draw), draw)


def drawn(draw: Random, format: str, *, mode: str = "RGB", side: int = 24, **options: Any) -> bytes:
    """A picture of noise."""
    noise = Image.frombytes("RGB", (side, side), draw.randbytes(3 * side * side)).convert(mode)
    buffer = io.BytesIO()
    noise.save(buffer, format, **options)
    return buffer.getvalue()


@cache
def flat(mode: str, width: int, height: int, format: str) -> bytes:
    """A large picture of one colour, few bytes long."""
    buffer = io.BytesIO()
    options = {"lossless": True, "method": 0} if format == "WEBP" else {"compress_level": 1} if format == "PNG" else {}
    Image.new(mode, (width, height)).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(png: bytes, extra: bytes) -> bytes:
    """A PNG with a chunk more behind its header."""
    end = len(_PNG) + 25
    return png[:end] + extra + png[end:]


# --- cut off, changed ------------------------------------------------------------------------------------------------


@kind("data", "image_unreadable", files=64)
def png_cut_off(draw: Random, honest: Honest) -> bytes:
    data = drawn(draw, "PNG")
    return among(honest, draw, data[: draw.randrange(len(data) - 30)])  # the end mark alone nobody misses


@kind("data", "image_unreadable", files=64)
def jpeg_cut_off(draw: Random, honest: Honest) -> bytes:
    data = drawn(draw, "JPEG", progressive=draw.random() < 0.3)
    return among(honest, draw, data[: draw.randrange(len(data) - 40)])


@kind("data", "image_unreadable", files=64)
def webp_cut_off(draw: Random, honest: Honest) -> bytes:
    data = drawn(draw, "WEBP", lossless=draw.random() < 0.5)
    return among(honest, draw, data[: draw.randrange(len(data) - 8)])


@kind("data", "image_unreadable", TAKEN, files=80)
def picture_with_bytes_changed(draw: Random, honest: Honest) -> bytes:
    data = bytearray(drawn(draw, draw.choice(_READ)))
    for _ in range(draw.randrange(1, 8)):
        place = draw.randrange(min(len(data), draw.choice([40, 300, len(data)])))
        data[place : place + draw.choice([0, 1, 1, 1, 4])] = draw.randbytes(draw.choice([0, 1, 1, 1, 4]))
    return among(honest, draw, bytes(data))


# --- headers ---------------------------------------------------------------------------------------------------------


@kind("data", "image_unreadable", TAKEN, files=30)  # rows that a sound stream does not have stay black
def png_header_that_lies(draw: Random, honest: Honest) -> bytes:
    fields = [24, 24, 8, 2, 0, 0, 0]
    field, lies = draw.choice(
        [(0, [0, 25, 2**31 - 1, 2**32 - 1]), (1, [0, 500, 2**31 - 1]), (2, [0, 3, 7, 255]), (3, [1, 5, 7, 255])]
    )
    fields[field] = draw.choice(lies)
    return among(honest, draw, _PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", *fields)) + drawn(draw, "PNG")[33:])


@kind("data", "image_unreadable", files=20)
def png_chunk_that_lies(draw: Random, honest: Honest) -> bytes:
    length = struct.pack(">I", draw.choice([2**31, 2**32 - 1, 10**6]))
    odd = draw.choice([length + b"tEXt" + b"x" * 50, length + b"IDAT" + bytes(50), b"\0\0\0\4\x1b[2Jabcd\0\0\0\0"])
    return among(honest, draw, with_chunk(drawn(draw, "PNG"), odd))


@kind("data", "image_unreadable", TAKEN, files=20)
def jpeg_header_that_lies(draw: Random, honest: Honest) -> bytes:
    data = bytearray(drawn(draw, "JPEG"))
    frame = data.index(b"\xff\xc0")
    place, size = draw.choice([(2, 2), (5, 2), (7, 2), (9, 1)])  # length, height, width, components
    lie = {2: [0, 1, 7], 5: [60_000, 65_500], 7: [60_000, 65_500], 9: [0, 2, 5, 255]}[place]
    data[frame + place : frame + place + size] = draw.choice(lie).to_bytes(size, "big")
    return among(honest, draw, bytes(data))


@kind("data", "image_unreadable", files=16)
def webp_header_that_lies(draw: Random, honest: Honest) -> bytes:
    data = bytearray(drawn(draw, "WEBP", lossless=True))
    data[21:25] = (draw.randrange(16_000, 16_384) * 16_385).to_bytes(
        4, "little"
    )  # width and height less one, 14 bits each
    return among(honest, draw, bytes(data))


@kind("data", TAKEN, "image_unreadable", files=16)
def exif_of_nonsense(draw: Random, honest: Honest) -> bytes:
    head = draw.choice(
        [b"Exif\0\0II*\0", b"Exif\0\0MM\0*", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0II*\0"]
    )
    body = draw.choice([struct.pack("<I", draw.randrange(2**32)), b"\x08\0\0\0\xff\xff", b""])
    exif = head + body + draw.randbytes(draw.randrange(2000))
    data = drawn(draw, "JPEG")
    marker = b"\xff" + draw.choice([b"\xe1", b"\xe2", b"\xed"])
    return among(honest, draw, data[:2] + marker + struct.pack(">H", len(exif) + 2) + exif + data[2:])


# --- bombs -----------------------------------------------------------------------------------------------------------


@kind("data", "image_unreadable", files=6)
def picture_of_hundreds_of_millions_of_pixels(draw: Random, honest: Honest) -> bytes:
    mode = draw.choice(["1", "L", "P"])
    width, height = draw.choice([(20_000, 20_000), (12_000, 12_000), (65_000, 3000)])
    return among(honest, draw, flat(mode, width, height, "PNG"))


@kind("data", TAKEN, files=9)
def picture_as_large_as_is_read(draw: Random, honest: Honest) -> bytes:
    format = draw.choice(_READ)
    modes = {"PNG": ["RGB", "RGBA", "LA", "P", "1"], "JPEG": ["RGB", "L", "CMYK"], "WEBP": ["RGB", "RGBA"]}
    return among(honest, draw, flat(draw.choice(modes[format]), 4990, 2000 if format == "WEBP" else 4000, format))


@kind("data", "data_too_large", files=3)
def hundreds_of_large_pictures_in_few_bytes(draw: Random, honest: Honest) -> bytes:
    large = flat("1", 4990, 4000, "PNG")
    return zipped(honest.images | {f"0/large{number}.png": large for number in range(draw.randrange(100, 400))}, 8)


@kind("data", "data_too_large", files=4)
def jpeg_of_thousands_of_scans(draw: Random, honest: Honest) -> bytes:
    data = progressive()
    last = data[data.rindex(b"\xff\xda") : -2]
    return among(honest, draw, data[:-2] + last * draw.randrange(1000, 10_000) + data[-2:])


@cache
def progressive() -> bytes:
    """A large progressive JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (4990, 4000)).save(buffer, "JPEG", progressive=True, quality=50)
    return buffer.getvalue()


@kind("data", TAKEN, "image_unreadable", "archive_too_large", files=12)
def png_text_or_profile_that_inflates(draw: Random, honest: Honest) -> bytes:
    bomb = _inflating(draw.choice([2**20, 2**24, 2**28]))
    extra = draw.choice(
        [chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), chunk(b"iCCP", b"a\0\0" + bomb)]
    )
    return among(honest, draw, with_chunk(drawn(draw, "PNG"), extra * draw.randrange(1, 80)))


@cache
def _inflating(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


@kind("data", TAKEN, "image_unreadable", files=4)
def animation_of_thousands_of_frames(draw: Random, honest: Honest) -> bytes:
    frames = [Image.new("RGB", (64, 64), (number % 256, 0, 0)) for number in range(draw.randrange(200, 500))]
    buffer = io.BytesIO()
    frames[0].save(buffer, draw.choice(["WEBP", "PNG"]), save_all=True, append_images=frames[1:])
    return among(honest, draw, buffer.getvalue())


# --- other formats ---------------------------------------------------------------------------------------------------


@kind("data", "image_unreadable", files=18)
def picture_of_a_format_that_is_not_read(draw: Random, honest: Honest) -> bytes:
    format = draw.choice(["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "EPS", "PDF"])
    return among(honest, draw, drawn(draw, format))


@kind("data", "image_unreadable", files=24)
def malformed_tiff(draw: Random, honest: Honest) -> bytes:
    buffer = bytearray(drawn(draw, "TIFF", compression=draw.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"])))
    for _ in range(draw.randrange(1, 8)):
        buffer[draw.randrange(4, len(buffer))] = draw.randrange(256)
    return among(honest, draw, bytes(buffer))


@kind("data", "image_unreadable", files=18)
def text_or_code_instead_of_a_picture(draw: Random, honest: Honest) -> bytes:
    flag = str(honest.flag).encode()
    texts = [
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%mkdir " + flag + b") (w) file\n",
        b'push graphic-context\nfill \'url(https://localhost/"|mkdir "' + flag + b")'\n",
        b"#!/bin/sh\nmkdir " + flag,
        b"",
        b"\0" * draw.randrange(1, 5000),
        draw.randbytes(draw.randrange(1, 5000)),
    ]
    return among(honest, draw, draw.choice(texts))


@kind("data", "image_unreadable", files=4)
def sixteen_bits_of_grey(draw: Random, honest: Honest) -> bytes:
    buffer = io.BytesIO()
    Image.new("I;16", (24, 24), draw.randrange(2**16)).save(buffer, "PNG")
    return among(honest, draw, buffer.getvalue())


@kind("data", TAKEN, files=12)
def sound_picture_with_another_file_behind(draw: Random, honest: Honest) -> bytes:
    tails = [zipped({"../x": b"x"}), b"<script>alert(1)</script>", b"\x7fELF" + draw.randbytes(100), b"%PDF-1.7\n"]
    return among(honest, draw, drawn(draw, draw.choice(["PNG", "JPEG"])) + draw.choice(tails))
