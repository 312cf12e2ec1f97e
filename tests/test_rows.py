"""Which row of a denoiser's batch has which mix, on every kind of pipeline: right, or refused before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, MixError
from lora_mixer.engines.denoiser.images import BatchLayout, repeated_rows
from tests.row_pipelines import EXAMPLES, SIZED, Example
from tests.weights import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLOSE = 1e-4
FAR = 1e-3
MIXES = ({"a": 1.0}, {"b": 0.7})
NEGATIVES = ({"b": -0.5}, {"a": 0.4, "b": 0.2})
BROKEN_ALREADY = {"panorama"}
"""Pipelines that mix several prompts up by themselves: no list of mixes can be right."""
ONE_TEXT_FOR_ALL = {"InstructPix2Pix", "perturbed attention", "SDXL perturbed attention"}
"""Those that do not tell which copies are without the prompt, or split them inside of layers."""


class Row:
    """An example with a mixer, the adapters a and b loaded, and the base active."""

    def __init__(self, name: str, example: Example) -> None:
        self.name = name
        self.example = example
        self.made: dict[object, torch.Tensor] = {}
        example.run([0])  # Transformers puts hooks of its own on text encoders at their first call
        self.clean = Snapshot.of(example.pipe)
        self.mixer = LoraMixer(example.mixed)
        for seed, adapter in enumerate("ab"):
            self.mixer.load_lora_weights(self.file(seed), adapter, activate=False)

    def file(self, seed: int) -> dict[str, torch.Tensor]:
        """Write an adapter for attention, feed-forward and convolutions of the denoiser, and attention of text encoders."""
        generator = torch.Generator().manual_seed(seed)
        table = {}
        for part in (self.example.part, "text_encoder", "text_encoder_2"):
            root = getattr(self.example.pipe, part, None)
            if not isinstance(root, nn.Module) or (self.name == "PixArt" and part != self.example.part):
                continue
            for path, module in root.named_modules():
                linear = isinstance(module, nn.Linear) and any(x in path for x in ("attn", "ff", "proj"))
                if not linear and not (
                    isinstance(module, nn.Conv2d) and "conv" in path and module.groups == 1
                ):
                    continue
                if part != self.example.part and "attn" not in path:
                    continue
                out, inner = module.weight.shape[:2]
                kernel = module.weight.shape[2:]
                table[f"{part}.{path}.lora_A.weight"] = (
                    torch.randn(2, inner, *kernel, generator=generator) * 0.3
                )
                up = torch.randn(out, 2, *[1] * len(kernel), generator=generator) * 0.3
                table[f"{part}.{path}.lora_B.weight"] = up
        return table

    def alone(self, number: int, **options: Any) -> torch.Tensor:
        """Make one picture with the mix of its number in the weights; once for each setting."""
        key = (number, *options.items())
        if key not in self.made:
            with self.mixer.applied(MIXES[number], engine="merged"):
                self.made[key] = self.example.run([number], **options)[0]
        return self.made[key]

    def assert_refused(self, numbers: Sequence[int], *, said: str = "mix|negative=", **mixes: Any) -> None:
        """Nothing is denoised, and all is as before afterwards."""
        calls: list[int] = []
        hook = self.example.denoiser.register_forward_hook(lambda *_: calls.append(1))
        with pytest.raises(MixError, match=said), self.mixer.applied(**mixes):
            self.example.run(numbers)
        hook.remove()
        assert calls == []
        self.clean.assert_untouched(self.example.pipe)

    def close(self) -> None:
        """Give the base back, bit for bit."""
        self.mixer.unload_lora_weights()
        self.clean.assert_untouched(self.example.pipe)


@pytest.fixture(scope="module", params=EXAMPLES)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    row = Row(request.param, EXAMPLES[request.param]())
    yield row
    row.close()


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("guided", [True, False])
def test_each_picture_of_a_batch_is_that_of_its_mix_alone(row: Row, guided: bool) -> None:
    if row.name in BROKEN_ALREADY:
        if guided:
            row.assert_refused([0, 1], mix=list(MIXES))
        return

    with row.mixer.applied(list(MIXES)):
        batch = row.example.run([0, 1], guided=guided)

    for number in (0, 1):
        assert gap(batch[number], row.alone(number, guided=guided)) < CLOSE
    assert gap(batch[1], row.alone(0, guided=guided)) > FAR


def test_several_pictures_of_each_prompt_have_its_mix(row: Row) -> None:
    if not row.example.each:
        pytest.skip("this pipeline makes one picture of a prompt")

    with row.mixer.applied(list(MIXES)):
        batch = row.example.run([0, 1], each=2)

    # image to image pairs pictures and prompts by itself: the same batch with one mix for all is what it must be
    for number in (0, 1):
        with row.mixer.applied(MIXES[number], engine="merged"):
            whole = row.example.run([0, 1], each=2)
        for copy in (0, 1):
            place = 2 * number + copy
            assert gap(batch[place], whole[place]) < CLOSE
            assert gap(batch[place], whole[3 - place]) > FAR


def test_more_prompts_than_mixes_are_refused(row: Row) -> None:
    if row.name not in BROKEN_ALREADY:
        row.assert_refused([0, 1, 0, 1], mix=list(MIXES), said="one for each mix")


class Halves:
    """Stands in for a denoiser's forward: runs with the mix of either half in the weights, and takes from each its rows."""

    def __init__(self, row: Row, mixes: tuple[Any, Any]) -> None:
        self.row = row
        self.mixes = mixes
        self.forward = row.example.denoiser.forward
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        halves = self.row.example.halves[self.calls % len(self.row.example.halves)]
        self.calls += 1
        found = []
        for mix in self.mixes:
            self.row.mixer.set_mix(mix, engine="merged")
            output = self.forward(*args, **kwargs)
            found.append(output[0] if isinstance(output, tuple) else output.sample)
        copies = zip(*(one.chunk(len(halves)) for one in found), strict=True)
        joined = torch.cat([pair[half] for pair, half in zip(copies, halves, strict=True)])
        return (joined,) if isinstance(output, tuple) else type(output)(sample=joined)


