"""The `effpt` command: one module a subcommand, each of which imports what is slow only when it runs."""
