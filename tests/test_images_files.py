"""Image files of many kinds, each read as what it shows."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from data.base.errors import UserError
from data.images import datasets, files, fitting, shapes, specs
from data.images.files import Options

CIFAR, DIGITS, EMNIST = (specs.SPECS[name] for name in ("cifar10", "digits", "emnist"))


def grey(source, spec):
    return files.read(source, spec, Options(invert="no")).pixels[..., 0]


def _noise(size, mode="RGB", seed=0):
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if channels > 1 else None)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "ppm"])
def test_an_image_of_the_right_size_is_taken_as_it_is(kind, tmp_path):
    image = _noise((32, 32))
    file = tmp_path / f"image.{kind}"
    image.save(file, **({"lossless": True} if kind == "webp" else {}))
    found = files.read(str(file), CIFAR).pixels
    assert np.array_equal(found, np.asarray(image))


def test_other_sizes_are_cut_to_the_middle_square_and_averaged(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)  # the middle 16 columns are halves of 10 and 250
    pixels[:, 8:16], pixels[:, 16:24], pixels[:, 24:] = 10, 250, 99
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = grey(str(tmp_path / "a.png"), DIGITS)
    assert found.shape == (8, 8)
    assert (found[:, :4] == 10).all()
    assert (found[:, 4:] == 250).all()


def test_modes_of_other_kinds(tmp_path):
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    clear = np.full((8, 8, 4), 200, np.uint8)
    clear[:4, :, 3], clear[4:, :, 3] = 0, 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    _noise((8, 8), "RGB").quantize(16).save(tmp_path / "palette.gif")
    Image.fromarray(np.eye(8) > 0).save(tmp_path / "bits.png")
    names = [str(tmp_path / f) for f in ("deep.png", "clear.png", "palette.gif", "bits.png")]
    no = Options(invert="no")
    found = [files.read(name, DIGITS, no).pixels[..., 0] for name in names]
    assert np.array_equal(found[0], np.rint(deep / 257))
    assert (found[1][:4] == 255).all()  # transparent, on white
    assert (found[1][4:] == 200).all()
    assert np.array_equal(found[3], np.eye(8, dtype=np.uint8) * 255)


def test_the_cameras_note_of_how_it_was_held_is_followed(tmp_path):
    image = _noise((8, 8), "L")
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    image.save(tmp_path / "a.png", exif=exif)
    found = grey(str(tmp_path / "a.png"), DIGITS)
    assert np.array_equal(found, np.asarray(image)[::-1, ::-1])


def test_emnist_images_are_turned_as_the_dataset_has_them(tmp_path):
    image = _noise((28, 28), "L")
    image.save(tmp_path / "a.png")
    upright = np.asarray(image)
    for stored, expected in ((False, upright.T), (True, upright)):
        found = files.read(tmp_path / "a.png", EMNIST, Options("no", as_stored=stored))
        assert np.array_equal(found.pixels[..., 0], expected)
        assert found.turned == (not stored)


def test_folders_and_standard_input(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.png"):
        _noise((8, 8), "L").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = files.files([str(tmp_path), "-"])
    assert found == [str(tmp_path / f) for f in ("a.jpg", "b.png", "sub/c.png")] + ["-"]
    buffer = io.BytesIO()
    _noise((8, 8), "L").save(buffer, "png")
    stdin = type("Stdin", (), {"buffer": io.BytesIO(buffer.getvalue())})
    monkeypatch.setattr("sys.stdin", stdin)
    assert files.read("-", DIGITS).pixels.shape == (8, 8, 1)


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    _noise((64, 64)).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()[:3000]
    (tmp_path / "cut.png").write_bytes(cut)
    for names, match in (
        (["missing.png"], "neither"),
        ([str(tmp_path / "empty")], "holds no image"),
        (["-", "-"], "only once"),
    ):
        with pytest.raises(UserError, match=match):
            files.files(names)
    for name, match in (("text.png", "not an image"), ("cut.png", "cannot be read")):
        with pytest.raises(UserError, match=match) as caught:
            files.read(str(tmp_path / name), CIFAR)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    _noise((64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="more pixels"):
        files.read(str(tmp_path / "a.png"), CIFAR)


# --- forms of one image: dark ink, more bits, other ranges


def digit():
    """A digit, uint8 [8, 8], light on dark, with values from 0 to 255."""
    return np.asarray(datasets.load("digits").test.images[3, :, :, 0])


def png(values, bits=16, clear=()):
    """A PNG with so many bits a channel, uint16 [h, w, channels]; Pillow writes only grey.

    `clear`: the value of each channel that stands for a transparent pixel.
    """

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    if clear:
        head += chunk(b"tRNS", struct.pack(f">{channels}H", *clear))
    single = values.reshape(height, -1, 1) >> np.arange(bits)[::-1] & 1
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in single)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values, order="<", photometric=None, maximum=None):
    """A TIFF without compression, [h, w, channels] of any type of number, in either byte order."""
    height, width, channels = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    if photometric is None:
        photometric = 2 if channels > 1 else 1
    wide = channels * [8 * values.dtype.itemsize]
    tags = {
        256: [width],
        257: [height],
        258: wide,
        259: [1],
        262: [photometric],
        273: [0],
        277: [channels],
        278: [height],
        279: [len(data)],
        **({281: [maximum] * channels} if maximum else {}),
        339: [sample] * channels,
    }
    begin = 8 + 2 + 12 * len(tags) + 4
    more = b"".join(struct.pack(f"{order}{len(v)}H", *v) for v in tags.values() if len(v) > 2)
    tags[273] = [begin + len(more)]
    entries, at = b"", begin
    for tag, value in tags.items():
        kind, code = (4, "I") if tag in (273, 279) else (3, "H")
        content = struct.pack(f"{order}{len(value)}{code}", *value)
        if len(content) > 4:
            content, at = struct.pack(f"{order}I", at), at + len(content)
        entries += struct.pack(f"{order}HHI", tag, kind, len(value)) + content.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more + data


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_long_text(image, kind):
    about = PngImagePlugin.PngInfo()
    about.add_text("note", "x" * 2**21, zip=kind == "zip")
    content = saved(image, pnginfo=about)
    if kind == "many":  # 65 MiB in all
        about = PngImagePlugin.PngInfo()
        for number in range(70):
            about.add_text(f"note{number}", "x" * 2**20)
        content = saved(image, pnginfo=about)
    return content


def forms(a):
    """Bad forms of a digit by name: all hold exactly its pixels."""
    deep = np.rint(a[..., None] * (4095 / 255)).astype(np.uint16)
    opaque, ink = np.full_like(deep, 4095), np.zeros_like(deep)
    white, nothing = np.full_like(a, 255), np.zeros_like(a)
    grey8 = a[..., None]
    palette = Image.new("P", a.shape)
    palette.putpalette([0, 0, 0] * 256)
    palette.putdata(a.ravel().tolist())
    result = {
        "black ink on transparent, LA": saved(Image.fromarray(np.dstack([nothing, a]))),
        "black ink on transparent, RGBA": saved(Image.fromarray(np.dstack([nothing] * 3 + [a]))),
        "white ink on transparent": saved(Image.fromarray(np.dstack([white, a]))),
        "black ink in a palette": saved(palette, transparency=bytes(range(256))),
        "dark on white": saved(Image.fromarray(255 - a)),
        "12 bits in 16": saved(Image.fromarray(deep[..., 0])),
        "12 bits in 16, colour": png(deep.repeat(3, -1)),
        "12 bits in 16, LA": png(np.dstack([deep, opaque])),
        "12 bits in 16, RGBA": png(np.dstack([deep] * 3 + [opaque])),
        "12 bits in 16, black ink": png(np.dstack([ink] * 3 + [deep])),
        "PGM of 12 bits": b"P5 8 8 4095\n" + deep.astype(">u2").tobytes(),
        "PFM": b"Pf 8 8 -1\n" + (a[::-1] / 255).astype("<f4").tobytes(),
        "long text": with_long_text(Image.fromarray(a), "plain"),
        "long zipped text": with_long_text(Image.fromarray(a), "zip"),
    }
    for order in "<>":
        result |= {
            f"TIFF of 16 bits to 255 {order}": tiff(grey8.astype(np.uint16), order),
            f"TIFF of signed 16 bits to 255 {order}": tiff(grey8.astype(np.int16), order),
            f"TIFF of signed 32 bits to 255 {order}": tiff(grey8.astype(np.int32), order),
            f"TIFF of 12 bits {order}": tiff(deep, order),
            f"TIFF of 12 bits, colour {order}": tiff(deep.repeat(3, -1), order),
            f"TIFF of floats to 1 {order}": tiff((grey8 / 255).astype(np.float32), order),
            f"TIFF of floats to 255 {order}": tiff(grey8.astype(np.float32), order),
        }
    whole = grey8.astype(np.uint64) * (2**32 - 1) // 255
    return result | {
        "TIFF of 32 bits to 255": tiff(grey8.astype(np.uint32)),
        "TIFF of 32 bits": tiff(whole.astype(np.uint32)),
        "TIFF, white is 0": tiff(4095 - deep, photometric=0),
    }


@pytest.mark.parametrize("name", forms(np.eye(8, dtype=np.uint8)))
def test_every_form_of_an_image_gives_its_pixels(name, tmp_path):
    a = digit()
    file = tmp_path / "image"
    file.write_bytes(forms(a)[name])
    found = files.read(file, DIGITS)
    assert np.array_equal(found.pixels[..., 0], a)
    if "12 bits" in name and "PGM" not in name:
        origin = "opacity" if "black ink" in name else "values"
        assert (found.range.high, found.range.origin) == (4095, origin)
        assert "by its values, 4095 is white" in fitting.notes(found)
    assert found.inverted == ("black ink" in name or "dark" in name)
    assert ("inverted, its border is light" in fitting.notes(found)) == found.inverted


@pytest.mark.parametrize(
    ("bits", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)]
)
def test_the_value_that_a_png_makes_transparent_is_white_behind_others(bits, channels, tmp_path):
    """One pixel has it; with 16 bits another has nearly, but for the lower byte."""
    most = 2**bits - 1
    values = np.zeros((8, 8, channels), np.uint16)
    values[0, 1] = most
    clear = [most] * channels
    if bits > 1:
        clear[-1] = values[0, 0, -1] = most - 1
        values[0, 0, :-1] = most
    else:
        values[0, 0] = most
    file = tmp_path / "image.png"
    file.write_bytes(png(values, bits, clear))
    spec = shapes.plain_spec("d", (8, 8, channels), ("a", "b"))
    found = files.read(file, spec)
    expected = np.rint(values * (255 / most))
    expected[values[..., -1] == clear[-1]] = 255
    assert found.ground == "white"
    assert np.array_equal(found.pixels, expected)


def test_the_range_that_a_file_states_is_taken(tmp_path):
    """Of a dark image: the values alone would make it lighter."""
    dark = (digit()[..., None] // 2).astype(np.uint16)
    expected = np.rint(dark[..., 0] * (255 / 1000))
    file = tmp_path / "image"
    for content in (tiff(dark, maximum=1000), b"P5 8 8 1000\n" + dark.astype(">u2").tobytes()):
        file.write_bytes(content)
        found = files.read(file, DIGITS)
        assert np.abs(found.pixels[..., 0] - expected).max() <= 1  # Pillow rounds to 16 bits first
        assert found.range.origin == "file"
        assert fitting.about(found)["range_from"] == "file"
        assert fitting.notes(found) == []


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.linspace(-1, 1, 64, dtype=np.float32), "from -1 to 1, and below 0"),
        (np.arange(-32, 32).astype(np.int16), "from -32 to 31, and below 0"),
        (np.full(64, np.nan, np.float32), "no numbers"),
        (np.full(64, np.inf, np.float32), "no numbers"),
        (np.linspace(0, 1, 64), "kind of TIFF that is not read"),
    ],
)
def test_values_that_say_nothing_are_refused(values, match, tmp_path):
    file = tmp_path / "image.tif"
    file.write_bytes(tiff(values.reshape(8, 8, 1)))
    with pytest.raises(UserError, match=match):
        files.read(file, DIGITS)


def test_floats_that_overshoot_a_little_are_of_0_to_1(tmp_path):
    file = tmp_path / "image.tif"
    file.write_bytes(tiff(np.linspace(-0.05, 1.05, 64, dtype=np.float32).reshape(8, 8, 1)))
    found = files.read(file, DIGITS, Options("no"))
    assert found.range.high == 1
    assert (found.pixels.min(), found.pixels.max()) == (0, 255)


# --- polarity


def test_auto_inverts_by_the_border_of_every_digit_and_no_other():
    """0 of 359 images as they are, all 359 with black and white exchanged, on grey paper too."""
    for place, image in enumerate(datasets.load("digits").test.images[..., 0]):
        grey_paper = (40 + (255 - image.astype(int)) // 3).astype(np.uint8)
        for version, expected in ((image, False), (255 - image, True), (grey_paper, True)):
            found = files.read(Image.fromarray(version), DIGITS)
            assert found.inverted == expected, place


def test_what_is_asked_of_polarity_holds():
    light = Image.new("RGB", (32, 32), "white")
    assert not files.read(light, CIFAR).inverted  # photographs are what they are
    assert files.read(light, CIFAR, Options("yes")).pixels.max() == 0
    assert files.read(light, DIGITS).inverted
    assert not files.read(light, DIGITS, Options("no")).inverted
    assert {name for name, spec in specs.SPECS.items() if spec.light_strokes} == {
        "digits",
        "emnist",
    }


# --- proportions


def test_wide_images_by_each_fit():
    a = digit()
    wide = Image.fromarray(a.repeat(2, 1))  # twice as wide
    stretched = files.read(wide, DIGITS, Options(fit="stretch"))
    assert np.array_equal(stretched.pixels[..., 0], a)
    assert fitting.notes(stretched) == ["width stretched by 0.5"]
    cropped = files.read(wide, DIGITS)
    assert np.array_equal(cropped.pixels[..., 0], a.repeat(2, 1)[:, 4:12])
    assert fitting.about(cropped)["cut"] == 0.5
    assert fitting.notes(cropped) == ["50 % cut off its sides"]
    padded = files.read(wide, DIGITS, Options(fit="pad"))
    assert (padded.pixels[:2] == 0).all()
    assert (padded.pixels[6:] == 0).all()
    assert abs(padded.pixels[2:6].mean() - a.mean()) < 1  # the whole of it, averaged
    assert fitting.notes(padded) == ["padded, 50 % of the result"]
    tall = files.read(Image.fromarray(a[:, 1:7]), DIGITS, Options(fit="pad"))
    assert fitting.about(tall)["padded"] == 0.25
    high = files.read(Image.fromarray(a.repeat(2, 0)), DIGITS)
    assert fitting.notes(high) == ["50 % cut off its top and bottom"]
    thin = files.read(Image.new("L", (3000, 1)), DIGITS, Options(fit="pad"))
    assert thin.pixels.shape == (8, 8, 1)


def test_padding_is_of_the_borders_colour():
    paper = Image.new("RGB", (64, 32), (200, 180, 40))
    found = files.read(paper, CIFAR, Options(fit="pad"))
    assert (found.pixels == (200, 180, 40)).all()


# --- files that are not whole


@pytest.mark.parametrize("options", [{}, {"quality": 95}, {"progressive": True}])
def test_a_jpeg_without_its_last_bytes_is_read_and_half_of_one_is_not(options, tmp_path):
    image = Image.fromarray(digit()).resize((28, 28))
    content, file = saved(image, "JPEG", **options), tmp_path / "image.jpg"
    file.write_bytes(content)
    whole = files.read(file, EMNIST).pixels.astype(int)
    for cut in (1, 2):
        file.write_bytes(content[:-cut])
        assert np.array_equal(files.read(file, EMNIST).pixels, whole)
    accepted = []
    for cut in range(3, len(content), 7):
        file.write_bytes(content[:-cut])
        try:
            found = files.read(file, EMNIST)
        except UserError:
            continue
        accepted.append(cut)
        # what differs is at most about what was said to be missing
        assert (np.abs(found.pixels - whole) > 24).mean() <= 0.07
        assert found.missing == 0 or any("missing" in note for note in fitting.notes(found))
    assert max(accepted, default=0) < len(content) / 4


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_last_row_may_be_missing_and_no_more(kind, tmp_path):
    rng = np.random.default_rng(0)
    image, file = Image.fromarray(rng.integers(0, 256, (100, 100), np.uint8)), tmp_path / "image"
    content = saved(image, kind)
    file.write_bytes(content[:-250])
    found = files.read(file, DIGITS)
    assert 0.02 <= found.missing <= 0.05
    assert "3 % of its pixels are missing from the file" in fitting.notes(found)
    file.write_bytes(content[:-2000])
    with pytest.raises(UserError, match=r"2[01] % of its pixels are missing"):
        files.read(file, DIGITS)


def test_avif(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    image = Image.fromarray(digit()).resize((64, 64), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.avif", quality=90)
    (name,) = files.files([str(tmp_path)])
    assert np.abs(grey(name, DIGITS).astype(int) - grey(image, DIGITS)).max() <= 8  # it is lossy


def test_images_of_pillows_are_read_as_files_are(tmp_path):
    image = _noise((40, 30), "RGBA")
    image.save(tmp_path / "a.png")
    expected = files.read(tmp_path / "a.png", CIFAR).pixels
    with Image.open(tmp_path / "a.png") as opened:
        for given in (image, opened, str(tmp_path / "a.png")):
            assert np.array_equal(files.read(given, CIFAR).pixels, expected)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with (
        Image.open(tmp_path / "b.png") as cut,
        pytest.raises(UserError, match=r"b\.png cannot be read"),
    ):
        files.read(cut, CIFAR)
