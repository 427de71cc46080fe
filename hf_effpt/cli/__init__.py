"""The `effpt` command. Each subcommand is a module, which imports slow packages only when it runs.

- `main`: finds and runs the subcommand, and reports errors.
- `tokenizer`, `plan`, `pretrain`, `doctor`, `plot`, `evaluate`, `compare`, `export`, `push`, `methods`,
  `settings`: the subcommands.
- `shared`: parses lists, and prints the package's log messages.
"""
