"""Kinds of products that rules can name, and the names of modules that tell a kind where structure does not."""

from metis_compile.policy.globs import compile_glob

KINDS = ("attention", "head", "router", "adapter")

_HEADS = (
    "*lm_head",  # GPT-2, Llama, Qwen, T5; ELECTRA's generator
    "*lm_head.*",  # RoBERTa's has parts
    "*.head",  # nanoGPT
    "*.head.*",  # timm
    "*.embed_out",  # GPT-NeoX
    "*.output_projection",  # BioGPT
    "*.{unembed,unembedding,to_logits}",
    "*.predictions.decoder",  # BERT and its kin
    "*.{seq_relationship,mlm_head}",
    "*.{vocab_projector,lm_loss,logits_proj}",  # DistilBERT, XLNet
    "*.pred_layer.*",  # XLM
    "*.{classifier,score,qa_outputs}",  # classification, reward, question answering
    "*.classifier.*",
)
# heads outside of repeated blocks; inside, other layers have these names, and modules that are no linear anywhere
_HEADS_OUTSIDE_BLOCKS = (
    "*.output",  # torchtitan
    "*.proj_out",  # Whisper, diffusion transformers
    "*.decoder",  # ModernBERT
    "*.{visual_projection,text_projection}",  # CLIP
)
_ROUTERS = ("*.router", "*.router.*", "*.gate.wg", "*.shared_expert_gate")
_ADAPTERS = ("*.lora_{A,B,a,b,down,up}", "*.lora_{A,B,a,b,down,up}.*")


def kind_by_name(module: str, *, in_block: bool, own_weight: bool = True) -> str | None:
    """`head`, `router` or `adapter` for a module that is called as such modules are, else None.

    module: the dotted name, of which any prefix may come first. in_block: whether it lies in a numbered block.
    own_weight: whether the product is of the module's own weight, and not of a function that the module calls.
    """
    if _matches(_ROUTERS, module):
        return "router"
    if _matches(_ADAPTERS, module):
        return "adapter"
    if _matches(_HEADS, module) or (not in_block and own_weight and _matches(_HEADS_OUTSIDE_BLOCKS, module)):
        return "head"
    return None


def _matches(globs: tuple[str, ...], module: str) -> bool:
    return any(compile_glob(glob).fullmatch(module) for glob in globs)
