"""What a mixer holds belongs to the modules: mixers come and go, and the base stays within reach."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, PipelineStateError, ownership
from lora_mixer import mixer as mixer_module
from tests.models import tiny_sd
from tests.small_pipe import SmallPipe, assert_same, mixed, pairs_for, small_pipe, values, written
from tests.weights import Snapshot, components

if TYPE_CHECKING:
    from collections.abc import Callable


def hooks(pipe: Any) -> int:
    """Count the hooks on all modules."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for root in components(pipe).values()
        for module in root.modules()
    )


SCHEDULE = {"a": {"weight": 1.0, "schedule": "0@1,1@0.5"}}


def two_lines(pipe: Any, file: Any, **options: Any) -> LoraMixer:
    """As the README has them."""
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(file, **options)
    return mixer


def test_two_lines_that_are_run_again_and_again_add_one_change() -> None:
    pipe = small_pipe()
    pairs = pairs_for(pipe, 1)
    clean = Snapshot.of(pipe)
    for _ in range(3):  # in a function whose mixer goes with it
        two_lines(pipe, written(pairs), adapter_name="a")
        clean.assert_holds(pipe, mixed((pairs, 1.0)))
    for _ in range(3):  # in a notebook's cell, where the old one goes when the new one is there
        mixer = LoraMixer(pipe)
        mixer.load_lora_weights(written(pairs), adapter_name="a")
        clean.assert_holds(pipe, mixed((pairs, 1.0)))
    mixer.disable_lora()
    clean.assert_untouched(pipe)


def test_without_names_each_run_has_the_next_default_name_and_is_alone_in_effect() -> None:
    pipe = small_pipe()
    one, two = pairs_for(pipe, 1), pairs_for(pipe, 2)
    clean = Snapshot.of(pipe)
    two_lines(pipe, written(one))

    mixer = two_lines(pipe, written(two))

    assert list(mixer.adapters) == ["default_0", "default_1"]
    clean.assert_holds(pipe, mixed((two, 1.0)))
    mixer.set_adapters(["default_0", "default_1"], [0.5, -1.0])
    clean.assert_holds(pipe, mixed((one, 0.5), (two, -1.0)))


def test_the_next_mixer_has_adapters_weights_and_the_way_back() -> None:
    pipe = small_pipe()
    pairs = {"a": pairs_for(pipe, 1), "b": pairs_for(pipe, 2)}
    clean = Snapshot.of(pipe)
    first = LoraMixer(pipe)
    for name, own in pairs.items():
        first.load_lora_weights(written(own), name)
    first.set_adapters(["a", "b"], [0.7, -0.2])
    first.disable_lora()
    infos, reports = dict(first.adapters), dict(first.reports)
    del first

    second = LoraMixer(pipe)

    assert dict(second.adapters) == infos
    assert dict(second.reports) == reports
    assert second.get_active_adapters() == []
    second.enable_lora()
    assert second.get_active_adapters() == ["a", "b"]
    clean.assert_holds(pipe, mixed((pairs["a"], 0.7), (pairs["b"], -0.2)))
    second.unload_lora_weights()
    clean.assert_untouched(pipe)
    assert second.memory().total == 0


@pytest.mark.parametrize("how", ["schedule", "side", "reserved"])
def test_hooks_of_a_mixer_that_is_gone_are_the_next_ones(how: str) -> None:
    pipe = tiny_sd()
    pairs = pairs_for(pipe, 1)
    clean = Snapshot.of(pipe)
    mixer = two_lines(pipe, written(pairs), adapter_name="a")
    if how == "schedule":
        mixer.set_mix(SCHEDULE)
    elif how == "side":
        mixer.set_mix({"a": 0.5}, engine="side")
    else:
        mixer.reserve(rank=8)
    left = hooks(pipe)
    assert left
    said = mixer.mix
    del mixer
    gc.collect()
    assert hooks(pipe) == left

    mixer = LoraMixer(pipe)

    assert mixer.mix == said
    mixer.set_adapters("a", 0.25)
    mixer.release()
    clean.assert_holds(pipe, mixed((pairs, 0.25)))
    mixer.unload_lora_weights()
    assert hooks(pipe) == 0
    clean.assert_untouched(pipe)


