from torch import Tensor, nn

from base import BaseModel


class Generator(BaseModel):
    """Images (N, 1, image_size, image_size) from noise (N, noise): a small DCGAN (Radford et al.,
    arXiv:1511.06434).

    Args:
        noise: numbers that an image is made from
        width: channels of the last hidden layer
        image_size: a multiple of 4
    """

    def __init__(self, noise: int = 64, width: int = 32, image_size: int = 28):
        super().__init__()
        self.noise, self.side = noise, image_size // 4
        self.start = nn.Linear(noise, 2 * width * self.side**2)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (2 * width, self.side, self.side)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(self.start(noise))


class Discriminator(BaseModel):
    """Logits (N,): whether images (N, 1, H, W) are real.

    Args:
        width: channels of the first layer
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Dropout2d(0.3),  # or it knows the training images by heart
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Dropout2d(0.3),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * width, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten()
