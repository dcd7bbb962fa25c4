"""Every `metis::` operator that a graph holds, each defined by plain torch, with its fake and its argument checks.

| operator | file | what it is |
| --- | --- | --- |
| `metis::quantize`, `metis::dequantize` | quantization | packed codes and scales of a tensor, and its values again |
| `metis::held_amax` | held_amax | what a tensor's scale is made of for some steps |
| `metis::fresh_basis`, `metis::power_step` | basis | a basis from a sketch, and one power step of it |
| `metis::residual` | residual | a matrix minus a row and minus a product of thin factors |
| `metis::hadamard`, `metis::inverse_hadamard` | hadamard | the transform of 16 elements or more along an axis |
| `metis::grouped_mm` | grouped | a product for each group of tokens |
| `metis::load`, `metis::store_`, `metis::keep_` | state | slices of what lives across steps |
| `metis::of_rank` | rank | the seed of a data-parallel rank |
| `metis::materialize`, `metis::to_bfloat16` | buffers | a buffer of its own, and a cast that compilers do not drop |

What only a lowering makes (`metis::gemm`, `metis::cpu_product`, ...) is defined beside its kernel, in
`metis_compile.kernels`.
"""