def without_text(mix: dict[str, float]) -> dict[str, Any]:
    return {name: {"weight": weight, "components": {"te": 0.0}} for name, weight in mix.items()}


def by_halves(row: Row, number: int) -> torch.Tensor:
    if ("halves", number) not in row.made:
        row.made["halves", number] = _by_halves(row, number)
    return row.made["halves", number]


def _by_halves(row: Row, number: int) -> torch.Tensor:
    denoiser = row.example.denoiser
    denoiser.forward = Halves(row, (without_text(MIXES[number]), without_text(NEGATIVES[number])))
    row.mixer.disable_lora()  # which the text is read with
    try:
        return row.example.run([number])[0]
    finally:
        del denoiser.forward
        row.mixer.disable_lora()


def test_the_half_without_the_prompt_has_its_own_mix(row: Row) -> None:
    if row.name in ONE_TEXT_FOR_ALL:
        row.assert_refused([0], mix=MIXES[0], negative=NEGATIVES[0], said="leave negative= out")
        return

    with row.mixer.applied(without_text(MIXES[0]), negative=without_text(NEGATIVES[0])):
        found = row.example.run([0])[0]

    assert gap(found, by_halves(row, 0)) < CLOSE
    assert gap(found, row.alone(0)) > FAR


def test_each_picture_may_have_a_mix_for_its_half_without_the_prompt(row: Row) -> None:
    mixes, negatives = [without_text(m) for m in MIXES], [without_text(m) for m in NEGATIVES]
    if row.name in ONE_TEXT_FOR_ALL | BROKEN_ALREADY:
        row.assert_refused([0, 1], mix=mixes, negative=negatives)
        return

    with row.mixer.applied(mixes, negative=negatives):
        batch = row.example.run([0, 1])

    for number in (0, 1):
        assert gap(batch[number], by_halves(row, number)) < CLOSE


def test_without_guidance_there_is_no_half_without_the_prompt(row: Row) -> None:
    with row.mixer.applied(MIXES[0], negative=NEGATIVES[0]):
        found = row.example.run([0], guided=False)[0]

    assert gap(found, row.alone(0, guided=False)) < CLOSE


# --- loops by hand --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand() -> Iterator[Row]:
    row = Row("SD", EXAMPLES["SD"]())
    yield row
    row.close()


LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TEXTS = torch.randn(4, 77, 12, generator=torch.Generator().manual_seed(2))


