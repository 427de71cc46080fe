"""Training: the Trainer, its arguments, meters, and how runs are saved and resumed."""
