"""The competitor: CycleGAN, one for each pair of domains, written from its paper.

Source: Zhu, Park, Isola & Efros, *Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks*, ICCV 2017, sections 3-4 and appendix: ResNet generators with instance normalisation (6 residual
blocks at 128 pixels), 70 x 70 PatchGAN discriminators, least squares, a pool of 50 earlier fakes, cycle
weight 10, Adam (2e-4; 0.5, 0.999), batch 1, learning rate constant for half of the training and then linear
to 0.

Departures: `WIDTH` in place of the paper's 64 channels, with which a processor makes too few steps; one
channel of images in place of three; a budget of processor time in place of 200 epochs.
"""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.scoring import CpuClock, Scorer
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.files import atomic_write

WIDTH = 32
BLOCKS = 6
POOL_SIZE = 50
CYCLE_WEIGHT = 10.0
LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)
SCORES = 10  # times that each pair is scored, at equal distances of processor time
_STATE = "state.pt"


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with instance normalisation, added to their input; (B, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_normalised(nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")),
            *_normalised(nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"))[:-1],
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)


def _normalised(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU()]


def make_generator(width: int = WIDTH, blocks: int = BLOCKS) -> nn.Module:
    """c7s1-k, d2k, d4k, R4k x blocks, u2k, uk, c7s1-1 and tanh; (B, 1, H, W) in [-1, 1] to the same."""
    network = nn.Sequential(
        *_normalised(nn.Conv2d(1, width, 7, padding=3, padding_mode="reflect")),
        *_normalised(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)),
        *_normalised(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)),
        *(ResidualBlock(4 * width) for _ in range(blocks)),
        *_normalised(nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1)),
        *_normalised(nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)),
        nn.Conv2d(width, 1, 7, padding=3, padding_mode="reflect"),
        nn.Tanh(),
    )
    return network.apply(_initialise)


