"""Images as they are: depth, rotation, colour modes, files that are no images, images that cannot be read."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from prunus.data import ImageOptions, Preprocessing, load_data
from prunus.errors import UserError

RNG = np.random.default_rng(0)
GRAY = Preprocessing(channels=1, size=(8, 8), mean=(0.0,), std=(1.0,))
COLOUR = Preprocessing(channels=3, size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
RAMP = np.linspace(0, 1, 64).reshape(8, 8)  # an image that uses all of its type's range


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "format", "steps"),
    [
        (np.uint8, "PNG", 255),
        (np.uint16, "PNG", 65535),
        (np.uint16, "TIFF", 65535),
        (np.uint16, "PPM", 65535),
        (np.int32, "TIFF", 2**31 - 1),
        (np.float32, "TIFF", None),
    ],
)
def test_gray_images_are_scaled_by_the_range_of_their_type(kind, format, steps):
    stored = (RAMP * (steps or 1)).astype(kind)
    exact = stored / (steps or 1)
    data = encoded(Image.fromarray(stored), format)
    gray, colour = GRAY.read(data), COLOUR.read(data)
    assert gray.shape == (1, 1, 8, 8) and gray.dtype == torch.float32
    assert np.abs(gray[0, 0].numpy() - exact).max() < 1e-6
    assert torch.equal(colour, gray.expand(1, 3, 8, 8))


@pytest.mark.parametrize("low", [0, 1000])
def test_float_images_beyond_0_to_1_are_refused_and_not_saturated(low):
    data = encoded(Image.fromarray((low + 255 * RAMP).astype(np.float32)), "TIFF")
    with pytest.raises(UserError, match=rf"holds numbers from {low} to {low + 255}.*0 to 1"):
        GRAY.read(data)
    with pytest.raises(UserError, match=r"numbers from nan to nan"):
        GRAY.read(encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"))


def test_integers_of_32_bits_without_a_file_are_refused():
    with pytest.raises(UserError, match="uint8"):
        GRAY.read(Image.fromarray(np.full((8, 8), 200, np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_photograph_is_turned_as_its_exif_says(format, orientation):
    """Of eight orientations each is undone: the image comes out as the upright one."""
    upright = Image.fromarray(np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((16, 16))).astype(np.uint8))
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # numbers of PIL.Image.Transpose that give the stored image
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = Preprocessing(channels=1, size=(32, 48), mean=(0.0,), std=(1.0,)).read
    difference = read(encoded(stored, format, exif=exif)) - read(encoded(upright, "PNG"))
    assert difference.abs().max() < 0.05  # a JPEG is inexact; wrong orientations differ by 0.15 and more


def test_a_deep_image_is_turned_too():
    """Sixteen bits, a quarter turn: nothing of its depth is lost on the way."""
    stored = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    exif = Image.Exif()
    exif[0x0112] = 6
    x = GRAY.read(encoded(Image.fromarray(stored), "PNG", exif=exif))[0, 0].numpy()
    assert np.abs(x - np.rot90(stored, -1) / 65535).max() < 1e-6


def test_a_photograph_held_upright_counts_by_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(6):
            pixels = RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.jpg", exif=exif)
    assert load_data(f"imagefolder:{tmp_path}").example.shape == (1, 3, 30, 20)


def test_damaged_exif_leaves_an_image_readable():
    data = encoded(Image.new("L", (8, 8), 51), "PNG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert torch.allclose(GRAY.read(data), torch.tensor(0.2))


def test_alpha_is_dropped_as_torchvision_does_and_palettes_and_cmyk_become_colours():
    red = np.array([1.0, 0.0, 0.0])
    images = {
        "RGBA": Image.new("RGBA", (8, 8), (255, 0, 0, 10)),
        "LA": Image.new("LA", (8, 8), (51, 10)),
        "P": Image.new("RGB", (8, 8), (255, 0, 0)).convert("P"),
        "1": Image.new("1", (8, 8), 1),
        "CMYK": Image.new("CMYK", (8, 8), (0, 255, 255, 0)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = {
            mode: COLOUR.read(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))[0, :, 4, 4]
            for mode, image in images.items()
        }
        palette = encoded(images["P"], "PNG", transparency=bytes([0] * 256))
        assert torch.allclose(COLOUR.read(palette)[0, :, 4, 4], torch.tensor(red).float(), atol=0.01)
    for mode in ("RGBA", "P", "CMYK"):
        assert np.allclose(read[mode], red, atol=0.01), mode
    assert np.allclose(read["LA"], 0.2) and np.allclose(read["1"], 1.0)


def fill(folder, counts, size=(8, 8)):
    """A folder of different images: counts by class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = RNG.integers(0, 256, size[::-1]).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_deep_and_shallow_images_mix_in_memory(tmp_path):
    fill(tmp_path, {"a": 10, "b": 10})
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / "b" / "deep.png")
    data = load_data(f"imagefolder:{tmp_path}")
    names = list(data.fingerprint.items)
    x = data.train.source.read(np.array([names.index("b/deep.png")]), None)
    assert np.allclose(x[0, 0].numpy() * 0.35 + 0.3, RAMP, atol=1e-4)
    y = data.train.source.read(np.array([names.index("a/3.png")]), None)
    shade = np.asarray(Image.open(tmp_path / "a" / "3.png")) / 255
    assert np.allclose(y[0, 0].numpy() * 0.35 + 0.3, shade, atol=1e-6)


