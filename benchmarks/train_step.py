"""Time the library's training loop against a plain one, side by side in one run, at the article's setting.

    python benchmarks/train_step.py [--steps 200] [--repeats 7] [--device cpu]

The plain loop is what a PyTorch example usually does: a DataLoader over the images, Adam with its defaults, a sigmoid
in the decoder and binary cross-entropy on probabilities, and `.item()` at every step. Both train the article's VAE,
3,993,412 parameters, on batches of 16. The two take turns, so that a slow minute of the machine hits both.
"""

import argparse
import dataclasses
import platform
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dvae_lib import TrainingConfig, default_device, mlp_vae, squares, train


class PlainVAE(nn.Module):
    """The article's networks, with the layers, the loss and the sampling written into one module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(576, 1152), nn.Linear(1152, 1152)
        self.mean, self.log_variance = nn.Linear(1152, 2), nn.Linear(1152, 2)
        self.fc3, self.fc4, self.fc5 = nn.Linear(2, 1152), nn.Linear(1152, 1152), nn.Linear(1152, 576)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = functional.relu(self.fc2(functional.relu(self.fc1(x.view(-1, 576)))))
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        h = functional.relu(self.fc4(functional.relu(self.fc3(z))))
        return torch.sigmoid(self.fc5(h)), mean, log_variance


def plain_loop(model: PlainVAE, images: Tensor, config: TrainingConfig, device: torch.device) -> None:
    """Train for `config.steps` steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    loader = DataLoader(TensorDataset(images), batch_size=config.batch_size, shuffle=True)
    batches = iter(loader)
    for _ in range(config.steps):
        (x,) = next(batches)
        x = x.to(device)
        optimizer.zero_grad()
        probabilities, mean, log_variance = model(x)
        reconstruction = functional.binary_cross_entropy(probabilities, x.view(-1, 576), reduction="sum")
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        loss = reconstruction + divergence
        loss.backward()
        optimizer.step()
        loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="steps of one measurement")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each loop")
    parser.add_argument("--device", default=str(default_device()))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = dataclasses.replace(TrainingConfig.article(), steps=arguments.steps)

    torch.manual_seed(0)
    images = squares(50_000)
    plain, library = PlainVAE().to(device), mlp_vae()
    count = sum(parameter.numel() for parameter in plain.parameters())
    assert count == sum(parameter.numel() for parameter in library.parameters()) == 3_993_412
    on_device = images.to(device)
    loops = {
        "plain loop": lambda config: plain_loop(plain, images, config, device),
        "dvae_lib.train": lambda config: train(library, on_device, config, device=device, progress=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():  # once, unmeasured
        loop(dataclasses.replace(config, steps=20))
    for _ in range(arguments.repeats):
        for name, loop in loops.items():
            start = time.perf_counter()
            loop(config)
            if device.type != "cpu":
                torch.accelerator.synchronize()
            rates[name].append(config.steps * config.batch_size / (time.perf_counter() - start))

    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {threads} threads, device {device}, PyTorch {torch.__version__}")
    print(f"batch {config.batch_size}, {arguments.repeats} x {config.steps} steps; images/s: median (least .. most)")
    for name, values in rates.items():
        print(f"{name:16s} {statistics.median(values):8.0f}  ({min(values):.0f} .. {max(values):.0f})")
    ratios = [library / plain for plain, library in zip(*rates.values(), strict=True)]
    print(f"dvae_lib.train is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} .. {max(ratios):.2f})")


if __name__ == "__main__":
    main()
