"""Speed, compile time and memory of training under a policy, beside plain Inductor, and of kernels, to rerun.

``candidate`` is what is measured and ``size`` the model that it trains. ``step``, ``start``, ``memory`` and ``scaling``
are a benchmark each: what its worker process measures, and the report made of it. So are ``gemm`` and ``quantize``, of
kernels alone, whose calls take turns (``rounds``) on ``shapes``. ``worker`` is that process, ``runner`` starts it,
``report`` and ``plot`` show the numbers.
"""
