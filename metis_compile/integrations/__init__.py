"""Where people train: what makes metis fit Accelerate, Hugging Face's Trainer and Lightning.

A module for each of them, named after it. None is imported unless you import it, and nothing else of the package needs
one.
"""
