"""Draws lines of printed field text: what stands on forms, in many typefaces, as a scanner sees it.

Fonts are found by the file names that Debian's packages install; those of the test lines are of
other families than those that the network is trained with.
"""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FOLDER = Path("/usr/share/fonts")
HEIGHT = 32
# Widths are multiples of it, so that lines of one width can be run together.
STEP = 16
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ .,-/:€"
# Patterns of file names below FOLDER, by the Debian package.
TRAINING_FONTS = {
    "fonts-dejavu-core": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono*.ttf",
                          "DejaVuSerif*.ttf"),
    "fonts-dejavu-extra": ("DejaVuSansCondensed*.ttf",),
    "fonts-freefont-ttf": ("FreeSans*.ttf", "FreeMono*.ttf", "FreeSerif*.ttf"),
    "fonts-open-sans": ("OpenSans-Regular.ttf", "OpenSans-Semibold.ttf", "OpenSans-Cond*.ttf"),
    "fonts-roboto-unhinted": ("Roboto-Regular.ttf", "Roboto-Medium.ttf", "RobotoCondensed-R*.ttf"),
    "fonts-lato": ("Lato-Regular.ttf", "Lato-Bold.ttf", "Lato-Light.ttf"),
    "fonts-hack": ("Hack-Regular.ttf", "Hack-Bold.ttf"),
    "fonts-inconsolata": ("Inconsolata.otf",),
    "fonts-crosextra-caladea": ("Caladea-Regular.ttf", "Caladea-Bold.ttf"),
    "fonts-b612": ("B612-Regular.otf", "B612Mono-Regular.otf"),
    "fonts-urw-base35": ("NimbusSansNarrow-Regular.otf", "URWBookman-Light.otf",
                         "URWGothic-Book.otf", "P052-Roman.otf", "C059-Roman.otf"),
    "fonts-jetbrains-mono": ("JetBrainsMono-Regular.ttf", "JetBrainsMono-Bold.ttf"),
    "fonts-cabin": ("Cabin-Regular.otf",),
    "fonts-linuxlibertine": ("LinLibertine_R.otf", "LinBiolinum_R.otf"),
}  # fmt: skip
TEST_FONTS = {
    "fonts-liberation2": ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf",
                          "LiberationSerif-Regular.ttf", "LiberationMono-Regular.ttf"),
    "fonts-crosextra-carlito": ("Carlito-Regular.ttf", "Carlito-Bold.ttf"),
    "fonts-cantarell": ("Cantarell-Regular.otf",),
    "fonts-courier-prime": ("Courier Prime.otf", "Courier Prime Bold.otf"),
    "fonts-firacode": ("FiraCode-Regular.ttf",),
}  # fmt: skip
# Letters and digits that print alike are not mixed in one code, as on number plates.
_CODE = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_NAMES = (
    "ANDERSON BAKKER BAUER BIANCHI COSTA DUBOIS ERIKSSON FERRARI FISCHER GARCIA HANSEN HOFFMANN "
    "IVANOV JANSEN JENSEN JOHNSON KOWALSKI LEFEBVRE LOPEZ MARTIN MEYER MORETTI MUELLER NIELSEN "
    "NOVAK OLSEN PETROV QUINN RICHTER ROSSI SANTOS SCHMIDT SILVA SMITH TAYLOR URBAN VASQUEZ WAGNER "
    "WEBER WILLIAMS XAVIER YILMAZ ZIMMERMANN"
)
_WORDS = (
    "ACCOUNT AMOUNT AVENUE BANK BOX BRIDGE CASH CENTRAL CHURCH CITY CLAIM CUSTOMER DATE DUE EAST "
    "FIELD FLOOR GATE GROSS HIGH HILL HOTEL INVOICE ITEM JUNCTION KING LANE MARKET NET NORTH "
    "NUMBER OFFICE ORDER PARK PAYMENT POLICY PORT QUANTITY QUAY QUEEN RATE RENT RIVER ROAD SHIP "
    "SOUTH SQUARE STATION STREET TAX TOTAL TRANSFER UNIT VALUE VAT VIEW WEST WHARF YARD ZONE"
)
_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"


def fonts(packages: dict[str, Sequence[str]], folder: Path = FOLDER) -> list[str]:
    """The files of the packages' fonts, sorted.

    Raises SystemExit that names the packages which are not installed.
    """
    found: list[str] = []
    missing = []
    for package, patterns in packages.items():
        files = {str(path) for pattern in patterns for path in folder.rglob(pattern)}
        found += sorted(files)
        missing += [] if files else [package]
    if missing:
        raise SystemExit(f"apt-get install {' '.join(missing)}")
    return [name for name in found if "Oblique" not in name and "Italic" not in name]


