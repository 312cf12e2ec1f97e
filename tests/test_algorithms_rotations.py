"""Rotations and reflections against their papers' formulas: OFT, BOFT and HRA, of LyCORIS, Kohya and PEFT."""

from __future__ import annotations

import pytest
import torch

from lora_mixer import InvalidAdapterError
from tests.layers import close, delta, layer, randn

EYE = {size: torch.eye(size, dtype=torch.float64) for size in (2, 3, 4, 8)}


def d(tensor):
    return tensor.double()


def cayley(q):
    """(I + Q)(I - Q)^-1, block by block."""
    return torch.stack([(EYE[len(x)] + x) @ torch.linalg.inv(EYE[len(x)] - x) for x in q])


def skew(blocks):
    return d(blocks) - d(blocks).transpose(-1, -2)


@pytest.mark.parametrize("gain", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_oft_rotates_blocks_of_outputs_and_goes_straight_to_the_identity(gain, kernel):
    blocks, base = randn(2, 3, 3, scale=0.3), randn(6, 4, *kernel)
    mixed = gain * cayley(skew(blocks)) + (1 - gain) * EYE[3]
    expected = torch.einsum("knm,kn...->km...", mixed, d(base).reshape(2, 3, 4, *kernel)).reshape(base.shape)

    weights = layer({"oft_blocks": blocks, "alpha": 0.0})

    assert close(delta(weights, base, gain), expected - d(base))
    assert weights.algorithms == ("oft",)
    assert weights.alpha is None


@pytest.mark.parametrize("alpha", [0.01, 100.0])
def test_oft_alpha_limits_the_norm_of_q_to_alpha_times_outputs(alpha):
    blocks, base = randn(2, 3, 3), randn(6, 4)
    q = skew(blocks)
    limited = q * min(1.0, alpha * 6 / q.norm().item())

    weights = layer({"oft_blocks": blocks, "alpha": alpha})

    expected = torch.einsum("knm,kn...->km...", cayley(limited), d(base).reshape(2, 3, 4)).reshape(6, 4)
    assert close(delta(weights, base), expected - d(base), 1e-7)


def test_oft_rescale_multiplies_the_rotated_outputs():
    blocks, rescale, base = randn(2, 3, 3), randn(6, 1), randn(6, 4)
    rotated = torch.einsum("knm,kn...->km...", cayley(skew(blocks)), d(base).reshape(2, 3, 4)).reshape(6, 4)

    weights = layer({"oft_blocks": blocks, "rescale": rescale, "alpha": 0.0})

    assert close(delta(weights, base), d(rescale) * rotated - d(base))
    assert torch.equal(delta(weights, base, 0.0), torch.zeros(6, 4, dtype=torch.float64))


def test_oft_diag_of_early_lycoris_holds_the_rotation_itself():
    rotation, base = cayley(skew(randn(2, 3, 3))).float(), randn(6, 4)

    weights = layer({"oft_diag": rotation})

    expected = torch.einsum("knm,kn...->km...", d(rotation), d(base).reshape(2, 3, 4)).reshape(6, 4)
    assert close(delta(weights, base), expected - d(base))


def test_kohya_prefix_is_read_as_oft():
    from lora_mixer.formats import read_source
    from lora_mixer.sources import resolve_source

    table = {
        "oft_unet_down_blocks_0_x.oft_blocks": randn(2, 3, 3),
        "oft_unet_down_blocks_0_x.alpha": torch.tensor(1.0),
    }
    given = read_source(resolve_source(table))

    assert given.info.format == "kohya"
    assert given.info.algorithms == ("oft",)
    assert given.layers[0].target.hint == "denoiser"


def triangles(number, size):
    return randn(number, size * (size - 1) // 2, scale=0.2)


def q_of(rows, size):
    q = torch.zeros(len(rows), size, size, dtype=torch.float64)
    upper = torch.triu_indices(size, size, 1)
    q[:, upper[0], upper[1]] = d(rows)
    return q - q.transpose(1, 2)


OFT = {"peft_type": "OFT"}


@pytest.mark.parametrize("kernel", [(), (2, 2)])
@pytest.mark.parametrize("exact", [True, False])
def test_peft_oft_rotates_inputs_by_the_exact_inverse_or_its_polynomial(kernel, exact):
    columns = 4 * (4 if kernel else 1)
    rows, base = triangles(columns // 4, 4), randn(6, 4, *kernel)
    q = q_of(rows, 4)
    poly = EYE[4] + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    inverse = torch.stack([(EYE[4] - x) @ torch.linalg.inv(EYE[4] + x) for x in q])
    rotation = torch.block_diag(*(inverse if exact else poly))

    weights = layer({"oft_R.weight": rows}, config={**OFT, "use_cayley_neumann": not exact})

    expected = (d(base).reshape(6, columns) @ rotation.T).reshape(base.shape)
    assert close(delta(weights, base), expected - d(base))
    assert close(delta(weights, base, 0.4), 0.4 * (expected - d(base)))


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 6])
def test_peft_oft_polynomial_has_as_many_terms_as_the_configuration_says(terms):
    from peft.tuners.oft.layer import OFTRotationModule

    rows, base = triangles(2, 4), randn(6, 8)
    module = OFTRotationModule(2, 6, 4, 8, use_cayley_neumann=True, num_cayley_neumann_terms=terms)
    module.weight.data = d(rows)

    weights = layer(
        {"oft_R.weight": rows}, config={**OFT, "use_cayley_neumann": True, "num_cayley_neumann_terms": terms}
    )

    expected = d(base) @ module.get_weight().detach().T
    assert torch.allclose(delta(weights, base), expected - d(base), atol=1e-12)


def test_peft_oft_shares_one_block_and_limits_it():
    from peft.tuners.oft.layer import OFTRotationModule

    rows, base = triangles(1, 4), randn(6, 8)
    module = OFTRotationModule(1, 6, 4, 8, coft=True, eps=0.1, block_share=True, use_cayley_neumann=False)
    module.weight.data = d(rows)
    config = {**OFT, "coft": True, "eps": 0.1, "block_share": True, "use_cayley_neumann": False}

    weights = layer({"oft_R.weight": rows}, config=config)

    expected = d(base) @ module.get_weight().detach().T
    assert close(delta(weights, base), expected - d(base), 1e-6)
    assert weights.misfit((6, 10)) == "rotates 1 blocks of 4 inputs, the module has 10"


def test_peft_oft_on_embeddings_rotates_from_the_other_side():
    rows, base = triangles(2, 4), randn(10, 8)
    rotation = torch.block_diag(*cayley(-q_of(rows, 4)))

    weights = layer({"oft_embedding_R.weight": rows}, config={**OFT, "use_cayley_neumann": False})

    assert close(delta(weights, base), d(base) @ rotation - d(base))


@pytest.mark.parametrize("gain", [1.0, 0.6])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_boft_is_a_product_of_shuffled_block_rotations(gain, stages):
    number, size, base = 4, 2, randn(8, 3)
    blocks = randn(stages, number, size, size, scale=0.4)
    total = torch.eye(8, dtype=torch.float64)
    for stage, q in enumerate(skew(blocks)):
        mixed = gain * cayley(q) + (1 - gain) * EYE[2]
        half = 2**stage * size // 2
        # the places of the rows after the shuffle: channel c * 2 * half + g * half + k goes to c * 2 * half + k * 2 + g
        order = torch.arange(8).view(-1, 2, half).transpose(1, 2).flatten()
        shuffle = torch.eye(8, dtype=torch.float64)[order]
        total = shuffle.T @ torch.block_diag(*mixed) @ shuffle @ total

    weights = layer({"oft_blocks": blocks, "alpha": 0.0})

    assert weights.algorithms == ("boft",)
    assert close(delta(weights, base, gain), total @ d(base) - d(base))


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_peft_boft_multiplies_its_stages_from_the_inputs_and_scales_outputs(stages):
    from peft.tuners.boft.layer import BOFTLayer

    number, size, base = 8, 2, randn(5, 16)
    blocks, scale = randn(stages, number, size, size, scale=0.4), randn(5, 1)
    total = torch.eye(16, dtype=torch.float64)
    for stage, q in enumerate(0.5 * skew(blocks)):
        order = BOFTLayer.block_butterfly_perm(BOFTLayer, 16, number // 2**stage, size // 2, stages - 1)
        shuffle = torch.eye(16, dtype=torch.float64)[order]
        total = shuffle @ torch.block_diag(*cayley(-q)) @ shuffle.T @ total

    weights = layer({"boft_R": blocks, "boft_s": scale}, config={"peft_type": "BOFT"})

    assert close(delta(weights, base), d(scale) * (d(base) @ total.T) - d(base))
    assert torch.equal(delta(weights, base, 0.0), torch.zeros(5, 16, dtype=torch.float64))


@pytest.mark.parametrize("orthogonal", [False, True])
def test_hra_reflects_inputs_one_after_the_other(orthogonal):
    vectors, base = randn(8, 3), randn(6, 2, 2, 2)
    u = d(vectors)
    if orthogonal:
        u = torch.linalg.qr(u).Q
    u = u / u.norm(dim=0)
    total = torch.eye(8, dtype=torch.float64)
    for column in u.T:
        total = total @ (EYE[8] - 2 * column.outer(column))

    weights = layer({"hra_u": vectors}, config={"peft_type": "HRA", "r": 3, "apply_GS": orthogonal})

    expected = (d(base).reshape(6, 8) @ total).reshape(base.shape) - d(base)
    assert close(delta(weights, base), expected)
    assert close(delta(weights, base, 0.3), 0.3 * expected)


@pytest.mark.parametrize(
    ("leaves", "config"),
    [
        ({"oft_blocks": (2, 3, 4), "alpha": ()}, None),
        ({"oft_blocks": (6,), "alpha": ()}, None),
        ({"rescale": (6, 1)}, None),
        ({"oft_blocks": (3, 4, 3, 3), "alpha": ()}, None),
        ({"oft_blocks": (4, 6, 2, 2), "alpha": ()}, None),
        ({"oft_R.weight": (2, 5)}, OFT),
        ({"boft_s": (6, 1)}, {"peft_type": "BOFT"}),
        ({"hra_u": (6,)}, {"peft_type": "HRA"}),
    ],
)
def test_blocks_that_rotate_nothing_are_refused(leaves, config):
    with pytest.raises(InvalidAdapterError, match="net: "):
        layer({name: randn(*shape) for name, shape in leaves.items()}, config=config)


def test_rotations_for_another_width_say_both():
    assert layer({"oft_blocks": randn(2, 3, 3)}).misfit((8, 4)) == "rotates 6 outputs, the module has 8"
    assert layer({"oft_blocks": randn(2, 2, 2, 2)}).misfit((8, 4)) == "rotates 4 outputs, the module has 8"
    assert "rescales 4 outputs" in layer({"oft_blocks": randn(2, 3, 3), "rescale": randn(4)}).misfit((6, 4))
    assert layer({"hra_u": randn(6, 2)}).misfit((6, 4)) == "reflects 6 inputs, the module has 4"
