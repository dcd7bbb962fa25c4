"""A small Llama of transformers: somebody else's model, as its users would make it."""

from typing import Any

from torch import Tensor, nn

from metis_compile.train.errors import TrainError
from metis_compile.train.model import Shape

__all__ = ["llama", "logits_of"]


def llama(shape: Shape) -> nn.Module:
    """A LlamaForCausalLM of these sizes: half as many key and value heads, an MLP of 8/3 of the width.

    Raises TrainError if transformers is not installed.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise TrainError("the model llama needs transformers: pip install 'transformers>=5'") from None
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=-(-shape.width * 8 // (3 * 32)) * 32,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=max(1, shape.heads // 2),
            max_position_embeddings=shape.context,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def logits_of(output: Any) -> Tensor:
    """The logits of what a model returned: they, or an object that has them."""
    return output if isinstance(output, Tensor) else output.logits
