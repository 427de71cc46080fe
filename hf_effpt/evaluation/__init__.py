"""What a model is worth: held-out loss, against the loss of a model that knows only how frequent tokens are."""
