"""Which rectangle of an image is used for training, and where it lies once the image is resized.

Sizes are (height, width) in pixels. A box is left, upper, right and lower edge in pixels of the upright image.
"""

Size = tuple[int, int]
Box = tuple[float, float, float, float]
MIN_SIDE = 16
"""Pixels a side; a smaller image or crop is refused."""


def middle_box(image: Size, target: Size) -> tuple[Box, Size]:
    """The middle of an image in the shape of the target, as large as it goes, and its (top, left) once it has the
    target's size, as in diffusers' SDXL training script."""
    (height, width), (H, W) = image, target
    scale = max(W / width, H / height)
    fitted = (max(W, round(width * scale)), max(H, round(height * scale)))
    left, top = round((fitted[0] - W) / 2), round((fitted[1] - H) / 2)
    # pixels of the file for one of the resized image, which is never made
    x, y = width / fitted[0], height / fitted[1]
    return (left * x, top * y, min((left + W) * x, width), min((top + H) * y, height)), (top, left)


def chosen_box(image: Size, target: Size, crop: tuple[int, int, int]) -> tuple[Box, Size]:
    """The rectangle of a crop x, y, side: `side` is its width, its height follows from the target's shape. And its
    (top, left) once it has the target's size.

    Raises: ValueError: it is not within the image, or under MIN_SIDE pixels a side.
    """
    (height, width), (x, y, side) = image, crop
    tall = side * target[0] / target[1]
    if min(side, tall) < MIN_SIDE:
        raise ValueError(f"the side of crop={x},{y},{side} is under {MIN_SIDE} pixels: use {MIN_SIDE} or more")
    if x + side > width or y + tall > height:
        name = "side" if tall == side else f"side * {target[0] / target[1]:g}"
        has = f"the image has {width} x {height} pixels"
        limits = f"x + side is at most {width}, y + {name} at most {height}"
        raise ValueError(f"crop={x},{y},{side} reaches beyond the image: {has}, {limits}")
    scale = target[1] / side
    return (x, y, x + side, y + tall), (round(y * scale), round(x * scale))