def test_hidden_files_and_those_of_systems_are_no_images(tmp_path):
    fill(tmp_path, {"a": 6, "b": 6, ".cache": 3, "__MACOSX": 2, "a/.thumbnails": 3})
    for name in ("._0.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "a" / name).write_bytes(b"no image")
    (tmp_path / "b" / "album.png").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_data(f"imagefolder:{tmp_path}")
    assert data.fingerprint.class_names == ("a", "b")
    assert list(data.fingerprint.items) == [f"{c}/{i}.png" for c in "ab" for i in range(6)]


def test_files_with_unknown_suffixes_are_named_and_counted(tmp_path):
    fill(tmp_path, {"a": 6, "b": 6})
    for name in ("1.heic", "2.HEIC", "notes.txt", "README"):
        (tmp_path / "a" / name).write_bytes(b"no image")
    with pytest.warns(
        UserWarning, match=r"4 files are left out.* 2 \.heic, 1 \.txt, 1 without a suffix.*pillow-heif|JPEG"
    ):
        data = load_data(f"imagefolder:{tmp_path}")
    assert data.fingerprint.skipped == {"suffix .heic": 2, "suffix .txt": 1, "no suffix": 1}


def test_a_folder_of_heic_alone_says_so(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.heic").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no images in 'train'.* 2 \.heic.*convert"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("size", [(8, 8), (90, 70)])
def test_unreadable_images_are_listed_all_at_once_and_left_out_on_request(tmp_path, size):
    fill(tmp_path, {"a": 20, "b": 20}, size)
    for index in range(12):
        file = tmp_path / "b" / f"{index}.png"
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="12 of 40 images") as refused:
        load_data(f"imagefolder:{tmp_path}")
    message = str(refused.value)
    assert "b/0.png" in message and message.count(".png") == 10 and "and 2 more" in message
    assert "--skip-broken" in message
    data = load_data(f"imagefolder:{tmp_path}", skip_broken=True)
    assert len(data.train) + len(data.val) + len(data.test) == 28
    assert data.fingerprint.found == 40 and data.fingerprint.used == 28
    assert data.fingerprint.skipped == {"unreadable": 12}
    assert [len(part) for part in data.train.batches(7)]  # every batch can be read


def test_a_file_that_may_not_be_there_is_one_of_the_unreadable(tmp_path):
    fill(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"(?s)1 of 13 images.*a/gone\.png"):
        load_data(f"imagefolder:{tmp_path}")


def test_too_many_broken_images_end_in_the_usual_refusal(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3})
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 6 images"):
        load_data(f"imagefolder:{tmp_path}", skip_broken=True)


def test_what_is_no_image_is_named_and_heic_is_thought_of(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"a\.heic cannot be decoded.*HEIC") as refused:
        COLOUR.read(tmp_path / "a.heic")
    assert "0x" not in str(refused.value)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "photos", {"a": 6, "b": 6})
    assert load_data("imagefolder:~/photos").classes == 2


def test_beyond_what_is_affordable_a_sample_is_hashed(tmp_path, monkeypatch):
    """The split is the same either way, because it goes by the sample alone."""
    fill(tmp_path, {"a": 30, "b": 30}, (90, 70))
    noise = RNG.integers(0, 256, (300, 500)).astype(np.uint8)
    for index in range(30):  # of more than the sample, and alike but for a band in the middle
        noise[140:160] = index
        Image.fromarray(noise).save(tmp_path / "a" / f"{index}.pgm")
    whole = load_data(f"imagefolder:{tmp_path}")
    monkeypatch.setattr("prunus.data.load.AFFORDABLE_BYTES", 1000)
    sample = load_data(f"imagefolder:{tmp_path}")
    assert whole.fingerprint.hashed == "all bytes" and "16 blocks" in sample.fingerprint.hashed
    for name in ("train", "val", "test"):
        assert np.array_equal(getattr(whole, name).members, getattr(sample, name).members)
    assert len({sample.fingerprint.items[f"a/{i}.pgm"] for i in range(30)}) == 30
    file = tmp_path / "a" / "0.png"
    file.write_bytes(b"no image at all")
    with pytest.raises(UserError, match=r"(?s)1 of 90 images.*a/0\.png"):  # its header is read all the same
        load_data(f"imagefolder:{tmp_path}")


def test_an_image_is_read_as_the_splits_read_it(tmp_path):
    """`preprocessing.read` of the file gives the bits that the split gives."""
    for size, image_size in (((8, 8), None), ((90, 70), None), ((90, 70), 32), ((8, 8), 12)):
        folder = tmp_path / f"{size[0]}-{image_size}"
        fill(folder, {"a": 6, "b": 6}, size)
        data = load_data(f"imagefolder:{folder}", images=ImageOptions(image_size=image_size))
        names = list(data.fingerprint.items)
        x = data.test.source.read(data.test.members, None)
        for row, member in zip(x, data.test.members, strict=True):
            assert torch.equal(data.fingerprint.preprocessing.read(folder / names[member])[0], row)


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_damaged_bytes_are_read_or_refused_and_nothing_else(format):
    """Whatever a decoder raises on damaged bytes is a UserError that names the image."""
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (9, 7, 3)).astype(np.uint8)), format)
    refused = 0
    for trial in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        places = RNG.integers(0, min(len(data), 200), 4)
        data[places] = RNG.integers(0, 256, 4)
        try:
            x = COLOUR.read(data[: len(data) - trial].tobytes())
            assert x.shape == (1, 3, 8, 8) and bool(torch.isfinite(x).all())
        except UserError as error:
            assert "image (given) cannot be decoded" in str(error)
            refused += 1
    assert refused
