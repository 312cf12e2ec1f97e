"""Every kind of adapter in training is one graph for a compiler, with the gradients that it has without one."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tests.fresh_models import stirred
from tests.small_language_models import distance
from tests.test_training_rows import IDS, KINDS, on_llama


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_compiles_into_one_graph_and_trains_alike(kind: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    model, mixer, _ = on_llama([KINDS[kind]])
    parameters = stirred(mixer, "a0", 0)
    compiled, found = torch.compile(model, backend="aot_eager"), []

    for call in (model, compiled):
        optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
        for _ in range(2):  # a step between two calls is none for the compiler
            optimizer.zero_grad()
            call(input_ids=IDS).logits.tanh().square().mean().backward()
            optimizer.step()
        found.append({key: p.grad.clone() for key, p in parameters.items() if p.grad is not None})
        optimizer.zero_grad()

    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert found[0].keys() == found[1].keys() == parameters.keys()
    for key, gradient in found[0].items():
        assert gradient.any(), key
        assert distance(found[1][key], gradient) < 1e-5, key
    torch._dynamo.reset()
