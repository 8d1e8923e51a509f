"""Where in a picture a network sees the class it names: torchcam's methods, for convolutions and for tokens alike."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logger import shown
from trainer.predictions import Predictions
from utils.engine import Engine, unwrap
from utils.errors import UserError
from utils.lookup import did_you_mean
from utils.randomness import seeded

BATCH = 16  # pictures explained together
MOST_EXTRA_TOKENS = 8  # the class token and registers (Darcet et al., arXiv:2309.16588) that stand before a grid's


def heat_maps(model: nn.Module, data: Tensor, classes: Tensor, method: str = "LayerCAM", layer: str | None = None) -> Tensor:
    """How much each place of the pictures `data` (N, C, H, W) speaks for `classes` (N,): (N, H, W), each from 0 to 1.

    The model stays exactly as it was. `layer` is the name of the one looked at; where not given it is found.
    LayerCAM (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943) is as fine as the layer; Grad-CAM (arXiv:1610.02391)
    weighs whole channels. Raises UserError for a network or a layer without places.
    """
    parts = zip(data.split(BATCH), classes.split(BATCH), strict=True)
    return torch.cat([_heat_maps(unwrap(model), *part, method, layer) for part in parts])


def _heat_maps(model: nn.Module, data: Tensor, classes: Tensor, method: str, layer: str | None) -> Tensor:
    from torchcam import methods  # brings matplotlib along

    modes = {module: module.training for module in model.modules()}
    model.eval()
    data = data.detach().clone().requires_grad_()  # with all parameters frozen nothing else would have gradients
    try:
        with torch.enable_grad(), seeded("heat maps"):  # SmoothGradCAMpp draws noise
            layer = find_layer(model, data, classes, layer)
            reshape = partial(as_grid, aspect=data.shape[-2] / data.shape[-1])
            with getattr(methods, method)(model, layer, reshape_transform=reshape) as extractor:
                maps = extractor(classes.tolist(), model(data), normalized=False)[0]
    finally:
        for module, mode in modes.items():
            module.training = mode
    maps = F.interpolate(maps[:, None].double(), data.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    maps -= maps.amin((1, 2), keepdim=True)
    # the gradients of a network that is very sure are tiny; torchcam's own scaling would leave their maps dark
    return (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-300)).float()


def explain(config: Any, model: nn.Module, predictions: Predictions, engine: Engine) -> dict[int, Tensor]:
    """Heat maps of the samples that a report shows, for what was predicted, as the config's heatmap section says.

    Where the network has no places to show it is said, and there are none.
    """
    positions = shown(predictions) if predictions.is_classification else []
    if not positions or not any(True for _ in model.parameters()):  # an exported file has no layers to look at
        return {}
    data = engine.to_device(torch.stack([predictions.pictures[position] for position in positions]))
    classes = engine.to_device(torch.from_numpy(predictions.probabilities[positions].argmax(1)))
    try:
        maps = heat_maps(model, data, classes, **config.get("heatmap", {}))
    except UserError as error:
        config.get_logger("test").warning(f"no heat maps: {error}")
        return {}
    return dict(zip(positions, maps.cpu(), strict=True))


def find_layer(model: nn.Module, data: Tensor, classes: Tensor, wanted: str | None = None) -> str:
    """The name of the last layer whose output has places that `model`'s answer depends on; `wanted`, if it has places.

    That it depends on them is what tells the tokens before a transformer's last attention from those after it, of
    which only the class token is read. Raises UserError where there is none.
    """
    outputs: dict[str, Tensor] = {}
    aspect = data.shape[-2] / data.shape[-1]

    def keep(module: nn.Module, inputs: Any, output: Any, name: str) -> None:
        outputs.pop(name, None)  # a layer used twice has its place in the order from the last time
        # an adaptive pooling may stretch a grid that is smaller than its own
        if not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and _has_places(output, len(data), aspect):
            outputs[name] = output

    names = {name: module for name, module in model.named_modules() if name}
    if wanted is not None and wanted not in names:
        raise UserError(f'heatmap.layer: {type(model).__name__} has no layer "{wanted}"{did_you_mean(wanted, names)}')
    handles = [module.register_forward_hook(partial(keep, name=name)) for name, module in names.items()]
    try:
        answer = model(data)
    finally:
        for handle in handles:
            handle.remove()
    if wanted is not None and wanted not in outputs:
        raise UserError(f"heatmap.layer: the output of {wanted} is no grid of places; one of {', '.join(outputs)}?")
    if wanted is not None:
        return wanted
    if not outputs:
        raise UserError(f"heatmap: {type(model).__name__} has no layer whose output has places")
    score = answer.gather(1, classes[:, None]).sum()
    gradients = torch.autograd.grad(score, list(outputs.values()), allow_unused=True)
    found = zip(outputs, gradients, strict=True)
    depended_on = [name for name, gradient in found if gradient is not None and as_grid(gradient, aspect).any()]
    return (depended_on or list(outputs))[-1]


def as_grid(output: Tensor, aspect: float) -> Tensor:
    """A layer's output as (N, channels, h, w), from that, from (N, h, w, channels) or from tokens (N, h * w, channels).

    `aspect` is the pictures' height over their width, which a grid's sides share.
    """
    if output.ndim == 4:
        _, first, second, third = output.shape
        channels_last = abs(math.log(first / second / aspect)) < abs(math.log(second / third / aspect))
        return output.permute(0, 3, 1, 2) if channels_last else output
    height, width = _sides(output.shape[1], aspect)
    return output[:, output.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))


def _sides(tokens: int, aspect: float) -> tuple[int, int]:
    width = int(math.sqrt(tokens / aspect) + 1e-6)
    return int(width * aspect + 1e-6), width


def _has_places(output: Any, count: int, aspect: float) -> bool:
    if not isinstance(output, Tensor) or output.ndim not in (3, 4) or len(output) != count or not output.requires_grad:
        return False
    if output.ndim == 3:
        height, width = _sides(output.shape[1], aspect)
        return min(height, width) > 1 and output.shape[1] - height * width <= MOST_EXTRA_TOKENS
    return min(as_grid(output, aspect).shape[2:]) > 1
