"""Trains FashionNet on the 60,000 Fashion-MNIST training images and writes its state_dict.

    apt-get install dataset-fashion-mnist
    python sample_models/fashion/train.py              # about 20 minutes on 2 cores
    python sample_models/fashion/train.py --evaluate   # top-1 of the committed weights on t10k

SGD with Nesterov momentum, a one-cycle learning rate, flips and shifts of up to 2 pixels.
The test images are looked at once, after the last epoch.
"""

import argparse
import time
from pathlib import Path

import torch
from dataset import FOLDER, MEAN, STD, load
from network import fashion_net
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent


def normalized(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 1, 28, 28) float with zero mean and unit variance."""
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


def augmented(images: Tensor) -> Tensor:
    """Flips half of the images and shifts the batch by up to 2 pixels (each image apart)."""
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None], images.flip(-1), images)
    padded = F.pad(images, (2, 2, 2, 2))
    rows = torch.randint(0, 5, (len(images), 1, 1)) + torch.arange(28)[None, :, None]
    columns = torch.randint(0, 5, (len(images), 1, 1)) + torch.arange(28)[None, None, :]
    return padded[torch.arange(len(images))[:, None, None], rows, columns]


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is the label, with the model in eval mode."""
    model.eval()
    with torch.inference_mode():
        hits = [
            (model(normalized(i)).argmax(1) == y).sum().item()
            for i, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return sum(hits) / len(labels)


def print_top1(model: nn.Module, data: Path) -> None:
    """Says how many of the 10,000 test images the model gets right."""
    images, labels = (torch.tensor(part) for part in load("t10k", data))
    print(f"float top-1 on t10k: {top1(model, images, labels.long()):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=HERE / "weights.pt")
    parser.add_argument("--evaluate", action="store_true", help="judge --out on t10k, train not")
    options = parser.parse_args()

    if options.evaluate:
        model = fashion_net()
        model.load_state_dict(torch.load(options.out, weights_only=True))
        print_top1(model, options.data)
        return
    torch.manual_seed(options.seed)
    images, labels = (torch.tensor(part) for part in load("train", options.data))
    labels = labels.long()
    model = fashion_net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), options.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = len(images) // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * steps, pct_start=0.25
    )
    for epoch in range(options.epochs):
        model.train()
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images))[: steps * options.batch]
        for chosen in order.view(steps, options.batch):
            batch = normalized(augmented(images[chosen]))
            # bfloat16 halves an epoch on CPUs that have it; the weights stay float32.
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        torch.save(state, options.out)
    print_top1(model, options.data)


if __name__ == "__main__":
    main()
