"""Speed, compile time and memory of training under a policy, beside plain Inductor, in numbers to rerun.

``contender`` is what is measured and ``size`` the model that it trains. ``step``, ``start``, ``memory``, ``scaling``,
``revision`` and ``against`` are a benchmark each: what its worker process measures, and the report made of it.
``worker`` is that process, ``runner`` starts it, ``report`` and ``plot`` show the numbers.
"""
