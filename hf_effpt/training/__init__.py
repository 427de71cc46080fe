"""Training: the Trainer, its arguments, recipes, meters, and how runs are saved and resumed."""
