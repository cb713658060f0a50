"""What a decoded picture is: transparency, palettes, orientation, bits; V6 of the reports."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL import ImageDraw

from jaxpmi.config import DataConfig
from jaxpmi.data import archive
from jaxpmi.data import decoding
from jaxpmi.data import open_source


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def decoded(image, channels=3, image_format="PNG", ground=255, **options):
    data = encoded(image, image_format, **options)
    return decoding.decode_image(data, channels, None, "it", ground)


def palette_image():
    """Two pixels, of the colours 0 (black) and 1."""
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ground", [255, 0, 7])
def test_transparent_pixels_show_the_ground(mode, ground):
    image = Image.new(mode, (2, 2), 0)
    for channels in (1, 3):
        assert set(decoded(image, channels, ground=ground).ravel()) == {ground}


def test_what_is_partly_transparent_is_blended():
    assert decoded(Image.new("LA", (1, 1), (0, 128)), 1).item() == 127
    assert decoded(Image.new("RGBA", (1, 1), (255, 0, 0, 51))).tolist() == [[[255, 204, 204]]]
    assert decoded(Image.new("RGBA", (1, 1), (9, 8, 7, 255))).tolist() == [[[9, 8, 7]]]


@pytest.mark.parametrize(("image_format", "alpha"), [("PNG", 0), ("GIF", 0), ("PNG", b"\x80\xff")])
def test_palettes_with_transparency(image_format, alpha):
    pixels = decoded(palette_image(), image_format=image_format, transparency=alpha)
    first = 127 if isinstance(alpha, bytes) else 255
    assert pixels.tolist() == [[[first] * 3, [10, 20, 30]]]


def test_one_transparent_colour():
    grey = Image.fromarray(np.array([[5, 9]], np.uint8))
    assert decoded(grey, 1, transparency=5).ravel().tolist() == [255, 9]
    colours = Image.fromarray(np.array([[[5, 6, 7], [9, 9, 9]]], np.uint8))
    assert decoded(colours, transparency=(5, 6, 7)).tolist() == [[[255] * 3, [9] * 3]]


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (Image.new("1", (1, 1)), 1),
        (Image.new("L", (1, 1)), 1),
        (Image.new("LA", (1, 1)), 1),
        (Image.new("P", (1, 1)), 3),
        (Image.new("RGBA", (1, 1)), 3),
        (Image.new("CMYK", (1, 1)), 3),
    ],
)
def test_channels(image, channels):
    image_format = "JPEG" if image.mode == "CMYK" else "PNG"
    opened = decoding.open_image(encoded(image, image_format), "it")
    assert decoding.read_header(opened, "it").channels == channels


def test_cmyk_becomes_rgb():
    assert decoded(Image.new("CMYK", (1, 1), (0, 0, 0, 0)), image_format="JPEG").min() > 250


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_pictures_stand_upright(image_format, turned):
    """The upper left quarter of what a viewer shows is white, wherever it is stored."""
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[turned]
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = turned
    options = {"lossless": True} if image_format == "WEBP" else {}
    image = Image.fromarray(np.repeat(stored[..., None], 3, 2))
    data = encoded(image, image_format, exif=exif, **options)
    header = decoding.read_header(decoding.open_image(data, "it"), "it")
    pixels = decoding.decode_image(data, 1, None, "it")[..., 0]
    assert header.size == pixels.shape == (16, 32)
    np.testing.assert_array_equal(pixels > 127, upright > 127)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.full((2, 2), 40000, np.uint16)),
        Image.fromarray(np.full((2, 2), 70000, np.int32)),
        Image.fromarray(np.full((2, 2), 0.5, np.float32)),
    ],
    ids=lambda image: image.mode,
)
def test_more_than_eight_bits_are_refused(image):
    with pytest.raises(ValueError, match="^it has more than 8 bits per pixel .mode [IF].*; conv"):
        decoded(image, 1, "TIFF")


def test_of_sixteen_bit_colours_the_upper_half_is_read():
    """Not clipped: 0x12ff is 0x12."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    for kind, values, want in (
        (2, (0x12FF, 0x8000, 0xFFFF), [0x12, 0x80, 255]),
        (4, (0, 0), [255]),
    ):
        header = struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0)
        pixels = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        data += chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        assert decoding.decode_image(data, len(want), None, "it").ravel().tolist() == want


def save_icons(root):
    """V6: black shapes on nothing, whose colour is black there as well."""
    for name, draw in (("circle", "ellipse"), ("square", "rectangle")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGBA", (8, 8))
            getattr(ImageDraw.Draw(image), draw)([1, 1, 6, 6], fill=(0, 0, 0, 255))
            image.save(root / name / f"{i}.png")


def test_black_icons_are_seen(tmp_path):
    save_icons(tmp_path)
    config = DataConfig(source="folder", path=str(tmp_path))
    for ground, wanted in ((255, {0, 255}), (0, {0}), (9, {0, 9})):
        source = open_source(DataConfig(source="folder", path=str(tmp_path), ground=ground))
        assert set(source.read("train", np.arange(6)).ravel()) == wanted
    assert config.ground == 255


def plain(data):
    image = Image.open(io.BytesIO(data))
    return image.mode in ("L", "RGB") and "transparency" not in image.info


@pytest.mark.parametrize("prepared", [archive.png_or_jpeg, archive.rgb_jpeg])
def test_what_is_prepared_is_decoded_alike_by_any_reader(prepared):
    """Readers of the stock layout know neither of a ground nor of palettes."""
    icon = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    grey = Image.fromarray(np.full((8, 8), 5, np.uint8))
    for data in (encoded(icon), encoded(palette_image()), encoded(grey, transparency=5)):
        again = prepared(data, "it")
        assert plain(again)
        want = decoding.decode_image(data, 3, None, "it")
        assert np.abs(decoding.decode_image(again, 3, None, "it") - want.astype(int)).max() < 4


def test_a_turned_photograph_is_prepared_upright():
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(archive.png_or_jpeg(data, "it"))).size == (4, 8)
    straight = encoded(Image.new("RGB", (8, 4)), "JPEG")
    assert archive.png_or_jpeg(straight, "it") is straight