@pytest.mark.parametrize("ended", ["unload_lora_weights", "delete_adapters"])
@pytest.mark.parametrize("then", ["release", "reserve", "load"])
def test_room_that_a_mixer_reserved_which_is_gone_is_the_next_ones(ended: str, then: str) -> None:
    pipe = tiny_sd()
    pairs = pairs_for(pipe, 1)
    clean = Snapshot.of(pipe)
    first = two_lines(pipe, written(pairs), adapter_name="a")
    first.reserve(rank=8)
    getattr(first, ended)(*(["a"] if ended == "delete_adapters" else []))
    left = hooks(pipe)
    assert left
    others = [LoraMixer(pipe)]
    for ask in (
        others[0].release,
        others[0].memory,
        lambda: others[0].load_lora_weights(written(pairs), "b"),
    ):
        with pytest.raises(
            PipelineStateError, match=r"another LoraMixer keeps room reserved on unet;.*release\(\)"
        ):
            ask()
    others.clear()
    del first, ask
    gc.collect()

    mixer = LoraMixer(pipe)

    if then != "release":
        mixer.load_lora_weights(written(pairs), "a")
    if then == "load":
        assert hooks(pipe) >= left
        assert not mixer.is_in_parameters  # the mix is in that room
    elif then == "reserve":
        mixer.reserve(rank=4)
    mixer.release()
    assert hooks(pipe) == 0 or then != "release"
    mixer.unload_lora_weights()
    assert hooks(pipe) == 0
    clean.assert_untouched(pipe)
    assert not [name for root in components(pipe).values() for name in vars(root) if "lora_mixer" in name]


def test_room_on_one_part_of_two_pipelines_is_told_and_taken_away_by_that_part() -> None:
    parts = {
        name: small_pipe(seed=n).components["unet"] for n, name in enumerate(("transformer", "transformer_2"))
    }
    pipe = SmallPipe(**parts)
    pair = {"linear.lora_A.weight": torch.ones(1, 6), "linear.lora_B.weight": torch.ones(5, 1)}
    file = {f"{part}.{key}": value for part in parts for key, value in pair.items()}
    mixer = two_lines(pipe, file, adapter_name="a")
    mixer.reserve(rank=8)
    mixer.unload_lora_weights()
    assert hooks(pipe) == 2
    del mixer
    gc.collect()
    other = SmallPipe(transformer=parts["transformer"], transformer_2=small_pipe(seed=7).components["unet"])

    with pytest.raises(PipelineStateError, match=r"transformer has room .* gone.*LoraMixer\(part\)\.release"):
        two_lines(other, file, adapter_name="a")

    LoraMixer(parts["transformer"]).release()
    assert hooks(pipe) == 0
    two_lines(other, file, adapter_name="a")


@pytest.mark.parametrize("way", ["restore_base", "rebase"])
def test_layers_that_were_replaced_under_the_mix_of_a_mixer_that_is_gone_have_both_ways_out(way: str) -> None:
    pipe = small_pipe()
    base = values(pipe)
    two_lines(pipe, written(pairs_for(pipe, 1)), adapter_name="a")
    gc.collect()
    unet = pipe.components["unet"]
    unet.linear = copy.deepcopy(unet.linear)
    held = base if way == "restore_base" else {**base, "unet.linear.weight": unet.linear.weight.clone()}

    mixer = LoraMixer(pipe)
    with pytest.raises(PipelineStateError, match=r"restore_base\(\).*rebase\(\)"):
        mixer.get_active_adapters()
    getattr(mixer, way)()

    assert_same(values(pipe), held)
    assert mixer.get_active_adapters() == []
    mixer.set_adapters("a", 0.5)
    mixer.unload_lora_weights()
    assert_same(values(pipe), held)


