"""Products of packed operands: the operator, its Triton templates, and Inductor's choice between them."""
