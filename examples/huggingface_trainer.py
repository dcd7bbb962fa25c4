"""Hugging Face's Trainer in NVFP4: `python examples/huggingface_trainer.py`. Run again, it resumes from its checkpoint.

A small Llama from scratch on random text, so that nothing is downloaded: put your model and data in their place.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from metis_compile.integrations.transformers import MetisCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--policy", default="nvfp4")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--width", type=int, default=128)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--output", default=str(Path(tempfile.gettempdir()) / "metis-trainer"))
options = parser.parse_args()

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=options.width,
    intermediate_size=2 * options.width,
    num_hidden_layers=options.layers,
    num_attention_heads=2,
    max_position_embeddings=64,
)
model = LlamaForCausalLM(config)
model.compile(backend="metis", dynamic=True)  # the one line; dynamic: one graph for full batches and the last

starts = torch.randint(0, 256, (100, 1))
texts = (starts + torch.arange(32) * 3) % 256  # each token is the last plus 3
examples = [{"input_ids": text, "labels": text} for text in texts]

arguments = TrainingArguments(
    output_dir=options.output,
    max_steps=options.steps,
    per_device_train_batch_size=8,
    learning_rate=3e-3,
    logging_steps=max(1, options.steps // 6),
    save_steps=max(1, options.steps // 2),
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
)
trainer = Trainer(model, arguments, train_dataset=examples, callbacks=[MetisCallback(options.policy)])
checkpoint = get_last_checkpoint(options.output) if Path(options.output).is_dir() else None
trainer.train(resume_from_checkpoint=checkpoint)
