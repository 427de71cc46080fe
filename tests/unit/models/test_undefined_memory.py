"""No buffer of a method and no index starts with what memory happens to hold."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.models import EffptBertForMaskedLM
from tests import tiny
from tests.contract.settings import SETTINGS, VARIANTS, allowed

LEDGERS = {**{name: {name: settings} for name, settings in SETTINGS.items()}, **VARIANTS}
SNAPSHOTS = ("earlybert", "lottery", "lottery, rewound to later")


@pytest.fixture(autouse=True)
def poison():
    """Fills new memory with NaN or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Folder of a stock model."""
    folder = tmp_path_factory.mktemp("stock")
    tiny.model().export().save_pretrained(folder)
    return folder


def undefined(model):
    """Names of tensors with a value of the poison."""
    found = {**model.state_dict(), **dict(model.named_buffers())}
    poisons = {name: tensor for name, tensor in found.items() if tensor.dtype != torch.bool and tensor.numel()}
    return [
        name
        for name, tensor in poisons.items()
        if (tensor.isnan() if tensor.is_floating_point() else tensor == torch.iinfo(tensor.dtype).max).any()
    ]


@pytest.mark.parametrize("name", [name for name, ledger in LEDGERS.items() if allowed(ledger)])
def test_every_tensor_is_defined_in_a_new_model_and_in_one_of_stock_weights(stock, name):
    model = tiny.model(LEDGERS[name])
    loaded = EffptBertForMaskedLM.from_pretrained(stock, config=tiny.config(LEDGERS[name]))
    assert undefined(model) == []
    assert undefined(loaded) == []
    for key, tensor in model.state_dict().items():
        if "bert." in key and key.split(".")[1] not in ("embeddings", "encoder", "gates", "selector"):
            assert torch.equal(tensor, loaded.state_dict()[key]), key  # gates and strategies are drawn


@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize("objective", ["mlm", "electra", "mcbert"])
def test_a_snapshot_is_zero_until_it_is_taken(tmp_path, name, objective):
    make = tiny.model if objective == "mlm" else partial(tiny.joint, objective)
    model = make(LEDGERS[name])
    model.save_pretrained(tmp_path / "new")
    make({}).save_pretrained(tmp_path / "plain")
    loaded = type(model).from_pretrained(tmp_path / "plain", config=model.config)
    for state in (load_file(tmp_path / "new" / "model.safetensors"), loaded.state_dict()):
        copies = {key: tensor for key, tensor in state.items() if key.startswith("snapshot.")}
        assert copies.keys() == {key for key in model.state_dict() if key.startswith("snapshot.")}
        assert not any(tensor.any() for tensor in copies.values())
    assert undefined(loaded) == []
    model.snapshot.take(model)
    assert all(tensor.any() for key, tensor in model.snapshot.named_buffers() if key.endswith("dense/weight"))


def test_a_checkpoint_that_holds_a_tied_tensor_twice_is_read(tmp_path):
    """Older versions saved such checkpoints from a loaded model."""
    model = tiny.model(LEDGERS["earlybert"])
    model.snapshot.register_buffer("cls/predictions/decoder/weight", torch.zeros(tiny.VOCAB, 32))
    model.save_pretrained(tmp_path)
    loaded, report = EffptBertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    assert not hasattr(loaded.snapshot, "cls/predictions/decoder/weight")


def test_a_dictionary_without_notes_is_empty_and_refused(stock):
    config = tiny.config({"tnf": {"entries": 7, "min_count": 5, "max_count": 9}})
    model = EffptBertForMaskedLM.from_pretrained(stock, config=config)
    assert undefined(model) == []
    with pytest.raises(EffptError, match=r"`tnf\.entries` is 7, but the run itself writes it"):
        model.methods[0].prepare(model.bert, RunContext(0, 0.0, open_text=lambda: None))


@pytest.mark.parametrize("place", ["all", "masked"])
def test_a_position_that_is_named_twice_counts_once(place):
    torch.manual_seed(3)
    model = tiny.joint("mcbert", candidates_at=place).eval()
    batch = tiny.batch(4, objective="mcbert")
    positions = torch.arange(2, 8)[None].expand(4, -1)[:, :4]
    labels = torch.full_like(batch["labels"], -100)
    labels[:, 2:5] = batch["input_ids"][:, 2:5].clamp(min=5)
    batch |= {"labels": labels, "masked_positions": positions}
    seen = []
    choose = model._candidate_logits
    model._candidate_logits = lambda outputs, candidates: seen.append(candidates) or choose(outputs, candidates)
    whole = model(**batch)
    twice = model(
        **{**batch, "masked_positions": torch.tensor([[2, 3, 4, 2], [4, 3, 2, 3], [2, 3, 4, 0], [4] * 2 + [3, 2]])}
    )
    assert all(0 <= int(candidates.min()) and int(candidates.max()) < model.config.vocab_size for candidates in seen)
    for ours, theirs in ((whole.loss, twice.loss), (whole.generator_loss, twice.generator_loss)):
        torch.testing.assert_close(ours, theirs)
    if place == "all":
        assert torch.equal(*seen)
