"""
Weights in place: a picture that says where an adapter works, white (1) where it does and black (0) where it does not.

A mask is known by its content, so that a file and the same picture in memory are equal, and a mix that was written down
finds out when its file has changed. How masks are scaled to layers is the engines' affair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.mixes.reading import Reading
from lora_mixer.parsing.files import read_regular
from lora_mixer.parsing.image_bounds import most_pixels, open_picture
from lora_mixer.wording import first_line, number_text, shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float32]

MASK_KEYS = ("path", "digest", "feather")
_FRAMES_AT_MOST = 4096
_BYTES_AT_MOST = 1 << 29
_FILM = 1 << 25
"""Pixels of all frames of a film that are read whatever its file is: 81 of 832 x 480, in black and white, are some kilobytes."""
_FEATHER_AT_MOST = 16_384
"""Pixels: the longest side of a picture that is made."""
_NOISE = 1e-10
"""Above what a Fourier transform leaves of nothing, below what a pixel of 1/255 gives to the farthest neighbour of a feather."""
_AT_ONCE = 1 << 18
"""Values that are worked on at once, where twice as many bits are needed for it."""


@dataclass(frozen=True)
class Mask:
    """
    A reference to a picture.

    Attributes:
        digest: SHA-256 of the picture's size and values (64 hexadecimal digits).
        feather: The standard deviation, in pixels of the picture, by which its edges are softened.
        path: The file that it comes from, or None; it does not count in comparisons.
        picture: The values, (height, width) or, for films, (frames, height, width), from 0 to 1; None where a written mask
            has not met its picture yet.

    Example:
        >>> import numpy as np
        >>> left = np.zeros((4, 8), dtype=np.float32)
        >>> left[:, :4] = 1
        >>> Mask.of(left) == Mask.of((left * 255).astype(np.uint8)), Mask.of(left).load().mean()
        (True, np.float32(0.5))
        >>> from lora_mixer import Mix
        >>> whole = Mask.of([[0.0, 1.0], [0.0, 1.0]])
        >>> sorted(whole.to_spec()), sorted(whole.meaning())
        (['digest'], ['digest', 'feather'])
    """

    digest: str
    feather: float = 0.0
    path: str | None = field(default=None, compare=False)
    picture: FloatArray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the values."""
        reading = Reading()
        if not _is_digest(self.digest):
            reading.problem(
                "digest", f"expected 64 hexadecimal digits, got {shown(self.digest)}; Mask.of finds them."
            )
        object.__setattr__(self, "feather", reading.number("feather", self.feather, 0, _FEATHER_AT_MOST))
        reading.finish("mask")

    @classmethod
    def of(cls, source: object, feather: float | None = None) -> Mask:
        """
        Make a mask from a picture.

        Args:
            source: A path, a PIL picture (its grey values count), an array or tensor of (height, width) with booleans,
                bytes 0 to 255 or floats 0 to 1, a list of these with one for each frame of a film (as many as there are, spread
                over its length), a film of pictures in one file (GIF, PNG, WebP), a dict as ``to_spec`` gives it, or a mask.
            feather: How soft the edges are; None keeps what the source says.

        Returns:
            The mask.

        Raises:
            MixError: There is no such file, or its content is not a mask.
        """
        reading = Reading()
        mask = read_mask(source, "", reading)
        reading.finish("mask")
        if mask is None or feather is None:
            return mask or cls("0" * 64)
        return cls(mask.digest, feather, mask.path, mask.picture)

    def load(self) -> FloatArray:
        """
        Return the picture with its edges softened.

        Returns:
            Values from 0 to 1, (height, width), or (frames, height, width) where there are several.

        Raises:
            MixError: The picture is not here, or the file is not the one it was.
        """
        reading = Reading()
        picture = self.picture
        if picture is None and self.path is not None:
            picture = _read_file(self.path, "", reading)
            if picture is not None and _digest(picture) != self.digest:
                reading.problem(
                    "", f'the picture "{self.path}" is not the one this mask was made of; make a new mask.'
                )
        elif picture is None:
            reading.problem(
                "", "only the digest of this mask was written down; make the mask again from its picture."
            )
        reading.finish("mask")
        return _softened(picture, self.feather)

    def to_spec(self) -> dict[str, object]:
        """
        Return the plain form; a picture that was only in memory is not in it.

        Returns:
            The path if there is one, the digest, and the feather if there is any.
        """
        spec: dict[str, object] = {} if self.path is None else {"path": self.path}
        spec["digest"] = self.digest
        return {**spec, "feather": self.feather} if self.feather else spec

    def meaning(self) -> object:
        """
        Return a plain form that is the same for every way to say the same.

        Returns:
            The digest and the feather.
        """
        return {"digest": self.digest, "feather": self.feather}

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the picture when a mask goes to another process."""
        return Mask, (self.digest, self.feather, self.path, self.picture)


def read_mask(source: object, where: str, reading: Reading) -> Mask | None:
    """Read a mask in any form."""
    if isinstance(source, Mask):
        return source
    if reading.masks is not None:
        return _read_known(source, where, reading, reading.masks)
    if isinstance(source, Mapping):
        return _read_dict(source, where, reading)
    path = reading.placed(str(source)) if isinstance(source, (str, Path)) else None
    picture = _read_array(source, where, reading) if path is None else _read_file(path, where, reading)
    return None if picture is None else Mask(_digest(picture), 0.0, path, picture)


def _read_dict(spec: Mapping[Any, object], where: str, reading: Reading) -> Mask | None:
    before = len(reading.problems)
    for key in spec:
        if key not in MASK_KEYS:
            reading.unknown_key(where, key, MASK_KEYS)
    feather = reading.number(f"{where}.feather", spec.get("feather", 0.0), 0, _FEATHER_AT_MOST)
    path, digest = spec.get("path"), spec.get("digest")
    if not (path is None or isinstance(path, str)) or (path is None and digest is None):
        reading.problem(where, f'expected a "path" or a "digest", got {shown(dict(spec))}.')
        return None
    if len(reading.problems) > before:
        return None
    if digest is None:
        plain = read_mask(path, where, reading)
        return plain and Mask(plain.digest, feather, plain.path, plain.picture)
    if not isinstance(digest, str) or not _is_digest(digest):
        reading.problem(f"{where}.digest", f"expected 64 hexadecimal digits, got {shown(digest)}.")
        return None
    return Mask(digest, feather, None if path is None else reading.placed(path))


def _read_known(source: object, where: str, reading: Reading, masks: Mapping[str, object]) -> Mask | None:
    """Read a mask that may only be one of those given; nothing in it is taken for a path."""
    spec: Mapping[Any, object] = source if isinstance(source, Mapping) else {"digest": source}
    digest = spec.get("digest")
    feather = reading.number(f"{where}.feather", spec.get("feather", 0.0), 0, _FEATHER_AT_MOST)
    picture = masks.get(digest) if isinstance(digest, str) and _is_digest(digest) else None
    if picture is None or "path" in spec:
        reading.problem(
            where, "expected the digest of a mask that is here; masks are not opened by path: paint it again."
        )
        return None
    known = Mask.of(picture)
    return Mask(known.digest, feather, None, known.picture if known.picture is not None else known.load())


def _read_file(path: str, where: str, reading: Reading) -> FloatArray | None:
    try:
        raw = read_regular(path, _BYTES_AT_MOST)
        with open_picture(raw) as picture:
            count, most = getattr(picture, "n_frames", 1), most_pixels(len(raw))
            most = max(most, _FILM) if count > 1 else most
            if count > _FRAMES_AT_MOST or count * picture.width * picture.height > most:
                reading.problem(
                    where,
                    f'"{path}" has {count} frames of {picture.width}x{picture.height}; a mask has at most {_FRAMES_AT_MOST} frames, and '
                    f"a file of {len(raw)} bytes at most {most} pixels in all: make it smaller, masks are scaled to layers anyway.",
                )
                return None
            return _read_levels(picture, count)
    except FileNotFoundError:
        reading.problem(where, f'there is no picture "{path}".')
    except Exception as error:  # noqa: BLE001 -- whatever a decoder meets in a stranger's file
        reading.problem(where, f'"{path}" is not a picture that can be read: {first_line(error, 200)}.')
    return None


def _read_levels(picture: Any, count: int) -> FloatArray:
    """Return the grey values of a file's frames, of which one is decoded at a time."""
    import numpy as np
    from PIL import ImageSequence

    shape = (picture.height, picture.width)
    values: FloatArray = np.empty((count, *shape) if count > 1 else shape, dtype=np.float32)
    for place, frame in enumerate(ImageSequence.Iterator(picture)):
        np.divide(np.asarray(frame.convert("L")), np.float32(255), out=values[place] if count > 1 else values)
    values.setflags(write=False)
    return values


