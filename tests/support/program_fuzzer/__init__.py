"""Random small training programs under random policies, and what must hold of each.

    make fuzz ARGS="--cases 500 --seed 0"

`statements` is what a program may consist of, `draft` makes one from a seed, `policies` a policy; `oracles` say what
must hold, by `emulation`, which quantizes the products of an eager run; `shrink` drops what a failure does not need.
"""
