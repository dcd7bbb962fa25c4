import torch
from torch import nn

from metis_compile.train.model import GPT, Shape

SHAPE = Shape(width=16, layers=2, heads=2, context=8)


def test_logits_have_the_vocabulary_and_no_token_sees_a_later_one() -> None:
    torch.manual_seed(0)
    model = GPT(SHAPE)
    tokens = torch.randint(256, (2, 8))
    logits = model(tokens)
    assert logits.shape == (2, 8, 256)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 256
    again = model(changed)
    torch.testing.assert_close(again[:, :5], logits[:, :5])
    assert not torch.allclose(again[:, 5:], logits[:, 5:])


def test_every_matmul_with_a_weight_is_a_plain_linear_and_the_head_is_untied() -> None:
    model = GPT(SHAPE)
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert len(linears) == 2 * 6 + 1
    assert "blocks.1.attn.q" in linears
    assert "lm_head" in linears
    assert model.lm_head.weight is not model.token.weight


def test_the_first_loss_is_near_a_uniform_guess() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(256, (4, 8))
    loss = nn.functional.cross_entropy(GPT(SHAPE)(tokens).flatten(0, 1), tokens.flatten())
    assert abs(loss.item() - torch.tensor(256.0).log().item()) < 0.3
