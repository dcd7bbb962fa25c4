"""Prints the backend that `accelerate launch` has told the script."""

import os

print(os.environ["ACCELERATE_DYNAMO_BACKEND"])
