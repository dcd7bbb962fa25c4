"""metis: ``torch.compile(model, backend="metis")`` trains unmodified PyTorch models in FP4 and FP8."""

__version__ = "0.1.0"
