import pytest
import torch
from torch import Tensor

from fsvit_edge.model.enhancer import PseudoLabelEnhancer


def inputs(pictures: int = 3, grid: int = 6, dim: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.rand(pictures, grid, grid, generator=generator) - 1
    return coarse, torch.randn(pictures, grid * grid, dim, generator=generator)


def enhancer(dim: int = 16) -> PseudoLabelEnhancer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PseudoLabelEnhancer(dim).eval()


@pytest.mark.parametrize("grid", [3, 6, 11])
def test_the_output_has_twice_the_grid(grid: int) -> None:
    assert enhancer()(*inputs(grid=grid)).shape == (3, 2 * grid, 2 * grid)


@pytest.mark.parametrize("dim", [192, 384, 768])
def test_the_enhancer_is_small(dim: int) -> None:
    assert sum(parameter.numel() for parameter in PseudoLabelEnhancer(dim).parameters()) < 100_000


@torch.inference_mode()
def test_the_pictures_of_a_batch_are_independent() -> None:
    coarse, tokens = inputs()
    together = enhancer()(coarse, tokens)
    alone = torch.cat([enhancer()(coarse[i : i + 1], tokens[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_output_depends_on_the_map_and_on_the_tokens() -> None:
    coarse, tokens = inputs()
    answer = enhancer()(coarse, tokens)
    assert (enhancer()(coarse.flip(0), tokens) - answer).abs().max() > 0.01
    assert (enhancer()(coarse, tokens.flip(0)) - answer).abs().max() > 0.01


@torch.inference_mode()
def test_rows_and_columns_of_map_and_tokens_agree() -> None:
    # With symmetric convolutions, a mirrored picture has a mirrored result.
    network = enhancer()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.copy_((module.weight + module.weight.flip(3)) / 2)
    network.leave[2].weight.copy_(network.leave[2].weight[[1, 0, 3, 2]] / 2 + network.leave[2].weight / 2)
    network.leave[2].bias.copy_(network.leave[2].bias[[1, 0, 3, 2]] / 2 + network.leave[2].bias / 2)
    coarse, tokens = inputs()
    mirrored = tokens.reshape(3, 6, 6, -1).flip(2).flatten(1, 2)
    answer = network(coarse, tokens)
    torch.testing.assert_close(network(coarse.flip(2), mirrored), answer.flip(2), atol=1e-4, rtol=1e-4)
    transposed = tokens.reshape(3, 6, 6, -1).transpose(1, 2).flatten(1, 2)
    assert (network(coarse.flip(2), transposed) - answer.flip(2)).abs().max() > 0.01


@torch.inference_mode()
def test_a_constant_map_gives_finite_logits() -> None:
    _, tokens = inputs()
    assert torch.isfinite(enhancer()(torch.zeros(3, 6, 6), tokens)).all()
