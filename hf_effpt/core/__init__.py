"""The contract of methods and the services it rests on; nothing here imports the rest of the package.

method            `Method`: the hooks of a method, in the order in which a run calls them
  context         `RunContext`: the state of a run that hooks see
  row_method      `RowMethod`: a method that selects training rows
  registry        methods by name
  settings, paper valid values of settings; the publication of a method
anatomy           access to the parts of an encoder
depth             which layers run, and in what order
width             removal of attention heads and neurons
  ticket          the heads and neurons to keep
  gates           trainable gates of heads and neurons, and their importance
freezing          parameters that do not learn
token_losses      per-token losses, which methods may observe and weight
  head_inputs     encoder outputs at labelled positions, and the head above
  padding         mask of tokens and padding
  document_layout where documents lie in a batch, and blocks of them for attention
clock             budget and spending of a run
ledger            events that changed the model, in its configuration
snapshot          weights to rewind to
objectives        the pre-training objectives
metrics           sums for the log
modes, precision  evaluation and passes beside a run; modules that stay in fp32
random, processes stateless random numbers; sums over processes
gpus              names of the GPUs that this process sees
files, targets    atomic writes; checks that there can be one
errors            `EffptError`
"""
