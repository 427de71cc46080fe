"""Efficient pre-training of encoder language models on one GPU, as an extension of Hugging Face Transformers.

`import hf_effpt` registers the training models with the Auto classes; everything else is loaded when it is first used.
"""

import ast
import importlib
import sys
from importlib.metadata import version as _version
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = _version("hf_effpt")

# The list of public names, for type checkers and editors; at run time each is imported when it is first used. A star
# stands for the classes in the stub of a module that makes them.
if TYPE_CHECKING:
    from .comparison.experiment import compare as compare
    from .comparison.sweep import budget_sweep as budget_sweep
    from .core.clock import Clock as Clock
    from .core.context import RunContext as RunContext
    from .core.errors import EffptError as EffptError
    from .core.method import Method as Method
    from .core.registry import METHODS as METHODS
    from .core.registry import register as register
    from .core.row_method import RowMethod as RowMethod
    from .core.ticket import Ticket as Ticket
    from .data.masking import DataCollatorForMaskedLM as DataCollatorForMaskedLM
    from .data.packing import pack as pack
    from .data.tokenizer_training import train_tokenizer as train_tokenizer
    from .evaluation.pruning import prune_layers as prune_layers
    from .evaluation.suite import evaluate as evaluate
    from .hub.export import export as export
    from .hub.push import push as push
    from .methods.compress import Compress as Compress
    from .methods.earlybert import EarlyBert as EarlyBert
    from .methods.layerdrop import LayerDrop as LayerDrop
    from .methods.layerskip import LayerSkip as LayerSkip
    from .methods.lottery import Lottery as Lottery
    from .methods.lottery import SparseTicket as SparseTicket
    from .methods.selection import Selection as Selection
    from .methods.stacking import Stacking as Stacking
    from .methods.tnf import TNF as TNF
    from .methods.tnf import DataCollatorForNotes as DataCollatorForNotes
    from .models.bert import EffptBertForMaskedLM as EffptBertForMaskedLM
    from .models.bert import EffptBertForQuestionAnswering as EffptBertForQuestionAnswering
    from .models.bert import EffptBertForSequenceClassification as EffptBertForSequenceClassification
    from .models.bert import EffptBertForTokenClassification as EffptBertForTokenClassification
    from .models.bert import EffptBertModel as EffptBertModel
    from .models.configuration_effpt import EffptBertConfig as EffptBertConfig
    from .models.configuration_effpt import EffptModernBertConfig as EffptModernBertConfig
    from .models.configuration_electra import EffptElectraConfig as EffptElectraConfig
    from .models.configuration_electra import McBertConfig as McBertConfig
    from .models.configuration_electra import ModernElectraConfig as ModernElectraConfig
    from .models.configuration_electra import ModernMcBertConfig as ModernMcBertConfig
    from .models.electra import EffptElectraForSequenceClassification as EffptElectraForSequenceClassification
    from .models.electra import EffptElectraModel as EffptElectraModel
    from .models.electra import ElectraForJointPreTraining as ElectraForJointPreTraining
    from .models.families import *  # noqa: F403
    from .models.from_checkpoint import continue_from as continue_from
    from .models.kin import *  # noqa: F403
    from .models.mcbert import McBertForPreTraining as McBertForPreTraining
    from .models.mcbert import McBertModel as McBertModel
    from .models.modern_electra import ModernElectraForJointPreTraining as ModernElectraForJointPreTraining
    from .models.modern_electra import ModernElectraForReplacedMaskedLM as ModernElectraForReplacedMaskedLM
    from .models.modern_electra import (
        ModernElectraForSequenceClassification as ModernElectraForSequenceClassification,
    )
    from .models.modern_electra import ModernElectraModel as ModernElectraModel
    from .models.modern_electra import ModernMcBertForPreTraining as ModernMcBertForPreTraining
    from .models.modern_electra import ModernMcBertModel as ModernMcBertModel
    from .models.modernbert import EffptModernBertForMaskedLM as EffptModernBertForMaskedLM
    from .models.modernbert import EffptModernBertForQuestionAnswering as EffptModernBertForQuestionAnswering
    from .models.modernbert import (
        EffptModernBertForSequenceClassification as EffptModernBertForSequenceClassification,
    )
    from .models.modernbert import EffptModernBertForTokenClassification as EffptModernBertForTokenClassification
    from .models.modernbert import EffptModernBertModel as EffptModernBertModel
    from .models.replaced_mlm import ElectraForReplacedMaskedLM as ElectraForReplacedMaskedLM
    from .pretraining import pretrain as pretrain
    from .recipe.recipe import Recipe as Recipe
    from .training.arguments import EffptTrainingArguments as EffptTrainingArguments
    from .training.named import *  # noqa: F403
    from .training.start import set_cooccurrence_embeddings as set_cooccurrence_embeddings
    from .training.start import set_unigram_bias as set_unigram_bias
    from .training.ticket_search import EarlyBertTrainer as EarlyBertTrainer
    from .training.trainer import EffptTrainer as EffptTrainer
else:

    def _names(statement: ast.ImportFrom) -> list[str]:
        if statement.names[0].name != "*":
            return [name.name for name in statement.names]
        stub = Path(__file__).parent.joinpath(*statement.module.split(".")).with_suffix(".pyi")
        return [node.name for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ClassDef)]

    _PUBLIC = {  # public name -> module, read from the imports above
        name: statement.module
        for statement in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
        if isinstance(statement, ast.ImportFrom) and statement.level
        for name in _names(statement)
    }
    __all__ = sorted(_PUBLIC)

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return [*globals(), *_PUBLIC]


# The command line answers `--help` without waiting for torch; each of its commands imports what it needs.
if Path(sys.argv[0]).stem != "effpt":
    importlib.import_module(f"{__name__}.models.auto")