def _read_array(source: Any, where: str, reading: Reading) -> FloatArray | None:
    import numpy as np

    if isinstance(source, list | tuple) and source and all(_is_picture(each) for each in source):
        return _read_frames(source, where, reading)
    if hasattr(source, "convert") and hasattr(source, "getbands"):
        source = source.convert("L")
    if hasattr(source, "detach"):
        tensor = source.detach().cpu()
        # numpy has no bfloat16.
        source = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    array = np.asarray(source)
    squeezed = array.reshape([size for size in array.shape if size != 1]) if array.ndim > 2 else array
    if squeezed.ndim != 2 or not squeezed.size or squeezed.dtype.kind not in "buif":
        what = f"shape {array.shape}, {array.dtype}" if array.ndim else shown(source)
        reading.problem(
            where, f"expected a path, a list of frames, a picture or numbers of (height, width), got {what}."
        )
        return None
    values: FloatArray = squeezed.astype(np.float32) / np.float32(255 if squeezed.dtype == np.uint8 else 1)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        low, high = number_text(float(values.min())), number_text(float(values.max()))
        reading.problem(where, f"expected values from 0 to 1 (or bytes), got {low} to {high}.")
        return None
    values.setflags(write=False)
    return values


def _is_picture(each: Any) -> bool:
    return hasattr(each, "getbands") or (hasattr(each, "shape") and len(each.shape) > 1)


