"""The fixture that the tests of integrations share."""

from trainer_runs import eagerly

__all__ = ["eagerly"]
