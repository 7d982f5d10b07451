"""Trains UnevenNet on Fashion-MNIST, then makes its channels uneven, and writes its state_dict.

apt-get install dataset-fashion-mnist
python -m sample_models.uneven.train build/uneven/weights.pt    # some minutes on one core
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from sample_models.uneven.network import uneven_net

sys.path.insert(0, str(Path(__file__).parent.parent / "fashion"))
from dataset import FOLDER, load
from train import augmented, normalized, top1

LARGEST = 300.0
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--data", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels = (torch.tensor(part)[: options.images] for part in load("train", options.data))
    model = uneven_net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    steps = len(images) // BATCH * options.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for epoch in range(options.epochs):
        total = 0.0
        order = torch.randperm(len(images))[: len(images) // BATCH * BATCH].view(-1, BATCH)
        for chosen in order:
            loss = F.cross_entropy(
                model(normalized(augmented(images[chosen]))), labels[chosen].long()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(order):.4f}", flush=True)
    test_images, test_labels = (torch.tensor(part) for part in load("t10k", options.data))
    before = top1(model, test_images, test_labels.long())
    model.make_uneven(LARGEST)
    after = top1(model, test_images, test_labels.long())
    print(f"float top-1 on t10k: {before:.4f}, uneven: {after:.4f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v.contiguous() for k, v in model.state_dict().items()}, options.out)


if __name__ == "__main__":
    main()