def predict(row: Row, rows: Sequence[int], texts: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = row.example.denoiser(LATENTS[list(rows)], 10, TEXTS[list(texts)]).sample
    return found


def test_a_loop_by_hand_has_one_row_for_each_mix_or_says_how_many_copies_there_are(by_hand: Row) -> None:
    alone = []
    for number, mix in enumerate(MIXES):
        with by_hand.mixer.applied(mix):
            alone.append(predict(by_hand, [number, number], [number, number + 2]))

    with by_hand.mixer.applied(list(MIXES)):
        halves = [predict(by_hand, [0, 1], [start, start + 1]) for start in (0, 2)]
        with pytest.raises(MixError, match="guidance_copies"):
            predict(by_hand, [0, 1, 0, 1], [0, 1, 2, 3])
    with by_hand.mixer.applied(list(MIXES), guidance_copies=2):
        both = predict(by_hand, [0, 1, 0, 1], [0, 1, 2, 3])

    for number in (0, 1):
        for half in (0, 1):
            assert gap(halves[half][number], alone[number][half]) < CLOSE
            assert gap(both[2 * half + number], alone[number][half]) < CLOSE


def test_a_loop_by_hand_says_which_half_is_without_the_prompt(by_hand: Row) -> None:
    with (
        by_hand.mixer.applied(MIXES[0], negative=NEGATIVES[0]),
        pytest.raises(MixError, match="guidance_copies"),
    ):
        predict(by_hand, [0, 0], [0, 2])
    with by_hand.mixer.applied(MIXES[0], negative=NEGATIVES[0], guidance_copies=2):
        found = predict(by_hand, [0, 0], [0, 2])
        with pytest.raises(MixError, match="both halves in one call"):
            predict(by_hand, [0], [0])

    for place, mix in enumerate((NEGATIVES[0], MIXES[0])):
        with by_hand.mixer.applied(mix):
            assert gap(found[place], predict(by_hand, [0, 0], [0, 2])[place]) < CLOSE


PICTURES = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(3))
SAID_WRONGLY = {  # mixes, copies that were said, pictures of the rows, times each row, negative
    "interleaved": (2, 2, [0, 0, 1, 1], 10, False),
    "two of each and no guidance": (2, 2, [0, 1, 2, 3], 10, False),
    "one copy of two": (2, 1, [0, 1, 0, 1], 10, False),
    "one copy of three": (2, 1, [0, 1, 0, 1, 0, 1], 10, False),
    "two copies of four": (2, 2, [0, 1] * 4, 10, False),
    "two of each, guided": (2, 1, [0, 1, 2, 3, 0, 1, 2, 3], 10, False),
    "three, interleaved": (3, 2, [0, 0, 1, 1, 2, 2], 10, False),
    "no half without a prompt": (1, 2, [0, 1], 10, True),
    "same noise, from the second step on": (2, 1, [0, 0, 0, 0], [10, 5], False),
}


@pytest.mark.parametrize("name", SAID_WRONGLY)
def test_copies_that_a_loop_states_and_its_rows_contradict_are_refused(by_hand: Row, name: str) -> None:
    count, copies, rows, times, negative = SAID_WRONGLY[name]
    texts = torch.randn(len(rows), 77, 12, generator=torch.Generator().manual_seed(4))
    sample = PICTURES[rows]
    how: dict[str, Any] = {"negative": NEGATIVES[0]} if negative else {}

    def call(sample: torch.Tensor, time: int) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = by_hand.example.denoiser(sample, time, texts).sample
        return found

    mixes = [*MIXES, {"a": 0.1}][:count]
    with by_hand.mixer.applied(mixes if count > 1 else mixes[0], guidance_copies=copies, **how):
        if isinstance(times, list):
            first = call(sample, times[0])
            sample = torch.cat([first[:1], first[-1:]] * 2)
        with pytest.raises(MixError, match=f"guidance_copies={copies}.*behind the other"):
            call(sample, 10 if isinstance(times, int) else times[1])


SAID_RIGHTLY = {
    "two copies": (2, 2, [0, 1, 0, 1]),
    "two copies of two each": (2, 2, [0, 1, 2, 3, 0, 1, 2, 3]),
    "three copies": (2, 3, [0, 1, 0, 1, 0, 1]),
    "no guidance, two each": (2, 1, [0, 1, 2, 3]),
    "one noise": (2, 2, [0, 0, 0, 0]),
    "seeds again for each of three": (3, 1, [0, 1, 0, 1, 0, 1]),
    "a call for each half": (2, 2, [0, 1]),
}


