"""What the policy tests share: a query with everything given, to be changed in one place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from metis_compile.policy import Policy, PolicyError, Query

_QUERY = Query(
    module="model.layers.3.mlp.up_proj",
    block=(3, 8),
    op="linear",
    gemm="fprop",
    operand="activation",
    dtype="bfloat16",
    has_weight=True,
    m=2048,
    n=1024,
    k=256,
)


@pytest.fixture
def query() -> Callable[..., Query]:
    return lambda **changes: replace(_QUERY, **changes)


@pytest.fixture
def mistake() -> Callable[[str], PolicyError]:
    """The error of a policy text, which must be one."""

    def load(text: str, **options: Any) -> PolicyError:
        with pytest.raises(PolicyError) as caught:
            Policy.from_toml(text, name="run.toml", **options)
        return caught.value

    return load
