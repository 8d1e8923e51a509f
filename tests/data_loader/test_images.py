"""Reading image files, compared with the arrays they were made of."""

import os

import numpy as np
import pytest
from PIL import Image

from data_loader.images import BadImage, image_suffixes, read_image

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 17, 3)).astype(np.uint8)
GREY = COLOUR[:, :, 0]


def read(image, path, channels=3, **options):
    image.save(path, **options)
    return read_image(path, channels).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.tga", "画像 ①.png"]
)
def test_lossless_formats(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(read(Image.fromarray(COLOUR), tmp_path / name, **options), COLOUR)


def test_grey_from_colour_equals_pillow_and_colour_from_grey_has_equal_channels(tmp_path):
    grey = read(Image.fromarray(COLOUR), tmp_path / "a.png", channels=1)
    assert np.array_equal(grey[:, :, 0], np.asarray(Image.fromarray(COLOUR).convert("L")))
    assert np.array_equal(
        read(Image.fromarray(GREY), tmp_path / "b.png"), np.stack([GREY] * 3, axis=2)
    )
    assert np.array_equal(
        read(Image.fromarray(GREY > 99), tmp_path / "c.png", channels=1)[:, :, 0], (GREY > 99) * 255
    )


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_their_full_range(tmp_path, name, channels):
    deep = np.linspace(0, 65_535, 12 * 17).astype(np.uint16).reshape(12, 17)
    assert Image.fromarray(deep).mode == "I;16"
    shown = read(Image.fromarray(deep), tmp_path / name, channels)
    assert shown.shape == (12, 17, channels)
    assert np.abs(shown[:, :, 0] - deep / 257).max() <= 0.5


def test_32_bits_and_floats(tmp_path):
    whole = np.linspace(0, 2**31 - 1, 12 * 17).astype(np.int32).reshape(12, 17)
    assert (
        np.abs(
            read(Image.fromarray(whole), tmp_path / "a.tif", 1)[:, :, 0] - whole / (2**31 - 1) * 255
        ).max()
        <= 0.51
    )
    shares = (GREY / 255).astype(np.float32)
    assert np.array_equal(read(Image.fromarray(shares), tmp_path / "b.tif", 1)[:, :, 0], GREY)
    assert np.array_equal(
        read(Image.fromarray(GREY.astype(np.float32)), tmp_path / "c.tif", 1)[:, :, 0], GREY
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk(tmp_path, channels):
    # without black ink, red is what cyan leaves, and so on
    image = Image.fromarray(np.dstack([255 - COLOUR, np.zeros_like(GREY)]), "CMYK")
    expected = (
        np.asarray(Image.fromarray(COLOUR).convert("L"))[:, :, None] if channels == 1 else COLOUR
    )
    assert np.abs(read(image, tmp_path / "a.tif", channels).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path, mode):
    solid = np.zeros((12, 17), dtype=bool)
    solid[3:, 4:] = True
    expected = np.where(solid[:, :, None], 40, 255) * np.ones(3)
    image = Image.fromarray(np.full((12, 17), 40, np.uint8))
    if mode == "P":
        image = Image.fromarray(solid.astype(np.uint8), "P")
        image.putpalette([9, 9, 9, 40, 40, 40])
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
        image.putalpha(Image.fromarray(solid.astype(np.uint8) * 255))
    assert np.array_equal(read(image, tmp_path / "a.png"), expected)


def test_palette_without_transparency(tmp_path):
    image = Image.fromarray(GREY // 64, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    assert np.array_equal(read(image, tmp_path / "a.png"), palette[GREY // 64])


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    assert np.array_equal(
        read(Image.fromarray(COLOUR), tmp_path / "a.png", exif=exif), np.rot90(COLOUR, -1)
    )


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (17, 12), colour) for colour in ("red", "lime", "blue")]
    shown = read(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(shown, np.full((12, 17, 3), (255, 0, 0)))


def damaged(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".gif"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_files_are_named(tmp_path, suffix, share):
    noise = np.random.default_rng(1).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    with pytest.raises(BadImage, match=rf"cut\{suffix}: is truncated"):
        read_image(damaged(tmp_path / f"cut{suffix}", data[: int(len(data) * share)]), 3)


def test_reasons_why_a_file_is_bad(tmp_path):
    for path, message in (
        (damaged(tmp_path / "a.jpg", b""), "is empty"),
        (damaged(tmp_path / "b.jpg", b"I am a text."), "is not an image"),
        (damaged(tmp_path / "d.png", b"\x89PNG\r\n\x1a\n" + bytes(50)), "d.png: "),
        (tmp_path / "c.jpg", "no such file"),
        (tmp_path, "cannot be decoded"),
    ):
        with pytest.raises(BadImage, match=message) as caught:
            read_image(path, 3)
        assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_too_large_images_are_rejected_by_their_header(tmp_path, monkeypatch):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="too large to be decoded: 400000000 pixels"):
        read_image(tmp_path / "a.png", 3)


def test_files_without_permission(tmp_path, monkeypatch):
    path = damaged(tmp_path / "a.png", b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything: raise the error instead of the system

        def refuse(*args):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadImage, match="permission denied"):
        read_image(path, 3)


def test_image_suffixes():
    assert {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".gif", ".webp"} <= image_suffixes()
    assert not {".txt", ".db", ".pdf", ""} & image_suffixes()
