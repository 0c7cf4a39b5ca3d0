"""Images: the pixels of transformers' load_image, and a name for everything that is not one."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from glmc.errors import MediaError, UsageError
from glmc.runtime.media import image as media
from glmc.runtime.media.image import MAX_PIXELS, image_header, read_image

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8))
RGBA = Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 47, 4), dtype=np.uint8))
TURNED = RGB.rotate(90, expand=False)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def animated(image: Image.Image, form: str) -> bytes:
    return encoded(image, form, save_all=True, append_images=[image.rotate(90)])


FILES = {
    "png": encoded(RGB, "PNG"), "jpeg": encoded(RGB, "JPEG"), "webp": encoded(RGB, "WEBP"), "bmp": encoded(RGB, "BMP"),
    "gif": encoded(RGB, "GIF"), "tiff": encoded(RGB, "TIFF"), "ppm": encoded(RGB, "PPM"),
    "grey": encoded(RGB.convert("L"), "PNG"), "bilevel": encoded(RGB.convert("1"), "PNG"),
    "grey with alpha": encoded(RGB.convert("LA"), "PNG"), "cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "palette": encoded(RGB.quantize(16), "PNG"), "ycbcr": encoded(RGB.convert("YCbCr"), "TIFF"),
    "palette with transparency": encoded(RGB.quantize(16), "PNG", transparency=3),
    "grey with a transparent value": encoded(RGB.convert("L"), "PNG", transparency=7),
    "rgba png": encoded(RGBA, "PNG"), "rgba webp": encoded(RGBA, "WEBP", lossless=True), "rgba tiff": encoded(RGBA, "TIFF"),
    "animated gif": animated(RGB, "GIF"), "animated png": animated(RGB, "PNG"), "animated webp": animated(RGBA, "WEBP"),
    "two pages": animated(RGB, "TIFF"), "two views": animated(RGB, "MPO"),
    "1 x 4000": encoded(Image.new("RGB", (1, 4000), (9, 8, 7)), "PNG"), "200:1": encoded(Image.new("L", (4000, 20)), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_are_those_of_transformers(name):
    found, want = read_image(FILES[name]), np.array(load_image(Image.open(io.BytesIO(FILES[name]))))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), want)
    header = image_header(FILES[name])
    assert (header.height, header.width) == want.shape[:2]


@pytest.mark.parametrize(("name", "word"), [
    ("animated gif", "several frames"), ("animated png", "several frames"), ("animated webp", "several frames"),
    ("two pages", "several frames"), ("rgba png", "transparency"), ("palette with transparency", "transparency"),
    ("grey with alpha", "transparency"), ("grey with a transparent value", "transparency"),
])
def test_what_is_left_out_is_said(name, word):
    assert any(word in note for note in image_header(FILES[name]).notes)


@pytest.mark.parametrize("name", ["png", "jpeg", "cmyk", "grey", "gif"])
def test_nothing_is_said_where_nothing_is_left_out(name):
    assert not image_header(FILES[name]).notes


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_exif_says(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, form, exif=exif)
    found, header = read_image(data), image_header(data)
    assert np.array_equal(found.numpy(), np.array(load_image(Image.open(io.BytesIO(data)))))
    assert (header.height, header.width) == tuple(found.shape[:2])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_high_byte(form):
    values = np.array([[0, 255, 256, 1000, 32768, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), form)
    assert read_image(data).tolist() == [[[v >> 8] * 3 for v in values[0].tolist()]]
    assert any("16 bits" in note for note in image_header(data).notes)


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "bytearray", "memoryview", "pil", "array", "tensor"])
def test_every_kind_of_source_gives_the_same(kind, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(FILES["png"])
    source = {
        "path": path, "text": str(path), "bytes": FILES["png"], "bytearray": bytearray(FILES["png"]),
        "memoryview": memoryview(FILES["png"]), "pil": RGB, "array": np.array(RGB), "tensor": torch.from_numpy(np.array(RGB)),
    }[kind]
    assert np.array_equal(read_image(source).numpy(), np.array(RGB))
    assert (image_header(source).height, image_header(source).width) == (31, 47)


def test_an_array_that_runs_backwards_or_is_read_only_is_copied():
    array = np.array(RGB)
    array.flags.writeable = False
    assert np.array_equal(read_image(array[::-1, ::-1]).numpy(), array[::-1, ::-1])
    read_image(array)[:] = 0
    assert array.any()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


BAD = {
    "nothing": (b"", "empty"), "text": (b"hello, I am a letter", "not an image"), "svg": (b"<svg/>", "not an image"),
    "half a signature": (FILES["png"][:5], "not an image"), "a cut header": (FILES["png"][:20], "header"),
    "cut png": (FILES["png"][:600], "broken"), "cut jpeg": (FILES["jpeg"][:700], "broken"),
    "cut gif": (FILES["gif"][:1200], "broken"), "cut webp": (FILES["webp"][:200], "broken"),
    "cut tiff": (FILES["tiff"][:-4000], "broken|header|not an image"),
    "no pixels": (png(4, 4, b""), "broken"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "floats": (encoded(Image.new("F", (4, 4)), "TIFF"), "RGB"),
    "an address": ("https://example.org/x.png", "not fetched"),
    "a data address": ("data:image/png;base64,AAAA", "not fetched"),
    "no name": ("", "not a path"), "a zero": ("x\0.png", "not a path"),
    "nobody's name": ("no-such-file.png", "cannot be opened"),
    "a number": (7, "not an image"), "none": (None, "not an image"), "a list": ([RGB], "not an image"),
    "grey array": (np.zeros((4, 4), np.uint8), "RGB"), "four channels": (np.zeros((4, 4, 4), np.uint8), "RGB"),
    "channels first": (np.zeros((3, 4, 5), np.uint8), "RGB"), "floats array": (torch.zeros(4, 4, 3), "RGB"),
    "no rows": (np.zeros((0, 4, 3), np.uint8), "RGB"), "empty pil": (Image.new("RGB", (0, 4)), "no pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_named(name):
    source, word = BAD[name]
    with pytest.raises(MediaError, match=word) as caught:
        read_image(source)
    assert (caught.value.code, caught.value.exit) == ("media", 2)


def test_a_folder_a_pipe_and_an_empty_file_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.png").touch()
    for name in ("", "pipe", "empty.png"):
        with pytest.raises(MediaError):
            read_image(tmp_path / name)


@pytest.mark.parametrize("most", [None, 89_478_485, 100])
def test_a_picture_that_is_too_large_is_refused_from_its_header(monkeypatch, most):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)  # whatever the application has set, and it stays so
    for read in (read_image, image_header):
        with pytest.raises(MediaError, match="too large"):
            read(png(MAX_PIXELS // 1000 + 1, 1000))
    assert most == Image.MAX_IMAGE_PIXELS


def test_the_largest_picture_passes_the_header_without_a_warning(recwarn):
    assert image_header(png(MAX_PIXELS // 1000, 1000)).width == MAX_PIXELS // 1000
    assert not recwarn.list


def test_a_bomb_takes_no_memory(tmp_path):
    """A process that may take 300 MB more than it has refuses pictures of gigabytes."""
    (tmp_path / "x.png").write_bytes(png(60000, 60000, bytes(1 << 20)))
    webp = bytearray(encoded(Image.new("RGB", (16383, 1)), "WEBP", lossless=True))
    webp[21:25] = ((16383 - 1) | (16383 - 1) << 14).to_bytes(4, "little")  # a lossless stream's own width and height
    (tmp_path / "x.webp").write_bytes(webp)
    script = (
        "import resource, sys\nfrom glmc.errors import MediaError\nfrom glmc.runtime.media.image import read_image\n"
        "import PIL.Image; PIL.Image.init()\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000, -1))\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        read_image(name)\n    except MediaError as fault:\n        print('too large' in str(fault))\n")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, tmp_path / "x.png", tmp_path / "x.webp"],
                          capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.split() == ["True", "True"], done


def test_pixels_pass_through_python_a_strip_at_a_time():
    data = encoded(Image.new("RGB", (3000, 2000)), "PNG")
    read_image(data)
    tracemalloc.start()
    read_image(data)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * media._STRIP * 3 + (1 << 20)  # what torch and Pillow hold is not traced


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"glmc\[image\]"):
        read_image(FILES["png"])
    assert read_image(np.array(RGB)).shape == (31, 47, 3)
