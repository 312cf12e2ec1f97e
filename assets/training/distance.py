"""How far a picture is from a style's true picture: numpy alone, so that tests can import it.

The sum of five parts, each 0 for equal pictures:
- layout: mean absolute difference of the colours, averaged over blocks of 4 x 4 pixels;
- colours: the sliced Wasserstein distance of the two sets of pixels, wherever they stand;
- texture: mean absolute difference of the local contrast in blocks of 8 x 8 pixels, twice;
- spectrum: mean absolute difference of the logarithms of the brightness's amplitudes, a quarter;
- grid: mean absolute difference of the edge strength by column and by row, three times (blocks,
  dots and ruled lines stand on a grid).
A style is a colour range and a texture before it is an exact shape, so only the first asks for
the same outline.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.floating]  # (height, width, 3) in [0, 1]


def _blocks(x: Picture, side: int) -> Picture:
    h, w, c = x.shape
    cut = x[: h - h % side, : w - w % side]
    return (
        cut.reshape(h // side, side, w // side, side, c)
        .transpose(0, 2, 1, 3, 4)
        .reshape(h // side, w // side, -1, c)
    )


def _directions(n: int = 16) -> Picture:
    rng = np.random.default_rng(0)
    v = rng.normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def layout(a: Picture, b: Picture) -> float:
    return float(np.abs(_blocks(a, 4).mean(2) - _blocks(b, 4).mean(2)).mean())


def colours(a: Picture, b: Picture) -> float:
    d = _directions()
    pa, pb = (np.sort(x.reshape(-1, 3) @ d.T, axis=0) for x in (a, b))
    return float(np.abs(pa - pb).mean())


def texture(a: Picture, b: Picture) -> float:
    return float(2 * np.abs(_blocks(a, 8).std(2) - _blocks(b, 8).std(2)).mean())


def spectrum(a: Picture, b: Picture) -> float:
    def logs(x: Picture) -> Picture:
        light = x.mean(2)
        return np.log(np.abs(np.fft.rfft2(light - light.mean())) / len(x) + 0.02)

    return float(np.abs(logs(a) - logs(b)).mean() / 4)


def grid(a: Picture, b: Picture) -> float:
    def profile(x: Picture) -> Picture:
        across, down = np.abs(np.diff(x, axis=1)).max(2), np.abs(np.diff(x, axis=0)).max(2)
        return np.concatenate([across.mean(0), down.mean(1)])

    return float(3 * np.abs(profile(a) - profile(b)).mean())


def distance(a: Picture, b: Picture) -> float:
    """Of one picture to another; both (height, width, 3) in [0, 1]."""
    return layout(a, b) + colours(a, b) + texture(a, b) + spectrum(a, b) + grid(a, b)


def mean_distance(pictures: Picture, truth: Picture) -> float:
    """Mean over pairs: (n, height, width, 3) each."""
    return float(np.mean([distance(a, b) for a, b in zip(pictures, truth, strict=True)]))


def nearest_distance(pictures: Picture, truth: Picture) -> float:
    """For a subject: each picture to the nearest of the drawings it may be."""
    return float(np.mean([min(distance(a, b) for b in truth) for a in pictures]))
