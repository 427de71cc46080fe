"""Subclasses of `EffptTrainer` for one method or some objectives; `named.pyi` has their types."""

from .trainer import EffptTrainer

for _name, _doc, _attribute in (
    ("Compress", "Trains a large model and compresses it on the way (Li et al., 2020).", {"method": "compress"}),
    (
        "Electra",
        "Trains generator and discriminator of ELECTRA together (Clark et al., 2020).",
        {"objectives": ("electra", "electra_15", "replace_mlm", "all_tokens_mlm")},
    ),
    ("LayerDrop", "Trains with LayerDrop (Fan et al., 2020).", {"method": "layerdrop"}),
    ("LayerSkip", "Trains with learned layer skipping (Wang et al., 2019); experimental.", {"method": "layerskip"}),
    (
        "Lottery",
        "Prunes single weights in rounds and rewinds the others (Frankle and Carbin, 2019); for research.",
        {"method": "lottery"},
    ),
    ("McBert", "Trains MC-BERT with its meta controller (Xu et al., 2020).", {"objectives": ("mcbert",)}),
    (
        "Selection",
        "Trains on the highest-scoring of the rows drawn for each step (Jiang et al., 2019).",
        {"method": "selection"},
    ),
    ("Stacking", "Trains by progressive stacking (Gong et al., 2019).", {"method": "stacking"}),
    ("TNF", "Trains with notes of rare words, taken on the fly (Wu et al., 2021).", {"method": "tnf"}),
):
    globals()[f"{_name}Trainer"] = type(
        f"{_name}Trainer", (EffptTrainer,), {"__module__": __name__, "__doc__": _doc, **_attribute}
    )
