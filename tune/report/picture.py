"""An allocation as a picture: blocks by kinds of module, bits beside ranks, with their numbers."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from search_spaces.allocation import Allocation
from search_spaces.inventory import Inventory, kinds
from tune.report.figures.allocations import BITS, PALE, RANKS
from tune.report.figures.style import BACKGROUND, BITS_RAMP, RANKS_RAMP, TEXT

CELL, NAMES, NUMBERS, FONT = (40, 18), 34, 34, 11
BLACK, WHITE = TEXT["light"], BACKGROUND["light"]


def allocation_picture(allocation: Allocation, inventory: Inventory) -> np.ndarray:
    """Return the picture, height x width x 3, in bytes of RGB."""
    named = kinds(inventory)
    columns = list(dict.fromkeys(named.values()))
    blocks = sorted({target.block for target in inventory.targets if target.name in named})
    width, height = CELL[0] * len(columns), CELL[1] * len(blocks)
    size = 2 * (NUMBERS + width) + NUMBERS, NAMES + height + CELL[1]
    picture = Image.new("RGB", size, WHITE)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT)
    for side, (title, steps, ramp) in enumerate(
        (("bits", BITS, BITS_RAMP), ("LoRA ranks", RANKS, RANKS_RAMP))
    ):
        left = NUMBERS + side * (width + NUMBERS)
        draw.text((left, 2), title, BLACK, font)
        for place, label in enumerate(_labels(columns)):
            at = left + CELL[0] * place + 1, NAMES - 15
            draw.text(at, label, BLACK, font)
        for row, block in enumerate(blocks):
            draw.text((left - 20, NAMES + CELL[1] * row + 3), str(block), BLACK, font)
        for target in inventory.targets:
            if target.name in named:
                choice = allocation.choices[target.name]
                across, down = columns.index(named[target.name]), blocks.index(target.block)
                corner = left + CELL[0] * across, NAMES + CELL[1] * down
                value = choice.rank if side else choice.bits
                _cell(draw, font, corner, value, steps, ramp)
    return np.asarray(picture)


def _cell(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    corner: tuple[int, int],
    value: int,
    steps: Sequence[int],
    ramp: Sequence[str],
) -> None:
    step = int(np.abs(np.array(steps) - value).argmin())
    end = corner[0] + CELL[0] - 2, corner[1] + CELL[1] - 2
    draw.rectangle((corner, end), ImageColor.getrgb(ramp[step]))
    middle = (corner[0] + end[0]) // 2, (corner[1] + end[1]) // 2
    draw.text(middle, str(value), BLACK if step < PALE else WHITE, font, anchor="mm")


def _labels(columns: Sequence[str]) -> list[str]:
    """Return what fits over cells: the last word of each kind, after an initial where two share
    it.
    """
    last = [column.split(" ")[-1].removesuffix("_proj") for column in columns]
    return [
        (word if last.count(word) == 1 or " " not in column else f"{column[0]}.{word}")[:6]
        for word, column in zip(last, columns, strict=True)
    ]
