"""Statistics while a model trains: `metis_compile.monitor`.

In a step that is sampled the compiled graphs run as in any other, and the training result is theirs: same code, same
random numbers, same state, whatever is looked at. Beside each, the part of its graph that leads to the operands is run
once more, operator by operator, from what the compiled graph was given and gave: the forward from its inputs and what
it saved for backward, the backward from what was saved and the gradients of the outputs. That is what this is built on,
and not

- a second compiled variant with the statistics as outputs: Inductor may fuse and lay out such a graph otherwise, so
  that the sampled step would train with other bits, and it doubles the time to compile;
- an operator in the graph with a switch: what it looks at would have to be stored in each step, and codes could not be
  saved in place of values.

Where a graph is not sampled, one `if` stands in front of its call; where no monitor is open, nothing does.

| file | what is in it |
| --- | --- |
| `monitor` | `Monitor`: when a step is sampled, and what becomes of the records |
| `records`, `destinations` | the schema of a record; JSON lines, functions, TensorBoard |
| `watched` | one compiled graph: what is run beside its calls |
| `watched_sites` | the products of one graph, by the names of their nodes |
| `half` | a forward or a backward graph, and how a part of it is run |
| `reading`, `difference` | records read back, and two runs beside each other: `metis diff` |
"""
