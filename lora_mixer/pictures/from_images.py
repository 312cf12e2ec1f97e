"""Pictures out of pictures: img2img, inpainting, ControlNet and a second, larger pass, with the parts of one pipeline."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.parsing.files import read_regular
from lora_mixer.parsing.image_bounds import most_pixels, open_picture, refuse_heavy_exif
from lora_mixer.pictures.ip_adapters import has_ip_adapter, scaled
from lora_mixer.problem import Remedy
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

    from lora_mixer.pictures.request import PictureRequest

SECOND_STRENGTH = 0.5
"""How much a second pass changes where nothing is said."""
_BYTES_AT_MOST, _SIDE = 256 << 20, 8


class ImageTasks:
    """
    The pipelines that serve requests with images, made of one pipeline's parts.

    Args:
        pipe: The pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        """Make none yet."""
        self.pipe = pipe
        self._made: dict[str, Any] = {}
        self._control = getattr(pipe, "controlnet", None) is not None

    def pipe_for(self, request: PictureRequest) -> Any:
        """
        Return the pipeline that a request is made with.

        Raises:
            PictureError: When diffusers has none of that kind for this model, or something is missing.
        """
        if request.image is None:
            for name in ("mask_image", "strength"):
                if getattr(request, name) is not None:
                    raise PictureError("needs an image to start from", field=name)
        if (request.control_image is not None) != self._control:
            raise PictureError(
                "needs a model that was loaded with a ControlNet"
                if request.control_image is not None
                else "the model has a ControlNet, which needs one",
                field="control_image",
                remedy=Remedy.option("name one", "controlnet") if request.control_image is not None else None,
            )
        if (request.ip_adapter_image is not None) != has_ip_adapter(self.pipe):
            raise PictureError(
                "needs a model that was loaded with an IP-Adapter"
                if request.ip_adapter_image is not None
                else "the model has an IP-Adapter, which needs one",
                field="ip_adapter_image",
                remedy=Remedy.option("name one", "ip_adapter")
                if request.ip_adapter_image is not None
                else None,
            )
        if request.ip_adapter_image is None and request.ip_adapter_scale is not None:
            raise PictureError("needs an ip_adapter_image", field="ip_adapter_scale")
        if request.second_pass is None and request.second_pass_strength is not None:
            raise PictureError("needs a second_pass, such as 1.5", field="second_pass_strength")
        if request.image is None:
            return self.pipe
        return self._of_kind("inpainting" if request.mask_image is not None else "image to image")

    def second(self) -> Any:
        """Return the pipeline of second passes."""
        return self._of_kind("image to image")

    def _of_kind(self, kind: str) -> Any:
        if kind not in self._made:
            import diffusers

            makers: dict[str, Any] = {
                "image to image": diffusers.AutoPipelineForImage2Image,
                "inpainting": diffusers.AutoPipelineForInpainting,
            }
            try:
                made = makers[kind].from_pipe(self.pipe)
            except (ValueError, TypeError, AttributeError) as error:
                raise PictureError(
                    f"{type(self.pipe).__name__} has no pipeline for {kind} in this diffusers"
                ) from error
            self._made[kind] = made
        return self._made[kind]

    def check(self, request: PictureRequest) -> None:
        """
        Read the images of a request once, so that what is wrong is told before anything is made.

        Raises:
            PictureError: With the image that cannot be used.
        """
        if request.image is not None or request.control_image is not None:
            self._images(request)
        if request.ip_adapter_image is not None:
            read_image(request.ip_adapter_image, "ip_adapter_image")

    @contextmanager
    def shown(self, request: PictureRequest) -> Iterator[dict[str, Any]]:
        """Give the IP-Adapter its strength, and the argument with its image; put the strength back."""
        if request.ip_adapter_image is None:
            yield {}
            return
        scale = 1.0 if request.ip_adapter_scale is None else request.ip_adapter_scale
        with scaled(self.pipe, scale):
            yield {"ip_adapter_image": read_image(request.ip_adapter_image, "ip_adapter_image")}

    def arguments(self, batch: Sequence[PictureRequest], pipe: Any) -> dict[str, Any]:
        """Return the images of a batch as the pipeline takes them."""
        takes = inspect.signature(pipe.__call__).parameters
        read = [self._images(request) for request in batch]
        arguments: dict[str, Any] = {}
        for name in ("image", "mask_image"):
            if name in read[0]:
                arguments[name] = [images[name] for images in read]
        if "control_image" in read[0]:
            argument = "control_image" if "control_image" in takes else "image"
            arguments[argument] = [images["control_image"] for images in read]
        if "image" in read[0]:
            size = read[0]["image"].size
            arguments |= {
                key: value for key, value in zip(("width", "height"), size, strict=True) if key in takes
            }
        return arguments

    def _images(self, request: PictureRequest) -> dict[str, Image]:
        images: dict[str, Image] = {}
        size = (request.width, request.height)
        if request.image is not None:
            first = read_image(request.image, "image")
            if request.mask_image is not None:
                mask = read_image(request.mask_image, "mask_image", "L")
                if mask.size != first.size:
                    raise PictureError(
                        f"{mask.width}x{mask.height} pixels, expected the {first.width}x{first.height} of the image",
                        field="mask_image",
                    )
                images["mask_image"] = _sized(mask, size)
            images["image"] = _sized(first, size)
            size = images["image"].size
        if request.control_image is not None:
            images["control_image"] = _sized(read_image(request.control_image, "control_image"), size)
        return images


def larger(images: Sequence[Image], scale: float) -> list[Image]:
    """Enlarge finished pictures for a second pass, to sides that pipelines take."""
    from PIL.Image import Resampling

    width, height = (max(_SIDE, round(side * scale / _SIDE) * _SIDE) for side in images[0].size)
    return [image.resize((width, height), Resampling.LANCZOS) for image in images]


def read_image(path: str, field: str, mode: str = "RGB") -> Image:
    """
    Read an image from a regular file, upright.

    Args:
        path: The file.
        field: The field of the picture that names it.
        mode: ``RGB``, or ``L`` for masks.

    Raises:
        PictureError: When it cannot be read, or is larger than pictures are.
    """
    from PIL import ImageOps

    try:
        raw = read_regular(path, _BYTES_AT_MOST)
        with open_picture(raw) as opened:
            _refuse_large(opened, len(raw), path, field)
            opened.load()  # EXIF may stand behind the pixels
            refuse_heavy_exif(opened)
            return ImageOps.exif_transpose(opened).convert(mode)
    except PictureError:
        raise
    except Exception as error:  # whatever a decoder meets in a damaged file
        reason = getattr(error, "strerror", None) or first_line(error, 160)
        raise PictureError(f"cannot be read: {reason}", field=field, file=path) from error


def _refuse_large(image: Image, size: int, path: str, field: str) -> None:
    most = most_pixels(size)
    if image.width * image.height > most:
        raise PictureError(
            f"has {image.width}x{image.height} pixels, at most {most} are read of a file of {size} bytes",
            field=field,
            file=path,
        )


def _sized(image: Image, size: tuple[int | None, int | None]) -> Image:
    """Return an image in the size asked for, or the nearest below its own that pipelines take."""
    from PIL.Image import Resampling

    wanted = tuple(
        asked or max(_SIDE, side // _SIDE * _SIDE) for asked, side in zip(size, image.size, strict=True)
    )
    return image if image.size == wanted else image.resize((wanted[0], wanted[1]), Resampling.LANCZOS)


def takes(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a pipeline's call."""
    return inspect.signature(pipe.__call__).parameters
