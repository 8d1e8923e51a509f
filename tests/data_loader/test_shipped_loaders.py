"""Loaders that come with the template: masks, text, rows of numbers, pairs of digits."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_diabetes

from data_loader.data_loaders import DigitsDataLoader, TwoDigitsDataLoader
from data_loader.mask_folder import MaskFolderDataLoader
from data_loader.tables import DiabetesDataLoader
from data_loader.text_folder import TextFolderDataLoader
from model.gru import GRUClassifier
from utils.errors import UserError

CLASSES = {"background": 0, "part": 9}


@pytest.fixture
def masks(tmp_path):
    """A folder of grey images whose masks are the bright pixels."""
    generator = np.random.default_rng(0)
    for subset, count in {"train": 6, "val": 3}.items():
        for number in range(count):
            image = generator.integers(0, 256, (24, 32)).astype(np.uint8)
            for kind, array in (("images", image), ("masks", (image > 127) * np.uint8(9))):
                (tmp_path / subset / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / subset / kind / f"{number}.png")
    return tmp_path


def mask_loader(folder, **arguments):
    settings = {"image_size": [24, 32], "channels": 1, "batch_size": 4} | arguments
    return MaskFolderDataLoader(str(folder), CLASSES, **settings)


def test_image_and_mask_are_turned_alike(masks):
    from torchvision.transforms import v2

    turns = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomCrop(16)]
    loader = mask_loader(
        masks, image_size=16, transforms={"train": turns}, normalize={"mean": [0.0], "std": [1.0]}
    )
    seen = set()
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        for images, numbers in loader:
            assert images.shape[1:] == (1, 16, 16)
            assert torch.equal((images[:, 0] * 255).round() > 127, numbers == 1)
            seen |= {image.numpy().tobytes() for image in images}
    assert len(seen) == 12  # another crop in each epoch


def test_masks_of_all_parts_as_the_files_have_them(masks):
    loader = mask_loader(masks, normalize="data")
    pixels = np.stack(
        [np.asarray(Image.open(masks / "train" / "images" / f"{n}.png")) / 255 for n in range(6)]
    )
    assert loader.input["mean"] == pytest.approx([pixels.mean()], rel=1e-5)
    assert loader.input["std"] == pytest.approx([pixels.std()], rel=1e-5)
    valid = loader.split_validation()
    images, numbers = next(iter(valid))
    own = np.stack(
        [np.asarray(Image.open(masks / "val" / "images" / f"{n}.png")) for n in range(3)]
    )
    assert np.allclose(images[:, 0], (own / 255 - pixels.mean()) / pixels.std(), atol=1e-4)
    assert np.array_equal(numbers, own > 127)
    assert valid.classes == ["background", "part"]
    share = (pixels > 0.5).mean()
    assert f"train: 6 images with masks; pixels: background {1 - share:.1%}" in loader.check()[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "masks" / "2.png").unlink(), "no mask for 2"),
        (lambda folder: (folder / "masks" / "2.png").write_bytes(b"x"), "2.png: cannot be read"),
        (lambda folder: Image.new("L", (5, 5)).save(folder / "masks" / "2.png"), "in size, the"),
        (lambda folder: Image.new("L", (32, 24), 7).save(folder / "masks" / "2.png"),
         "contains 7, to which data_loader.args.classes"),
        (lambda folder: Image.new("RGB", (32, 24)).save(folder / "masks" / "2.png"),
         "in size, the image"),
    ],
)  # fmt: skip
def test_masks_that_do_not_fit_are_named(masks, damage, message):
    damage(masks / "train")
    with pytest.raises(UserError, match=message):
        mask_loader(masks).check()


@pytest.fixture
def texts(tmp_path):
    for name, count in {"A": 40, "B": 20, "C": 10}.items():
        lines = [f"{name}{'é' * (number % 7)}{number}" for number in range(count)]
        (tmp_path / f"{name}.txt").write_text("\n".join([*lines, "", lines[0]]), encoding="utf-8")
    return tmp_path


def decoded(tokens):
    return [bytes(row[row != 0].tolist()).decode() for row in tokens]


def test_lines_of_text_are_split_by_class_and_padded_per_batch(texts):
    loader = TextFolderDataLoader(str(texts), length=24, batch_size=8, validation_split=0.25)
    parts = [loader, loader.split_validation(), loader.for_subset("test")]
    names = []
    for part in parts:
        for tokens, targets in part:
            longest = max(len(line.encode()) for line in decoded(tokens))
            assert tokens.shape[1] == (longest if part is loader else 24)
            assert [part.classes[n] for n in targets] == [line[0] for line in decoded(tokens)]
            names += decoded(tokens)
    assert len(names) == len(set(names)) == 70
    counts = [np.bincount(part.samples.targets[part.dataset.indices]).tolist() for part in parts]
    assert counts == [[24, 12, 6], [8, 4, 2], [8, 4, 2]]


def test_rare_languages_can_be_drawn_as_often_or_count_more(texts):
    loader = TextFolderDataLoader(str(texts), balance="loss")
    counts = np.array([32, 16, 8])
    assert loader.class_weights == pytest.approx(56 / 3 / counts)
    loader = TextFolderDataLoader(str(texts), balance="sampler", batch_size=56)
    drawn = torch.cat([target for _, (_, target) in zip(range(40), loader.batches(), strict=False)])
    assert np.allclose(np.bincount(drawn) / len(drawn), 1 / 3, atol=0.05)


def test_text_that_cannot_be_read_is_a_sentence(texts, tmp_path):
    (texts / "D.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(UserError, match=r"D\.txt is not UTF-8"):
        len(TextFolderDataLoader(str(texts)))
    with pytest.raises(UserError, match=r"there are no \.txt files"):
        len(TextFolderDataLoader(str(tmp_path / "nowhere")))


def test_surnames_of_all_languages(kata_data):
    loader = TextFolderDataLoader(str(kata_data / "surnames"), validation_split=0.1)
    assert len(loader.classes) == 18
    assert len(loader.dataset) > 12_000
    text = (kata_data / "surnames" / "Polish.txt").read_text(encoding="utf-8").split("\n")
    number = loader.classes.index("Polish")
    own = loader.samples.inputs[loader.samples.targets == number]
    assert set(decoded(own)) <= {line.strip() for line in text}


def test_padding_does_not_change_the_answer_of_the_gru():
    torch.manual_seed(0)
    network = GRUClassifier(5, hidden=16).eval()
    tokens = torch.randint(1, 256, (4, 9))
    padded = torch.cat([tokens, torch.zeros(4, 6, dtype=torch.long)], 1)
    torch.testing.assert_close(network(padded), network(tokens))
    state = network.gru(network.embedding(tokens))[1][-1]
    torch.testing.assert_close(network(padded), network.head(state))


def test_diabetes_is_standardised_by_the_training_patients():
    loader = DiabetesDataLoader(batch_size=500)
    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    train, test = (next(iter(part)) for part in (loader, loader.for_subset("test")))
    assert [len(part[1]) for part in (train, test)] == [354, 88]
    assert torch.allclose(train[0].mean(0), torch.zeros(10), atol=1e-5)
    assert torch.allclose(train[0].std(0, correction=0), torch.ones(10), atol=1e-5)
    mean, std = (np.array(loader.input[key]) for key in ("mean", "std"))
    rows = torch.cat([train[0], test[0]]).numpy() * std + mean
    both = np.column_stack([rows, torch.cat([train[1], test[1]])])
    expected = np.column_stack([inputs, targets])
    assert np.allclose(both[np.lexsort(both.T)], expected[np.lexsort(expected.T)], atol=1e-2)


def test_pairs_of_digits_are_made_of_different_digits(data_dir):
    loaders = [TwoDigitsDataLoader(str(data_dir), seed=seed) for seed in (1, 1, 2)]
    same, again, other = (loader.samples.images for loader in loaders)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    tests = [loader.for_subset("test").samples for loader in loaders[1:]]
    assert torch.equal(tests[0].images, tests[1].images)
    assert len(tests[0]) == 179
    # each half is a digit of the same part, squeezed; its label is that of the digit
    for part in (loaders[0], loaders[0].for_subset("test")):
        plain = DigitsDataLoader(str(data_dir)).for_subset(part.subset).samples
        squeezed = plain.images[:, 0].float().view(-1, 28, 14, 2).mean(3).round().to(torch.uint8)
        known = dict(
            zip((x.numpy().tobytes() for x in squeezed), plain.targets.tolist(), strict=True)
        )
        used = []
        for image, target in zip(part.samples.images, part.samples.targets, strict=True):
            halves = [
                half.contiguous().numpy().tobytes() for half in (image[0, :, :14], image[0, :, 14:])
            ]
            assert {known[half] for half in halves} == set(target.nonzero().flatten().tolist())
            used += halves
        assert len(set(used)) >= len(used) - 2  # each digit once