def make_discriminator(width: int = WIDTH) -> nn.Module:
    """Ck, C2k, C4k, C8k (the last of stride 1) and one channel: a score for each patch of 70 x 70 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for factor, stride in ((1, 2), (2, 2), (4, 1)):
        convolution = nn.Conv2d(factor * width, 2 * factor * width, 4, stride=stride, padding=1)
        layers += [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1)).apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, std=0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


class ImagePool:
    """The last 50 fakes: half of the time the discriminator sees one of them in place of the newest."""

    def __init__(self, seed: int) -> None:
        self.images: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    def exchange(self, fake: Tensor) -> Tensor:
        """Take a fake (1, 1, H, W) in; what is to be shown to the discriminator."""
        if len(self.images) < POOL_SIZE:
            self.images.append(fake)
            return fake
        if torch.rand((), generator=self.generator) < 0.5:
            return fake
        index = int(torch.randint(POOL_SIZE, (), generator=self.generator))
        shown, self.images[index] = self.images[index], fake
        return shown


class CycleGan:
    """The two generators and discriminators of one pair of domains, and their training step.

    Args:
        seed: of the initial weights and of the image pools.
        width: of the first layers.
        identity: weight of the identity loss, relative to that of the cycle (0.5 for the paper's paintings).
    """

    def __init__(self, seed: int, width: int = WIDTH, identity: float = 0.0) -> None:
        torch.manual_seed(seed)
        self.generators = nn.ModuleList(make_generator(width) for _ in range(2))  # to domain 0, to domain 1
        self.discriminators = nn.ModuleList(make_discriminator(width) for _ in range(2))
        self.pools = [ImagePool(seed), ImagePool(seed + 1)]
        self.identity = identity
        self.optimizers = [
            torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE, betas=BETAS)
            for networks in (self.generators, self.discriminators)
        ]
        self.step, self.seconds = 0, 0.0

    def train_step(self, real: list[Tensor], factor: float) -> dict[str, float]:
        """One step of the generators, then one of the discriminators.

        Args:
            real: one image of each domain, (1, 1, H, W) in [-1, 1].
            factor: of the learning rate.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * factor
        fakes = [self.generators[side](real[1 - side]) for side in range(2)]
        adversarial = cycle = torch.zeros(())
        self.discriminators.requires_grad_(False)
        for side in range(2):
            adversarial = adversarial + (self.discriminators[side](fakes[side]) - 1).square().mean()
            back = self.generators[1 - side](fakes[side])
            cycle = cycle + F.l1_loss(back, real[1 - side])
            if self.identity:
                same = self.generators[side](real[side])
                cycle = cycle + self.identity * F.l1_loss(same, real[side])
        self._update(0, adversarial + CYCLE_WEIGHT * cycle)
        self.discriminators.requires_grad_(True)
        judged = torch.zeros(())
        for side in range(2):
            shown = self.pools[side].exchange(fakes[side].detach())
            scores = [self.discriminators[side](images) for images in (real[side], shown)]
            judged = judged + ((scores[0] - 1).square().mean() + scores[1].square().mean()) / 2
        self._update(1, judged)
        self.step += 1
        losses = {"adversarial": adversarial, "cycle": cycle, "discriminator": judged}
        return {name: float(value.detach()) for name, value in losses.items()}

    def _update(self, player: int, loss: Tensor) -> None:
        self.optimizers[player].zero_grad()
        loss.backward()
        self.optimizers[player].step()

    @torch.inference_mode()
    def translate(self, volume: np.ndarray, side: int) -> np.ndarray:
        """(S, H, W) in [0, 1] of the other domain, translated to domain `side`."""
        outputs = [self.generators[side](_to_network(image)) for image in volume]
        return ((torch.cat(outputs)[:, 0] + 1) / 2).numpy()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {
            "networks": [self.generators.state_dict(), self.discriminators.state_dict()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "pools": [(pool.images, pool.generator.get_state()) for pool in self.pools],
            "progress": (self.step, self.seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The way back from `state_dict`."""
        self.generators.load_state_dict(state["networks"][0])
        self.discriminators.load_state_dict(state["networks"][1])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        for pool, (images, random) in zip(self.pools, state["pools"], strict=True):
            pool.images = images
            pool.generator.set_state(random)
        self.step, self.seconds = state["progress"]


def _to_network(image: np.ndarray | Tensor) -> Tensor:
    """A slice (H, W) or (1, H, W) in [0, 1] as (1, 1, H, W) in [-1, 1]."""
    return torch.as_tensor(image).reshape(1, 1, *image.shape[-2:]) * 2 - 1


def unpaired_images(
    table: datasets.Dataset, pair: tuple[str, str], seed: int, start: int
) -> Iterator[list[Tensor]]:
    """One image of each domain, again and again, from step `start` on: drawn as galip_hf draws them."""
    dataset = UnpairedSlices(table, domains=pair, seed=seed)
    for step in itertools.count(start):
        epoch, index = divmod(step, len(dataset))
        dataset.set_epoch(epoch)
        item = dataset[index]
        sides = {item[f"domain_{place}"]: _to_network(item[f"image_{place}"]) for place in "ab"}
        yield [sides[0], sides[1]]


def train_pair(
    table: datasets.DatasetDict,
    pair: tuple[str, str],
    scorer: Scorer,
    folder: Path,
    seed: int,
    seconds: float,
    width: int = WIDTH,
    identity: float = 0.0,
) -> list[dict[str, Any]]:
    """Train one pair for some processor seconds, scored `SCORES` times; the scores with their times.

    A call that was interrupted goes on from the last time it was scored.
    """
    clock = CpuClock()
    gan = CycleGan(seed, width, identity)
    entries: list[dict[str, Any]] = []
    path = folder / f"{pair[0]}-{pair[1]}" / _STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        saved = torch.load(path, weights_only=True)
        gan.load_state_dict(saved["gan"])
        entries = json.loads(saved["entries"])
    before = gan.seconds - clock()
    images = unpaired_images(table["train"], pair, seed, gan.step)
    while len(entries) < SCORES:
        share = gan.seconds / seconds
        gan.train_step(next(images), min(1.0, max(0.0, 2 * (1 - share))))
        gan.seconds = before + clock()
        if gan.seconds < seconds * (len(entries) + 1) / SCORES:
            continue
        with clock.paused():
            scores = scorer.scores(lambda volume, _, to: gan.translate(volume, pair.index(to)), pair)
            entries.append({"step": gan.step, "cpu_seconds": gan.seconds, "directions": scores})
            with atomic_write(path) as temporary:
                torch.save({"gan": gan.state_dict(), "entries": json.dumps(entries)}, temporary)
    return entries


def train_cyclegan(
    table: datasets.DatasetDict,
    domains: list[str],
    scorer: Scorer,
    folder: Path,
    seed: int,
    minutes: float,
    width: int = WIDTH,
    identity: float = 0.0,
) -> dict[str, Any]:
    """A CycleGAN for each pair of domains, the budget of processor minutes divided equally among them."""
    pairs, started = list(itertools.combinations(domains, 2)), time.time()
    of_pairs = [
        train_pair(table, pair, scorer, folder, seed, 60 * minutes / len(pairs), width, identity)
        for pair in pairs
    ]
    curve = []
    for entries in zip(*of_pairs, strict=True):  # each pair after the same share of its time
        steps = sum(entry["step"] for entry in entries)
        directions = {name: cell for entry in entries for name, cell in entry["directions"].items()}
        seconds = sum(entry["cpu_seconds"] for entry in entries)
        curve.append({"step": steps, "images": 2 * steps, "cpu_seconds": seconds, "directions": directions})
    curve[-1]["wall_seconds"] = time.time() - started
    generators = make_generator(width)
    return {
        "settings": {"width": width, "identity": identity, "seed": seed},
        "parameters": 2 * len(pairs) * sum(p.numel() for p in generators.parameters()),
        "curve": curve,
    }