def _read_frames(frames: Any, where: str, reading: Reading) -> FloatArray | None:
    import numpy as np

    read = [_read_array(each, f"{where}[{number}]", reading) for number, each in enumerate(frames)]
    known = [each for each in read if each is not None]
    if len(known) < len(read):
        return None
    if len({each.shape for each in known}) > 1:
        sizes = ", ".join(dict.fromkeys(f"{each.shape[1]}x{each.shape[0]}" for each in known))
        reading.problem(where, f"expected frames of one size, got {sizes}.")
        return None
    values: FloatArray = np.stack(known) if len(known) > 1 else known[0]
    values.setflags(write=False)
    return values


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _digest(picture: FloatArray) -> str:
    # Rounded to 16 bits, so that 8-bit pictures are the same through every route of floats.
    digest = hashlib.sha256(f"{'x'.join(map(str, picture.shape))}:".encode())
    flat = picture.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        levels = (flat[start : start + _AT_ONCE].astype("float64") * 65535).round().astype("<u2")
        digest.update(levels.tobytes())
    return digest.hexdigest()


def _softened(picture: Any, feather: float) -> FloatArray:
    import numpy as np

    if not feather:
        return picture  # type: ignore[no-any-return]
    soft: FloatArray = np.array(picture)
    for axis in (soft.ndim - 2, soft.ndim - 1):
        lines = np.moveaxis(soft, axis, -1)
        kernel = _kernel(feather, lines.shape[-1])
        radius = len(kernel) // 2
        size = lines.shape[-1] + 2 * radius
        spectrum = np.fft.rfft(kernel, size)
        for place in np.ndindex(lines.shape[:-2]):
            at_once = max(1, _AT_ONCE // size)
            for start in range(0, lines.shape[-2], at_once):
                part: Any = (*place, slice(start, start + at_once))
                block = lines[part]
                padded = np.pad(block.astype(np.float64), ((0, 0), (radius, radius)), mode="edge")
                mixed = np.fft.irfft(np.fft.rfft(padded, size) * spectrum, size)
                mixed[np.abs(mixed) < _NOISE] = 0.0  # where there is nothing near, there is nothing
                block[...] = mixed[:, 2 * radius :]
    return np.clip(soft, 0, 1, out=soft)


def _kernel(feather: float, length: int) -> Any:
    """Return the weights of neighbours; what lies beyond the other edge counts as that edge does."""
    import numpy as np

    radius = max(1, round(3 * feather))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / feather) ** 2)
    weights /= weights.sum()
    beyond = radius - max(1, length - 1)
    if beyond > 0:
        kept = weights[beyond:-beyond].copy()
        kept[0] += weights[:beyond].sum()
        kept[-1] += weights[-beyond:].sum()
        return kept
    return weights