def test_another_pipeline_object_with_the_same_parts_goes_on() -> None:
    pipe = small_pipe()
    pairs = pairs_for(pipe, 1)
    two_lines(pipe, written(pairs), adapter_name="a")
    other = SmallPipe(**components(pipe))
    del pipe
    gc.collect()

    mixer = LoraMixer(other)
    other.components["unet"] = small_pipe(seed=4).components["unet"]  # before the mixer is asked anything

    clean = Snapshot.of(
        SmallPipe(**{**components(small_pipe()), "unet": small_pipe(seed=4).components["unet"]})
    )
    assert list(mixer.adapters) == ["a"]
    mixer.set_adapters("a", 0.5)
    clean.assert_holds(other, mixed((pairs, 0.5)))
    mixer.disable_lora()
    assert_same(values(other), clean.state)


def test_a_part_alone_gives_all_parts_their_base_back() -> None:
    pipe = small_pipe()
    clean = Snapshot.of(pipe)
    two_lines(pipe, written(pairs_for(pipe, 1)), adapter_name="a")

    LoraMixer(pipe.components["unet"]).unload_lora_weights()

    clean.assert_untouched(pipe)


def test_a_pipeline_that_shares_one_part_only_is_refused_and_the_way_out_works() -> None:
    pipe, other = small_pipe(), small_pipe(seed=5)
    clean = Snapshot.of(pipe)
    pairs = pairs_for(pipe, 1)
    two_lines(pipe, written(pairs), adapter_name="a")
    shared = SmallPipe(**{**components(other), "text_encoder": pipe.components["text_encoder"]})

    with pytest.raises(
        PipelineStateError, match=r"text_encoder carries what a LoraMixer has loaded that is gone \(a\)"
    ):
        two_lines(shared, written(pairs), adapter_name="b")

    clean.assert_holds(pipe, mixed((pairs, 1.0)))
    LoraMixer(pipe.components["text_encoder"]).unload_lora_weights()
    clean.assert_untouched(pipe)
    two_lines(shared, written(pairs), adapter_name="b")


def test_pipelines_that_share_parts_which_no_adapter_changes_have_a_mixer_each() -> None:
    base, refiner = tiny_sd(), tiny_sd()
    refiner.vae, refiner.text_encoder = base.vae, base.text_encoder
    only_unet = pairs_for(base, 1, lambda part, _: part == "unet")
    one, two = LoraMixer(base), LoraMixer(refiner)

    one.load_lora_weights(written(only_unet), "a")
    two.load_lora_weights(written(only_unet), "a")

    with_text = pairs_for(base, 2)
    one.load_lora_weights(written(with_text), "t")
    with pytest.raises(PipelineStateError, match=r"loaded on text_encoder \(a, t\)"):
        two.load_lora_weights(written(with_text), "t")
    assert two.get_active_adapters() == ["a"]
    one.delete_adapters("t")
    two.load_lora_weights(written(with_text), "t")


