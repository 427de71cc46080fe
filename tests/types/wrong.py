"""Misspelt names, each of which a type checker reports; where it does not, the comment beside it is an error."""
# ruff: noqa
# pyright: reportUnnecessaryTypeIgnoreComment=error

import hf_effpt
from hf_effpt import EfptTrainer  # pyright: ignore[reportAttributeAccessIssue]
from hf_effpt import LayerDropBertModle  # pyright: ignore[reportAttributeAccessIssue]
from hf_effpt import LayerDrop, LayerDropBertConfig, TNFTrainer
from hf_effpt.models import TNFBertModle  # pyright: ignore[reportAttributeAccessIssue]

hf_effpt.StakingTrainer  # pyright: ignore[reportAttributeAccessIssue]
hf_effpt.EffptTrainingArguments("out", buget="9s")  # pyright: ignore[reportCallIssue]
LayerDrop(prob=0.2)  # pyright: ignore[reportCallIssue]
LayerDropBertConfig(num_layer=4)  # pyright: ignore[reportCallIssue]
LayerDrop().probability  # pyright: ignore[reportAttributeAccessIssue]


def see(trainer: TNFTrainer):
    trainer.clok  # pyright: ignore[reportAttributeAccessIssue]
