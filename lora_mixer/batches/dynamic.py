"""
Dynamic prompts, by the library of that name: ``{a|b}``, weights ``{3::a|b}``, several ``{2$$a|b|c}``, nesting, variables, wildcards.

What is drawn depends on the picture's own seed alone. Tags of adapters may stand in variants: each picture then has its own mix.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PlanError
from lora_mixer.extras import require
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OPEN = re.compile(r"(?<!\\)[{}]|(?<!\\)\$\{")
_ESCAPES = {"\\{": "\ue000", "\\}": "\ue001"}
_BRACES_AT_MOST, _DEPTH_AT_MOST, _LENGTH_AT_MOST = 300, 20, 20_000


def is_dynamic(text: str) -> bool:
    r"""
    Tell whether a prompt has variants.

    Example:
        >>> is_dynamic("a {red|blue} castle"), is_dynamic(r"a \{red\} castle"), is_dynamic("a castle")
        (True, False, False)
    """
    return _OPEN.search(text) is not None


def draw(text: str, seed: int, values: Mapping[str, Sequence[str]], place: str = "") -> str:
    """
    Draw one prompt.

    Args:
        text: With variants, and with wildcards that ``values`` has.
        seed: The picture's seed.
        values: The wildcards' values by name.
        place: Where the text stands, so that two texts of a picture draw apart.

    Raises:
        PlanError: When braces are not closed, are too many or nested too deeply.
        MissingExtraError: When the library is not installed.

    Example:
        >>> sorted({draw("{a|b}", seed, {}) for seed in range(20)})
        ['a', 'b']
    """
    _check(text)
    context = require("dynamicprompts.sampling_context", "prompts")
    enums = require("dynamicprompts.enums", "prompts")
    digest = hashlib.sha256(f"{seed}\\0{place}\\0{text}".encode("utf-8", "surrogatepass")).digest()
    try:
        sampling = context.SamplingContext(
            default_sampling_method=enums.SamplingMethod.RANDOM,
            wildcard_manager=_manager(values),
            rand=Random(int.from_bytes(digest[:8], "big")),  # noqa: S311 -- a draw, no secret
        )
        sample = next(iter(sampling.sample_prompts(_parsed(text), 1)), "")
    except RecursionError as error:
        raise PlanError(f"variants or wildcards name each other without end in {text[:60]!r}") from error
    except Exception as error:  # whatever the parser finds wrong
        raise PlanError(
            f"{text[:60]!r} is not a dynamic prompt: {first_line(error, 160)}; write \\{{ for a brace itself"
        ) from error
    drawn = str(sample)
    for escape, sign in _ESCAPES.items():
        drawn = drawn.replace(sign, escape[1])
    return drawn


def _check(text: str) -> None:
    depth = deepest = count = 0
    for match in _OPEN.finditer(text):
        count += 1
        depth += 1 if match[0] != "}" else -1
        deepest = max(deepest, depth)
        if depth < 0:
            break
    if depth:
        raise PlanError(
            f"{text[:60]!r}: braces of variants are not closed or not opened; write \\{{ and \\}} for the signs themselves"
        )
    if count > _BRACES_AT_MOST or deepest > _DEPTH_AT_MOST or len(text) > _LENGTH_AT_MOST:
        raise PlanError(
            f"{text[:60]!r}: a prompt with variants has at most {_LENGTH_AT_MOST} characters and {_BRACES_AT_MOST} braces, "
            f"{_DEPTH_AT_MOST} levels deep; got {len(text)}, {count} and {deepest}"
        )


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    for escape, sign in _ESCAPES.items():
        text = text.replace(escape, sign)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it calls pyparsing by its older names
        return require("dynamicprompts.parser.parse", "prompts").parse(text)


_last: tuple[Mapping[str, Sequence[str]], Any] | None = None


def _manager(values: Mapping[str, Sequence[str]]) -> Any:
    """Return the library's view of the wildcards; it is made once for a plan, since lists may be long."""
    global _last  # noqa: PLW0603 -- one plan is written out at a time
    if _last is None or _last[0] is not values:
        manager = require("dynamicprompts.wildcards", "prompts").WildcardManager
        _last = (values, manager(root_map={"": [{name: list(given) for name, given in values.items()}]}))
    return _last[1]