ENDS: dict[str, Callable[[list[LoraMixer]], Any]] = {
    "unload": lambda held: held[0].unload_lora_weights(),
    "delete": lambda held: held[0].delete_adapters(list(held[0].adapters)),
    "gone": lambda held: (held.clear(), gc.collect()),
    "gone while off": lambda held: (held[0].disable_lora(), held.clear(), gc.collect()),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["text alone", "both"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_three_pipelines_with_one_text_encoder_one_has_adapters_on_it(
    order: tuple[int, ...], kind: str, end: str
) -> None:
    """Who comes first has it; the others are refused by name until it lets go, and keep what they have on their own parts."""
    text = small_pipe().components["text_encoder"]
    unets = [small_pipe(seed=n).components["unet"] for n in range(3)]
    pipes = [SmallPipe(unet=unet, text_encoder=text) for unet in unets]
    clean = [Snapshot.of(pipe) for pipe in pipes]
    first, second, third = order
    file = written(pairs_for(pipes[0], 1, lambda part, _: kind == "both" or part == "text_encoder"))
    own = pairs_for(pipes[0], 2, lambda part, _: part == "unet")
    held = [two_lines(pipes[first], file, adapter_name="t")]
    others = {number: LoraMixer(pipes[number]) for number in (second, third)}
    both = values(pipes[first])

    for mixer in others.values():
        mixer.load_lora_weights(written(own), "u")
        for _ in range(2):
            with pytest.raises(
                PipelineStateError, match=r"has adapters loaded on text_encoder \(t\).*unload"
            ):
                mixer.load_lora_weights(file, "t")
        assert (list(mixer.adapters), mixer.get_active_adapters()) == (["u"], ["u"])
    assert_same(values(pipes[first]), both)
    ENDS[end](held)
    if not held:  # it is still there, whoever asks for it
        with pytest.raises(PipelineStateError, match=r"text_encoder carries what .* gone \(t\)"):
            others[second].load_lora_weights(file, "t")
        LoraMixer(text).unload_lora_weights()
    clean[first].assert_untouched(pipes[first])
    others[second].load_lora_weights(file, "t")
    with pytest.raises(PipelineStateError, match=r"has adapters loaded on text_encoder \(u, t\)"):
        others[third].load_lora_weights(file, "t")
    others[second].unload_lora_weights()
    others[third].load_lora_weights(file, "t")
    others[third].delete_adapters("t")
    others[third].unload_lora_weights()
    for pipe, before in zip(pipes, clean, strict=True):
        before.assert_untouched(pipe)


def test_the_mixer_of_a_pipeline_is_none_that_loads_into_another_ones_parts() -> None:
    pipe = small_pipe()
    other = SmallPipe(**{**components(pipe), "unet": small_pipe(seed=5).components["unet"]})
    text = pairs_for(pipe, 1, lambda part, _: part == "text_encoder")
    unet = pairs_for(other, 2, lambda part, _: part == "unet")
    first = two_lines(pipe, written(text), adapter_name="t")
    before, clean = values(pipe), Snapshot.of(other)

    theirs = LoraMixer.of(other)

    assert theirs.pipe is other
    theirs.load_lora_weights(written(unet), "u")
    assert_same(values(pipe), before)
    clean.assert_holds(other, mixed((unet, 1.0)))
    with pytest.raises(PipelineStateError, match=r"loaded on text_encoder \(t\)"):
        theirs.load_lora_weights(written(text), "t")
    assert LoraMixer.of(SmallPipe(**components(pipe))) is first
    assert LoraMixer.of(pipe.components["text_encoder"]) is first


def test_a_lost_variable_is_found_again() -> None:
    pipe = small_pipe()
    kept = [two_lines(pipe, written(pairs_for(pipe, 1)), adapter_name="a")]

    assert LoraMixer.of(pipe) is kept[0]

    kept.clear()
    again = LoraMixer.of(pipe)
    assert list(again.adapters) == ["a"]
    again.unload_lora_weights()
    assert LoraMixer.of(pipe) is not again or not again.adapters


def test_a_model_that_is_deleted_takes_everything_along() -> None:
    import weakref

    pipe = small_pipe()
    two_lines(pipe, written(pairs_for(pipe, 1)), adapter_name="a")
    gone = [weakref.ref(module) for root in components(pipe).values() for module in root.modules()]

    del pipe
    gc.collect()

    assert [ref for ref in gone if ref() is not None] == []


def test_words_of_a_mixer_that_is_gone_are_taught_anew(sd: Any) -> None:
    vectors = torch.randn(2, sd.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    embedding = sd.text_encoder.get_input_embeddings()
    size = len(sd.tokenizer)
    for _ in range(3):
        LoraMixer(sd).load_textual_inversion({"ohwx": vectors})
        assert len(sd.tokenizer) == size + 2
        assert len(embedding._forward_hooks) == 1
    mixer = LoraMixer(sd)
    assert list(mixer.tokens) == ["ohwx"]
    mixer.unload_textual_inversion()
    assert len(sd.tokenizer) == size
    assert hooks(sd) == 0


def test_no_key_buffer_or_module_comes_with_what_is_held() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    keys, tree = list(model.state_dict()), [name for name, _ in model.named_modules()]
    before = dict(vars(model))
    LoraMixer(model).load_lora_weights(
        {"0.lora_A.weight": torch.ones(1, 3), "0.lora_B.weight": torch.ones(3, 1)}, "a"
    )
    assert (list(model.state_dict()), [name for name, _ in model.named_modules()]) == (keys, tree)
    LoraMixer(model).unload_lora_weights()
    assert dict(vars(model)) == before


def test_two_pipelines_left_by_two_mixers_are_not_taken_for_one() -> None:
    pipe = small_pipe()
    for part in ("unet", "text_encoder"):
        pairs = pairs_for(pipe, 1, lambda name, _, own=part: name == own)
        file = {key.removeprefix(f"{part}."): value for key, value in written(pairs).items()}
        two_lines(pipe.components[part], file, adapter_name=part)
    with pytest.raises(PipelineStateError, match="several mixers have left adapters"):
        LoraMixer(pipe).adapters  # noqa: B018
    before = values(pipe)
    for part in ("unet", "text_encoder"):
        LoraMixer(pipe.components[part]).unload_lora_weights()
    LoraMixer(pipe).load_lora_weights(written(pairs_for(pipe, 1)), "a")
    LoraMixer(pipe).unload_lora_weights()
    with pytest.raises(AssertionError):
        assert_same(before, values(pipe))


def test_what_a_forgotten_mixer_leaves_on_shared_parts_is_taken_off(sd_base: Any, sd: Any) -> None:
    """A test that leaves an adapter loaded leaves nothing to the next one, guards of pipeline and UNet included."""
    _, clean = sd_base
    shape = sd.unet.conv_in.weight.shape
    pair = {"lora_A.weight": torch.ones(2, *shape[1:]), "lora_B.weight": torch.ones(shape[0], 2, 1, 1)}
    mixer = LoraMixer(sd)
    mixer.load_lora_weights({f"unet.conv_in.{leaf}": t for leaf, t in pair.items()}, adapter_name="left")
    mixer.set_mix({"left": {"weight": 1.0, "schedule": "0@1,1@0.5"}})
    own = vars(sd).keys() | vars(sd.unet).keys()

    del mixer
    gc.collect()
    ownership.forget_all()
    clean.put_back(sd)

    clean.assert_untouched(sd)
    assert {"disable_lora", "set_adapters"} & own
    assert not {"disable_lora", "set_adapters"} & (vars(sd).keys() | vars(sd.unet).keys())


def _elsewhere(call: Callable[[], object]) -> Exception | None:
    """Run something in another thread to its end; return what it raised."""
    raised: list[Exception] = []

    def work() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 -- the test looks at it
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.mark.parametrize("second", ["the same pipeline", "one that shares the UNet", "the UNet alone"])
def test_of_two_mixers_that_load_at_once_one_is_refused(monkeypatch: Any, second: str) -> None:
    """The second comes while the first has found its modules and not yet written anything."""
    pipe = small_pipe()
    pairs = pairs_for(pipe, 1, lambda name, _: name == "unet")
    clean, file, unet = Snapshot.of(pipe), written(pairs), pipe.components["unet"]
    bare = {key.removeprefix("unet."): value for key, value in file.items()}
    target, own = {
        "the same pipeline": (pipe, file),
        "one that shares the UNet": (SmallPipe(unet=unet), file),
        "the UNet alone": (unet, bare),
    }[second]
    copy, refused = mixer_module.copy_to_devices, []

    def meanwhile(layers: Any) -> Any:
        if not refused:
            refused.append(None)
            refused.append(_elsewhere(lambda: LoraMixer(target).load_lora_weights(own, "b")))
        return copy(layers)

    monkeypatch.setattr(mixer_module, "copy_to_devices", meanwhile)
    first = LoraMixer(pipe)
    first.load_lora_weights(file, "a")

    assert isinstance(refused[1], PipelineStateError)
    assert "being loaded just now" in str(refused[1])
    clean.assert_holds(pipe, mixed((pairs, 1.0)))
    first.unload_lora_weights()
    clean.assert_untouched(pipe)
    LoraMixer(target).load_lora_weights(own, "b")  # nothing is left of the claim
    LoraMixer(target).unload_lora_weights()
    clean.assert_untouched(pipe)


def test_a_load_that_fails_claims_nothing(monkeypatch: Any) -> None:
    pipe = small_pipe()
    pairs = pairs_for(pipe, 1)
    clean = Snapshot.of(pipe)

    def failing(_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(mixer_module, "copy_to_devices", failing)
        first = LoraMixer(pipe)
        with pytest.raises(MemoryError):
            first.load_lora_weights(written(pairs), "a")
    second = LoraMixer(pipe)
    second.load_lora_weights(written(pairs), "a")
    clean.assert_holds(pipe, mixed((pairs, 1.0)))
    second.unload_lora_weights()
    clean.assert_untouched(pipe)


def test_of_two_mixers_that_go_on_at_once_one_does(monkeypatch: Any) -> None:
    pipe = small_pipe()
    pairs = pairs_for(pipe, 1)
    clean = Snapshot.of(pipe)
    two_lines(pipe, written(pairs), adapter_name="a")
    gc.collect()
    take_over, others, refused = ownership.MixerState.take_over, [], []

    def second() -> None:
        others.append(LoraMixer(pipe))
        others[0].load_lora_weights(written(pairs), "b")

    def meanwhile(state: Any, *args: Any) -> None:
        if not refused:
            refused.append(None)
            refused.append(_elsewhere(second))
        take_over(state, *args)

    monkeypatch.setattr(ownership.MixerState, "take_over", meanwhile)
    one = LoraMixer(pipe)

    assert list(one.adapters) == ["a"]
    assert isinstance(refused[1], PipelineStateError)
    clean.assert_holds(pipe, mixed((pairs, 1.0)))
    one.unload_lora_weights()
    clean.assert_untouched(pipe)
    (other,) = others
    other.load_lora_weights(written(pairs), "b")
    clean.assert_holds(pipe, mixed((pairs, 1.0)))
    other.unload_lora_weights()
    clean.assert_untouched(pipe)


WORDS: dict[str, Callable[[LoraMixer], Any]] = {
    "disable_lora": lambda mixer: mixer.disable_lora(),
    "enable_lora": lambda mixer: mixer.enable_lora(),
    "unload_lora_weights": lambda mixer: mixer.unload_lora_weights(),
    "restore_base": lambda mixer: mixer.restore_base(),
    "rebase": lambda mixer: mixer.rebase(),
    "set_mix": lambda mixer: mixer.set_mix({}),
    "applied": lambda mixer: mixer.applied({}).__enter__(),
    "unload_textual_inversion": lambda mixer: mixer.unload_textual_inversion(),
    "release": lambda mixer: mixer.release(),
}


QUESTIONS: dict[str, Callable[[LoraMixer], Any]] = {
    "get_active_adapters": lambda mixer: mixer.get_active_adapters(),
    "get_list_adapters": lambda mixer: mixer.get_list_adapters(),
    "adapters": lambda mixer: mixer.adapters,
    "reports": lambda mixer: mixer.reports,
    "mix": lambda mixer: mixer.mix,
    "mixes": lambda mixer: mixer.mixes,
    "tokens": lambda mixer: mixer.tokens,
    "trained_adapters": lambda mixer: mixer.trained_adapters,
    "is_in_parameters": lambda mixer: mixer.is_in_parameters,
    "memory": lambda mixer: mixer.memory(),
    "check_mix": lambda mixer: mixer.check_mix({}),
    "parse_prompt": lambda mixer: mixer.parse_prompt("a castle"),
    "hand_back": lambda mixer: mixer.hand_back(),
}


def test_a_second_mixer_beside_one_at_work_does_not_answer_that_there_is_nothing() -> None:
    pipe = small_pipe()
    first = two_lines(pipe, written(pairs_for(pipe, 1)), adapter_name="a")
    second = LoraMixer(pipe)
    for ask in QUESTIONS.values():
        with pytest.raises(
            PipelineStateError, match=r"another LoraMixer has adapters .* \(a\); use that one"
        ):
            ask(second)
    assert LoraMixer.of(pipe) is first
    first.unload_lora_weights()
    for ask in QUESTIONS.values():
        ask(second)
    assert second.get_active_adapters() == []


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("how", ["merged", "schedule", "disabled", "another object"])
def test_a_second_mixer_beside_one_at_work_is_refused_whatever_it_is_asked(word: str, how: str) -> None:
    pipe = small_pipe() if how != "schedule" else tiny_sd()
    pairs = pairs_for(pipe, 1)
    clean = Snapshot.of(pipe)
    first = two_lines(pipe, written(pairs), adapter_name="a")
    if how == "schedule":
        first.set_mix(SCHEDULE)
    elif how == "disabled":
        first.disable_lora()
    said = first.get_active_adapters()

    second = LoraMixer(SmallPipe(**components(pipe)) if how == "another object" else pipe)
    with pytest.raises(
        PipelineStateError, match=r"another LoraMixer has adapters loaded on .* \(a\); use that one"
    ):
        WORDS[word](second)

    assert first.get_active_adapters() == said
    first.unload_lora_weights()
    clean.assert_untouched(pipe)
    WORDS[word](second)  # now there is nothing that it could leave as it is
    clean.assert_untouched(pipe)


@pytest.mark.parametrize("word", ["disable_lora", "unload_lora_weights", "restore_base", "set_mix"])
def test_a_mix_that_is_left_on_some_parts_is_told_where_nothing_is_loaded(word: str) -> None:
    pipe, other = small_pipe(), small_pipe(seed=5)
    clean = {key: value.clone() for key, value in pipe.components["unet"].state_dict().items()}
    two_lines(pipe, written(pairs_for(pipe, 1)), adapter_name="a")
    for part in (pipe.components["unet"], copy.deepcopy(pipe.components["unet"])):
        shared = SmallPipe(**{**components(other), "unet": part})
        with pytest.raises(
            PipelineStateError, match=r"unet carries what a LoraMixer has loaded that is gone \(a\)"
        ):
            WORDS[word](LoraMixer(shared))
        LoraMixer(part).unload_lora_weights()
        WORDS[word](LoraMixer(shared))
        for key, value in part.state_dict().items():
            assert torch.equal(value, clean[key])


def test_words_on_parts_of_ones_own_go_on_where_another_mixer_has_a_shared_one() -> None:
    base, refiner = small_pipe(), small_pipe(seed=5)
    refiner = SmallPipe(**{**components(refiner), "text_encoder": base.components["text_encoder"]})
    one, two = LoraMixer(base), LoraMixer(refiner)
    one.load_lora_weights(written(pairs_for(base, 1)), "a")
    two.unload_lora_weights()
    two.load_lora_weights(written(pairs_for(refiner, 2, lambda part, _: part == "unet")), "b")
    two.disable_lora()
    assert (one.get_active_adapters(), two.get_active_adapters()) == (["a"], [])
