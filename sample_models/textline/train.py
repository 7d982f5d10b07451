"""Trains TextLine on lines that it draws as it goes, and writes its state_dict.

    apt-get install (what the script asks for)
    python sample_models/textline/train.py              # about 40 minutes on one core
    python sample_models/textline/train.py --evaluate   # of the committed weights on test/

AdamW with a one-cycle learning rate; no line is drawn twice. The test lines, in other typefaces,
are looked at once, after the last step.
"""

import argparse
import csv
import random
import time
from pathlib import Path

import numpy as np
import torch
from lines import CHARACTERS, TRAINING_FONTS, field, fonts, line
from network import TextLine, text_line
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent
INDEX = {character: i + 1 for i, character in enumerate(CHARACTERS)}  # 0 is the blank
# Lines that are drawn at once and sorted by width, so that a batch is of like widths.
POOL = 16
MEAN, STD = 0.75, 0.25


def normalized(images: Tensor) -> Tensor:
    """(N, 32, W) uint8 to (N, 1, 32, W) float."""
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


def read(logits: Tensor) -> str:
    """The text of the likeliest path, (steps, classes)."""
    path = torch.unique_consecutive(logits.argmax(1)).tolist()
    return "".join(CHARACTERS[i - 1] for i in path if i)


def batches(files: list[str], size: int, draw: random.Random):
    """Batches of like widths without end: images (N, 32, W) uint8, padded with their last column,
    and texts."""
    while True:
        texts = [field(draw) for _ in range(POOL * size)]
        drawn = [(line(text, draw.choice(files), draw), text) for text in texts]
        drawn.sort(key=lambda pair: pair[0].shape[1])
        starts = list(range(0, len(drawn), size))
        draw.shuffle(starts)
        for start in starts:
            chosen = drawn[start : start + size]
            width = chosen[-1][0].shape[1]
            padded = [np.pad(x, ((0, 0), (0, width - x.shape[1])), "edge") for x, _ in chosen]
            yield torch.from_numpy(np.stack(padded)), [text for _, text in chosen]


def loss_of(model: TextLine, images: Tensor, texts: list[str]) -> Tensor:
    """The mean CTC loss a character."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.features(normalized(images).contiguous(memory_format=torch.channels_last))
    hidden, _ = model.rows(features.float().flatten(1, 2).transpose(1, 2))
    steps = F.log_softmax(model.head(hidden), 2).transpose(0, 1)
    targets = torch.tensor([INDEX[character] for text in texts for character in text])
    lengths = torch.tensor([len(text) for text in texts])
    counts = torch.full((len(texts),), len(steps))
    return F.ctc_loss(steps, targets, counts, lengths, blank=0)


def print_exact_match(model: nn.Module, folder: Path) -> None:
    """Says how many lines of a folder with `labels.csv` the model reads without a mistake."""
    model.eval()
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    right = 0
    for row in rows:
        pixels = torch.from_numpy(np.array(Image.open(folder / row["file"]))).unsqueeze(0)
        with torch.inference_mode():
            right += read(model(normalized(pixels))[0]) == row["label"]
    print(f"float exact match on {len(rows)} lines of {folder.name}: {right / len(rows):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "weights.pt")
    parser.add_argument("--evaluate", action="store_true", help="judge --out on test/, train not")
    options = parser.parse_args()

    model = text_line()
    if options.evaluate:
        model.load_state_dict(torch.load(options.out, weights_only=True))
        print_exact_match(model, HERE / "test")
        return
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    model = text_line().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.steps, pct_start=0.15
    )
    drawn = batches(fonts(TRAINING_FONTS), options.batch, random.Random(options.seed))
    start, total = time.perf_counter(), 0.0
    for step in range(1, options.steps + 1):
        loss = loss_of(model, *next(drawn))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step}: loss {total / 100:.4f}, {seconds:.0f} s", flush=True)
            total = 0.0
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            torch.save(state, options.out)
    if (HERE / "test").exists():
        print_exact_match(model, HERE / "test")


if __name__ == "__main__":
    main()
