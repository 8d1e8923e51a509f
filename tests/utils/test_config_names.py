"""Which names are corrected, and what is said of those that are not found."""

import pytest

from utils.config.lookup import did_you_mean
from utils.config.sections import SOURCES
from utils.config.validate import find_errors

TYPOS = [
    ("arch", "LeNett", "LeNet"),
    ("arch", "lenet", "LeNet"),
    ("arch", "LeNte", "LeNet"),
    ("arch", "ResNet18", "resnet18"),
    ("arch", "mobilnet_v3_small", "mobilenet_v3_small"),
    ("arch", "efficentnet_b0", "efficientnet_b0"),
    ("arch", "densenet_121", "densenet121"),
    ("loss", "cross_entropi", "cross_entropy"),
    ("loss", "CrossEntropyLos", "CrossEntropyLoss"),
    ("loss", "cros_entropy", "cross_entropy"),
    ("loss", "CrossEntropy", "cross_entropy"),
    ("loss", "hinge_embedding", "hinge_embedding_loss"),
    ("loss", "focal_los", "focal_loss"),
    ("metrics", "acuracy", "accuracy"),
    ("metrics", "topk_acc", "top_k_acc"),
    ("optimizer", "Adamw", "AdamW"),
    ("optimizer", "SDG", "SGD"),
    ("optimizer", "stochastic_gradient_descent", "SGD"),
    ("lr_scheduler", "ReduceLROnPlatau", "ReduceLROnPlateau"),
    ("lr_scheduler", "one_cycle_lr", "OneCycleLR"),
    ("data_loader", "ImageFolderDataloader", "ImageFolderDataLoader"),
    ("data_loader", "DigitDataLoader", "DigitsDataLoader"),
    ("trainer", "Trainr", "Trainer"),
]
OTHERS = [
    ("arch", "CapsNet"),
    ("arch", "LeNet5"),
    ("arch", "SmallNet"),
    ("arch", "WideResNet"),
    ("arch", "resnet19"),
    ("arch", "efficientnet_b9"),
    ("loss", "cel_loss"),
    ("loss", "dice_loss"),
    ("loss", "l2_loss"),
    ("loss", "mae_loss"),
    ("loss", "local_loss"),
    ("metrics", "confidence"),
    ("metrics", "top_5_acc"),
    ("optimizer", "Adan"),
    ("optimizer", "SGDW"),
    ("optimizer", "Lion"),
    ("lr_scheduler", "WarmupLR"),
    ("data_loader", "PartsDataLoader"),
    ("data_loader", "ArrayDataLoader"),
    ("trainer", "OwnTrainer"),
]


@pytest.fixture(scope="module")
def known():
    """Section -> the names that it can hold now; torchmetrics takes seconds."""
    sections = {section for section, *_ in TYPOS}
    names = {section: list(SOURCES[section].own_names()) for section in sections}
    for section in sections - {"metrics"}:
        names[section] += SOURCES[section].library_names(*SOURCES[section].libraries)
    return names


@pytest.mark.parametrize(("section", "name", "meant"), TYPOS)
def test_a_probable_typo_is_corrected(known, section, name, meant):
    assert meant in known[section]
    assert did_you_mean(name, known[section], complete=False) == f'; did you mean "{meant}"?'


@pytest.mark.parametrize(("section", "name"), OTHERS)
def test_another_name_is_not_corrected(known, section, name):
    assert did_you_mean(name, known[section], complete=False) == ""


@pytest.mark.parametrize(
    ("section", "name", "place", "library"),
    [
        ("arch", "CapsNet", "a file in model/", "torchvision.models"),
        ("arch", "LeNett", "a file in model/", "torchvision.models"),
        ("loss", "cel_loss", "model/loss.py", "torch.nn.functional"),
        ("optimizer", "Lion", "a file in model/", "torch.optim"),
        ("data_loader", "PartsDataLoader", "a file in data_loader/", ""),
        ("trainer", "OwnTrainer", "a file in trainer/", ""),
    ],
)
def test_unknown_type_says_where_to_write_it_and_what_was_searched(section, name, place, library):
    with pytest.raises(LookupError) as caught:
        SOURCES[section].find(name)
    message = caught.value.args[0]
    assert f"write a new one into {place}" in message
    assert ", ".join(SOURCES[section].folders) in message
    assert library in message
    assert len(message) < 800  # ten lines of a screen


@pytest.mark.parametrize(
    "section", ["train_data_loader", "train_loader", "training_dataloader", "val_loader"]
)
def test_training_data_is_called_data_loader(section):
    errors = [error for error in find_errors({section: {}}) if error.startswith(section)]
    assert errors == [
        f'{section}: unknown section; training data is "data_loader", other data '
        '"valid_data_loader" and "test_data_loader"'
    ]


@pytest.mark.parametrize(
    ("section", "meant"),
    [
        ("optimzer", "optimizer"),
        ("dataloader", "data_loader"),
        ("valid_dataloader", "valid_data_loader"),
        ("scheduler", "lr_scheduler"),
        ("metric", "metrics"),
        ("inspect", "inspection"),
        ("arhc", "arch"),
        ("schema", "$schema"),
    ],
)
def test_section_with_a_typo(section, meant):
    assert f'{section}: unknown section; did you mean "{meant}"?' in find_errors({section: {}})


@pytest.mark.parametrize(
    "section", ["line", "NG", "data", "teacher", "unlabeled_data_loader", "plant", "ls", "良品"]
)
def test_other_sections_are_the_users_own(section):
    assert not any(error.startswith(f"{section}:") for error in find_errors({section: {}}))


def test_section_without_a_type_says_what_to_write():
    errors = find_errors({"data_loader": {"args": {"x": 1}}})
    assert (
        'data_loader: should be a name or {"type": "Name", "args": {...}}; '
        "for example -s data_loader.type=DigitsDataLoader"
    ) in errors


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("epochs", "trainer.epochs"),
        ("lr", "optimizer.args.lr"),
        ("learning_rate", "optimizer.args.lr"),
        ("batch_size", "data_loader.args.batch_size"),
    ],
)
def test_key_without_its_section_is_not_taken_for_a_section_of_the_users_own(key, meant):
    assert f'{key}: unknown section; did you mean "{meant}"?' in find_errors({key: 3})
