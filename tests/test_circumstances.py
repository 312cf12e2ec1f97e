"""A cheap slice of docs/circumstances.md: no cell of it is wrong, and each kind of cell is seen."""

from __future__ import annotations

import pytest

from benchmarks import circumstances
from benchmarks.circumstances import CIRCUMSTANCES, FEATURES, cell

WORKS = (
    "plain",
    "img2img by `from_pipe`",
    "`torch.autocast` (bfloat16)",
    "the mix, then fused projections",
    "called in another thread",
)


@pytest.mark.parametrize("feature", ["schedule", "mask", "list of mixes", "negative", "words"])
@pytest.mark.parametrize("name", WORKS)
def test_a_picture_is_that_made_by_hand_and_the_base_comes_back(name: str, feature: str) -> None:
    assert cell(name, FEATURES[feature]) == "works"


def test_a_cell_can_be_wrong_and_can_lose_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's own check: what would be wrong is told so."""
    plain = CIRCUMSTANCES["plain"]
    broken = circumstances.Circumstance(
        call=lambda pipe, feature: plain.call(pipe, feature) * (1 + _marks(pipe))
    )
    monkeypatch.setitem(CIRCUMSTANCES, "broken", broken)
    assert cell("broken", FEATURES["side"]).startswith("**wrong**")


def _marks(pipe: object) -> int:
    modules = pipe.unet.modules()  # type: ignore[attr-defined]
    return sum("_lora_mixer_hooks" in vars(module) for module in modules)