@pytest.mark.parametrize("name", SAID_RIGHTLY)
def test_copies_that_a_loop_states_truly_give_each_row_its_mix(by_hand: Row, name: str) -> None:
    count, copies, rows = SAID_RIGHTLY[name]
    texts = torch.randn(len(rows), 77, 12, generator=torch.Generator().manual_seed(4))
    mixes = [*MIXES, {"a": 0.1}][:count]
    each = max(1, len(rows) // (count * copies))
    own = [n for n in range(count) for _ in range(each)]
    own *= len(rows) // len(own)

    def call() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = by_hand.example.denoiser(PICTURES[rows], 10, texts).sample
        return found

    with by_hand.mixer.applied(mixes, guidance_copies=copies):
        found = call()
    for number, mix in enumerate(mixes):
        with by_hand.mixer.applied(mix):
            alone = call()
        at = [place for place, which in enumerate(own) if which == number]
        assert gap(found[at], alone[at]) < CLOSE


@pytest.mark.parametrize("copies", [1, 3])
def test_a_pipeline_that_tells_its_copies_has_the_last_word(by_hand: Row, copies: int) -> None:
    with by_hand.mixer.applied(list(MIXES), guidance_copies=2):
        right = by_hand.example.run([0, 1])
    with by_hand.mixer.applied(list(MIXES)):
        assert gap(by_hand.example.run([0, 1])[0], right[0]) < CLOSE
    with (
        by_hand.mixer.applied(list(MIXES), guidance_copies=copies),
        pytest.raises(MixError, match=f"guidance_copies={copies}"),
    ):
        by_hand.example.run([0, 1])


def test_a_pipeline_that_does_not_say_what_it_makes_is_no_better_than_a_loop(by_hand: Row) -> None:
    class Silent:
        def __init__(self) -> None:
            self.components = by_hand.example.pipe.components
            self.unet = by_hand.example.denoiser

        def draw(self, rows: Sequence[int]) -> torch.Tensor:
            return predict(by_hand, rows, rows)

    with by_hand.mixer.applied(list(MIXES)):
        Silent().draw([0, 1])
        with pytest.raises(MixError, match="Silent that does not say"):
            Silent().draw([0, 1, 0, 1])


def test_pictures_that_start_from_the_same_noise_are_still_told_apart(by_hand: Row) -> None:
    def run(numbers: Sequence[int]) -> torch.Tensor:
        same = [torch.Generator().manual_seed(5) for _ in numbers]
        found: torch.Tensor = by_hand.example.pipe(
            ["a castle"] * len(numbers), num_inference_steps=2, output_type="latent", generator=same, **SIZED
        ).images
        return found

    with by_hand.mixer.applied(list(MIXES)):
        batch = run([0, 1])

    for number, mix in enumerate(MIXES):
        with by_hand.mixer.applied(mix):
            assert gap(batch[number], run([0])[0]) < CLOSE


# --- pure functions ---------------------------------------------------------------------------------------------------


def test_gains_of_layers_that_see_a_part_of_the_batch_or_more_of_it() -> None:
    copies = BatchLayout(2, 1, (True, False, False))
    same, other = copies.rows(negatives=False), copies.rows(negatives=True)
    gains = torch.arange(6.0)[:, None]

    assert repeated_rows(gains, same, 6, 4).flatten().tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert repeated_rows(gains, same, 6, 12).flatten().tolist() == [n // 2 for n in range(12)]  # type: ignore[union-attr]
    assert repeated_rows(gains, same, 6, 3) is None
    assert repeated_rows(gains, same, 6, 9) is None
    assert repeated_rows(gains, other, 6, 4) is None
    assert repeated_rows(gains, None, 6, 4) is None


def test_a_mask_is_no_matter_for_texts_alone_and_in_a_list() -> None:
    row = Row("SD", EXAMPLES["SD"]())
    pipe, mixer = row.example.pipe, row.mixer
    ids = torch.tensor([[512, 5, 6, 513], [512, 7, 8, 513]])
    nowhere = {"a": {"weight": 0.8, "mask": torch.zeros(1, 8, 8)}}

    def read(mix: Any) -> torch.Tensor:
        with mixer.applied(mix), torch.no_grad():
            found: torch.Tensor = pipe.text_encoder(ids)[0]
        return found

    plain = read({"a": 0.8})
    assert gap(plain, read({})) > FAR
    assert gap(read(nowhere), plain) < CLOSE
    assert gap(read([nowhere, {"a": 0.8}]), plain) < CLOSE
    row.close()
