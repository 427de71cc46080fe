"""Type checkers see the public names, their keywords and their fields."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hf_effpt
from hf_effpt.models import families, kin
from hf_effpt.training import named

ROOT = Path(hf_effpt.__file__).parents[1]
RIGHT = f"""
from hf_effpt import {", ".join(hf_effpt.__all__)}
from hf_effpt.models import LayerDropBertModel as Encoder

args = EffptTrainingArguments(output_dir="out", budget="90s", learning_rate=1e-3)
config = LayerDropBertConfig(num_hidden_layers=4, methods={{"layerdrop": {{"p": 0.1}}}})
trainer = LayerDropTrainer(model=LayerDropBertForMaskedLM(config), args=args)
words: list[str | None] = [args.budget, trainer.clock.unit, LayerDrop(p=0.2).name]
encoder: EffptBertModel = Encoder(config)
loss: float | None = pretrain(Recipe.load("tiny")).held_out_loss
"""
WRONG = {
    "from hf_effpt import EfptTrainer": '"EfptTrainer" is unknown import symbol',
    "from hf_effpt import LayerDropBertModle": '"LayerDropBertModle" is unknown import symbol',
    "from hf_effpt.models import TNFBertModle": '"TNFBertModle" is unknown import symbol',
    "import hf_effpt\nhf_effpt.StakingTrainer": '"StakingTrainer" is not a known attribute',
    'import hf_effpt\nhf_effpt.EffptTrainingArguments("out", buget="9s")': 'No parameter named "buget"',
    "from hf_effpt import LayerDrop\nLayerDrop(prob=0.2)": 'No parameter named "prob"',
    "from hf_effpt import LayerDropBertConfig\nLayerDropBertConfig(num_layer=4)": 'No parameter named "num_layer"',
    "from hf_effpt import LayerDrop\nLayerDrop().probability": 'Cannot access attribute "probability"',
    "from hf_effpt import TNFTrainer\ndef see(trainer: TNFTrainer): trainer.clok": 'Cannot access attribute "clok"',
}


@pytest.mark.slow
@pytest.mark.timeout(900)  # it reads all of transformers and torch
def test_a_type_checker_accepts_right_code_and_reports_misspelt_names(tmp_path):
    pytest.importorskip("pyright")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "typeCheckingMode": "basic"}))
    (tmp_path / "right.py").write_text(RIGHT)
    for number, code in enumerate(WRONG):
        (tmp_path / f"wrong_{number}.py").write_text(code)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False).stdout
    found = {}
    for entry in json.loads(output)["generalDiagnostics"]:
        if entry["severity"] == "error":
            found.setdefault(Path(entry["file"]).stem, []).append(entry["message"])
    assert "right" not in found, found["right"]
    for number, (code, message) in enumerate(WRONG.items()):
        assert any(message in error for error in found.get(f"wrong_{number}", [])), code


@pytest.mark.parametrize("module", [families, kin, named])
def test_a_stub_lists_the_classes_that_are_made(module):
    made = {
        name: cls.__base__.__name__
        for name, cls in vars(module).items()
        if isinstance(cls, type) and cls.__module__ == module.__name__
    }
    stub = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text())
    listed = {node.name: node.bases[0].id for node in ast.walk(stub) if isinstance(node, ast.ClassDef)}
    assert listed == made
    assert set(listed) <= set(hf_effpt.__all__)
    for name in listed:
        cls = getattr(hf_effpt, name)
        assert cls is getattr(module, name)
        assert (cls.__name__, cls.__qualname__) == (name, name)
        assert cls.__doc__ != cls.__base__.__doc__