def field(draw: random.Random) -> str:
    """What stands in one field: an amount, a date, a code, a number, a name or words."""
    kind = draw.randrange(8)
    if kind == 0:
        return _amount(draw)
    if kind == 1:
        return _date(draw)
    if kind == 2:
        size = draw.randint(2, 4)
        return "-".join("".join(draw.choices(_CODE, k=size)) for _ in range(draw.randint(2, 4)))
    if kind == 3:
        return "".join(draw.choices("0123456789", k=draw.randint(4, 14)))
    if kind == 4:
        return f"{draw.choice(_NAMES.split())}, {draw.choice('ABCDEFGHIJKLMNOPRSTUVW')}."
    if kind == 5:
        return f"{draw.choice(_WORDS.split())} {draw.choice(_WORDS.split())} {draw.randint(1, 999)}"
    if kind == 6:  # every letter beside every other
        letters = [c for c in CHARACTERS if c.isalpha()]
        return "".join(draw.choices(letters, k=draw.randint(3, 12)))
    hour, minute = draw.randrange(24), draw.randrange(60)
    return (
        f"{hour:02}:{minute:02}"
        if draw.random() < 0.5
        else f"{draw.choice(_WORDS.split())}: {hour}"
    )


def _amount(draw: random.Random) -> str:
    whole = draw.randrange(10 ** draw.randint(1, 6))
    cents = draw.randrange(100)
    text = f"{whole:,}.{cents:02}"
    if draw.random() < 0.5:  # as most of Europe writes it
        text = text.translate(str.maketrans(",.", ".,"))
    text = "-" + text if draw.random() < 0.1 else text
    return draw.choice((text, f"€ {text}", f"{text} €", f"EUR {text}"))


def _date(draw: random.Random) -> str:
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1930, 2035)
    return draw.choice((
        f"{day:02}.{month:02}.{year}",
        f"{month:02}/{day:02}/{year}",
        f"{year}-{month:02}-{day:02}",
        f"{day} {_MONTHS.split()[month - 1]} {year}",
    ))  # fmt: skip


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def line(text: str, file: str, draw: random.Random) -> np.ndarray:
    """One line of text as a scanner sees it: (HEIGHT, a multiple of STEP) uint8, dark on light,
    slanted, blurred and noisy."""
    font = _font(file, 2 * draw.randint(17, 24))  # twice as large as it will be
    left, top, right, bottom = font.getbbox(text)
    slant = draw.uniform(-0.25, 0.35) if draw.random() < 0.5 else 0.0
    margins = [draw.randint(6, 24), draw.randint(6, 24)]
    lean = int(abs(slant) * 2 * HEIGHT)
    width = -(-(right - left + sum(margins) + lean) // (2 * STEP)) * 2 * STEP
    canvas = Image.new("L", (width, 2 * HEIGHT), 0)
    place = (2 * HEIGHT - (bottom - top)) // 2 - top
    jitter = draw.randint(-5, 5)
    start = margins[0] - left + (lean // 2)
    ImageDraw.Draw(canvas).text((start, place + jitter), text, 255, font)
    # x' = x + slant * (y - middle), and a turn that a scanner's feed gives.
    turn = draw.uniform(-0.012, 0.012)
    matrix = (1, slant, -slant * HEIGHT, turn, 1, -turn * width / 2)
    smooth = Image.Resampling.BILINEAR
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, matrix, smooth)
    canvas = canvas.reduce(2)
    if draw.random() < 0.6:
        canvas = canvas.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 1.1)))
    return _scanned(np.asarray(canvas, np.float32) / 255, draw)


def _scanned(ink: np.ndarray, draw: random.Random) -> np.ndarray:
    """Ink from 0 to 1 as grey levels of paper, with noise."""
    noise = np.random.default_rng(draw.getrandbits(32))
    paper, black = draw.uniform(185, 255), draw.uniform(0, 95)
    pixels = paper + (black - paper) * ink
    pixels += noise.standard_normal(ink.shape, np.float32) * draw.uniform(1, 16)
    if draw.random() < 0.15:  # dirt
        spots = noise.random(ink.shape) < 0.004
        pixels[spots] = black
    return pixels.clip(0, 255).astype(np.uint8)
