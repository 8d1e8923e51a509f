"""Heat maps: where in an image a network sees the class. torchcam's methods, for convolutional
networks and for transformers."""

import logging
import math
from functools import partial
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tester.predictions import Predictions
from tester.trained import Test
from trainer.rehearsal import unchanged
from utils.config.lookup import did_you_mean
from utils.engine.engine import unwrap
from utils.engine.randomness import seeded
from utils.errors import UserError

BATCH = 16  # images explained together
# class token and registers (Darcet et al., arXiv:2309.16588) before the tokens of the grid
MOST_EXTRA_TOKENS = 8


def heat_maps(
    model: nn.Module,
    data: Tensor,
    classes: Tensor,
    method: str = "LayerCAM",
    layer: str | None = None,
) -> Tensor:
    """How much each place of the images `data` (N, C, H, W) speaks for `classes` (N,): (N, H, W),
    each map from 0 to 1. The model stays exactly as it was.

    Args:
        method: of torchcam. LayerCAM (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943) is as fine
            as the layer; GradCAM (arXiv:1610.02391) weighs whole channels
        layer: name of the layer to look at; None finds one, see `find_layer`

    Raises UserError if the network or the layer has no places.
    """
    from torchcam import methods  # imports matplotlib, too

    model, classes = unwrap(model), classes.to(data.device)
    # with all parameters frozen nothing else would have gradients
    batches = data.detach().clone().requires_grad_().split(BATCH)
    maps = []
    drawn = seeded("heat maps", device=data.device)  # SmoothGradCAMpp draws random numbers
    with torch.enable_grad(), unchanged([model]), drawn:
        model.eval()
        layer = find_layer(model, batches[0], classes[:BATCH], layer)
        reshape = partial(as_grid, aspect=data.shape[-2] / data.shape[-1])
        with getattr(methods, method)(model, layer, reshape_transform=reshape) as extractor:
            for batch, numbers in zip(batches, classes.split(BATCH), strict=True):
                maps += extractor(numbers.tolist(), model(batch), normalized=False)
    heat = F.interpolate(torch.cat(maps)[:, None].double(), data.shape[-2:], mode="bilinear")[:, 0]
    heat -= heat.amin((1, 2), keepdim=True)
    # A very sure network has tiny gradients; torchcam's own scaling would leave its maps dark.
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-300)).float()


def explain(test: Test, predictions: Predictions) -> dict[int, Tensor]:
    """Heat maps (H, W) of the images in the report, for the predicted classes, by position.

    A network without layers (an exported file) has none; one whose
    layers have no places has none, and a warning.
    """
    mistakes, suspects = predictions.shown()
    images = {p: predictions.images[p] for p in mistakes + suspects if p in predictions.images}
    if not images or getattr(test.model, "is_exported", False):
        return {}
    data = test.engine.to_device(torch.stack(list(images.values())))
    classes = torch.from_numpy(predictions.predicted[list(images)])
    try:
        maps = heat_maps(test.model, data, classes, **test.config.get("heatmap", {}))
    except Exception as error:  # the network takes or gives something else
        logging.getLogger("test").warning(f"no heat maps: {error}")
        return {}
    return dict(zip(images, maps.cpu(), strict=True))


def find_layer(model: nn.Module, data: Tensor, classes: Tensor, wanted: str | None = None) -> str:
    """The name of the last layer whose output has places and affects the scores of `classes`;
    `wanted` if that has places.

    In a transformer the tokens after the last attention do not affect the scores, as only the
    class token is read. Raises UserError if there is no such layer.
    """
    outputs: dict[str, Tensor] = {}
    aspect = data.shape[-2] / data.shape[-1]
    layers = {module: name for name, module in model.named_modules() if name}
    if wanted is not None and wanted not in layers.values():
        hint = did_you_mean(wanted, layers.values())
        raise UserError(f'heatmap.layer: {type(model).__name__} has no layer "{wanted}"{hint}')

    def keep(module: nn.Module, inputs: tuple, output: object) -> None:
        name = layers.get(module)
        outputs.pop(name, None)  # a layer that is used twice counts where it was used last
        # adaptive pooling may stretch a smaller grid to its own size
        stretches = isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        if name and not stretches and _has_places(output, len(data), aspect):
            outputs[name] = output

    with register_module_forward_hook(keep):
        scores = model(data).gather(1, classes[:, None]).sum()
    if wanted in outputs:
        return wanted
    if wanted is not None:
        places = ", ".join(outputs)
        raise UserError(f"heatmap.layer: the output of {wanted} has no places; one of {places}?")
    if not outputs:
        raise UserError(f"heatmap: {type(model).__name__} has no layer whose output has places")
    gradients = torch.autograd.grad(scores, list(outputs.values()), allow_unused=True)
    affects = [gradient is not None and as_grid(gradient, aspect).any() for gradient in gradients]
    return (list(compress(outputs, affects)) or list(outputs))[-1]


def as_grid(output: Tensor, aspect: float) -> Tensor:
    """A layer's output as (N, channels, h, w), from that shape, from (N, h, w, channels) or from
    tokens (N, h * w, channels). `aspect` is height / width of the images, and of the grid.
    """
    if output.ndim == 4:
        first, second, third = (math.log(side) for side in output.shape[1:])
        expected = math.log(aspect)
        channels_last = abs(first - second - expected) < abs(second - third - expected)
        return output.permute(0, 3, 1, 2) if channels_last else output
    width = int(math.sqrt(output.shape[1] / aspect) + 1e-6)
    height = int(width * aspect + 1e-6)
    tokens = output[:, output.shape[1] - height * width :]
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _has_places(output: object, count: int, aspect: float) -> bool:
    if not isinstance(output, Tensor) or output.ndim not in (3, 4) or len(output) != count:
        return False
    height, width = as_grid(output, aspect).shape[2:]
    extra_tokens = output.shape[1] - height * width if output.ndim == 3 else 0
    return output.requires_grad and min(height, width) > 1 and extra_tokens <= MOST_EXTRA_TOKENS
