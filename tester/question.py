"""Ask a pretrained network of torchvision: test.py --arch NAME --weights FILE --images."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn

from data_loader.images import read_image
from model.heads import main_output
from model.weights import load_weights, read_weights, torchvision_weights
from tester.predict import find_images
from tester.predictions import class_names
from utils.engine.engine import Engine
from utils.errors import CheckpointError, RunError, UserError
from utils.files import printable

LIKELIEST = 5


def ask(builder: str, weights: str, images: list[str], device: str | None) -> None:
    """Print the likeliest classes of each image, by a network of torchvision with its own
    preparation of images and its own names of classes.

    Args:
        builder: "mobilenet_v2"
        weights: a file, or the name of weights that torchvision offers ("DEFAULT")
        images: files and folders
        device: as on the command line

    Raises UserError, and at the end RunError if some files could not be read.
    """
    network, prepare, names = load(builder, weights)
    engine, unreadable = Engine(device), []
    network = engine.prepare(network.eval())
    for file in find_images(images):
        name = printable(str(file))
        try:
            pixels = read_image(file, channels=3).permute(1, 2, 0).numpy()
        except UserError as error:
            print(f"warning: {error}")
            unreadable.append(name)
            continue
        with torch.no_grad():
            output = main_output(network(engine.to_device(prepare(Image.fromarray(pixels)))[None]))
        probability = output[0].float().softmax(0).cpu()
        order = probability.argsort(descending=True)[:LIKELIEST]
        classes = class_names(len(probability), names)
        print(f"{name}: {', '.join(f'{classes[n]} {probability[n]:.4f}' for n in order)}")
    if unreadable:
        raise RunError(f"{len(unreadable)} could not be read: {', '.join(unreadable)}")


def load(builder: str, weights: str) -> tuple[nn.Module, nn.Module, list[str]]:
    """The network, the function that prepares an RGB image of Pillow, and the classes' names.

    Raises UserError if torchvision has no such network, or if the weights are not for all of it.
    """
    from torchvision import models

    if builder not in models.list_models(module=models):
        known = ", ".join(models.list_models(module=models))
        raise UserError(f'--arch: torchvision has no network "{builder}"; it has {known}')
    offered = models.get_model_weights(builder)
    if Path(weights).exists():
        state, shown = read_weights(Path(weights)), weights
        usual = offered.DEFAULT
    elif weights in offered.__members__ or "." not in weights:
        state, shown = torchvision_weights(builder, weights), f"torchvision's {weights}"
        usual = offered[weights]
    else:
        raise UserError(f"--weights: there is no file {weights}")
    with torch.device("meta"):
        usual_state = models.get_model(builder).state_dict()
    heads = [k for k, value in usual_state.items() if value.shape[:1] == (1000,) and k in state]
    options = {"num_classes": len(state[heads[-1]])} if heads else {}
    network = models.get_model(builder, **options)
    if fresh := load_weights(network, state, shown, new_head=True):
        raise CheckpointError(
            f"--weights: {shown} lacks {', '.join(fresh)}, so {builder} can give no answer: train "
            "its head first, with arch.weights in a configuration"
        )
    return network, usual.transforms(), list(usual.meta["categories"])
