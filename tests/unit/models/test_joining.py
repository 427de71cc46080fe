"""Stock ELECTRA pairs that train on: both parts compute what they did, or the pair is refused by name."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from hf_effpt.core.anatomy import embeddings_of
from hf_effpt.core.errors import EffptError
from hf_effpt.hub.export import export
from hf_effpt.models import EffptElectraConfig, ElectraForJointPreTraining, ElectraForReplacedMaskedLM
from tests import tiny

WORDS = tiny.SHARED[0]
SHAPE = {**tiny.SHAPE, "embedding_size": 16}
IDS = torch.tensor([[2, 9, 4, 11, 3], [2, 7, 8, 4, 3]])
join = ElectraForJointPreTraining.from_parts


def pair(shared=True, **changes):
    """A discriminator and a narrower generator with its embeddings, as published; `changes` are the generator's."""
    discriminator = ElectraForPreTraining(ElectraConfig(**SHAPE)).eval()
    own = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 24, **changes}
    generator = ElectraForMaskedLM(ElectraConfig(**{**SHAPE, **own})).eval()
    if shared:
        generator.electra.embeddings.load_state_dict(discriminator.electra.embeddings.state_dict())
    return discriminator, generator


def assert_computes_as(joint, discriminator, generator):
    joint = joint.eval()
    assert torch.allclose(joint(IDS).logits, discriminator(IDS).logits, atol=1e-6)
    assert torch.allclose(joint.generator(IDS).logits, generator(IDS).logits, atol=1e-6)


def assert_tied(joint):
    for own in tiny.SHARED:
        assert joint.generator.get_parameter(own) is joint.get_parameter(own), own
    assert joint.generator.generator_lm_head.weight is joint.get_parameter(WORDS)


def test_a_published_pair_trains_on_and_resumes(tmp_path):
    """From the folders of both to a checkpoint, a resumed run and an export that is a pair again."""
    parts = pair()
    for part, name in zip(parts, ("discriminator", "generator"), strict=True):
        part.save_pretrained(tmp_path / name)
    discriminator = ElectraForPreTraining.from_pretrained(tmp_path / "discriminator")
    generator = ElectraForMaskedLM.from_pretrained(tmp_path / "generator")

    def run(folder):
        joint = join(discriminator, generator)
        assert_computes_as(joint, *parts)
        assert_tied(joint)
        args = tiny.arguments(folder, budget="4steps", save_total_limit=None)
        made = tiny.EffptTrainer(joint, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
        made.cost.counter = tiny.RoughCounter()
        made.add_callback(tiny.SaveAt([2, 4]))
        return made

    straight = run(tmp_path / "run")
    straight.train()
    resumed = run(tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    tiny.assert_same_weights(straight.model, resumed.model)
    folder = export(tmp_path / "run" / "checkpoint-4", tmp_path / "stock")
    generator = ElectraForMaskedLM.from_pretrained(folder / "generator")
    again = join(ElectraForPreTraining.from_pretrained(folder), generator)
    assert_computes_as(again, straight.model.eval(), straight.model.generator)


def test_the_configuration_is_that_of_the_text_whatever_the_generator():
    config = EffptElectraConfig(**SHAPE, generator={"hidden_size": 8, "num_attention_heads": 1})
    for which in ({}, {"decoder": True}, {"encoder": True}):
        assert config.get_text_config(**which) is config


def test_configurations_of_older_checkpoints_are_read(tmp_path):
    """They hold sizes of the shared tables among those of the generator."""
    sizes = {"vocab_size": tiny.VOCAB, "embedding_size": 16, "max_position_embeddings": 32, "type_vocab_size": 2}
    config = EffptElectraConfig(**SHAPE, generator={"hidden_size": 8, "num_attention_heads": 1})
    saved = json.loads(config.to_json_string(use_diff=False))
    saved["generator"] |= sizes | {"pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    read = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, EffptElectraConfig)
    assert read.generator == {"hidden_size": 8, "num_attention_heads": 1}
    assert read.generator_config().to_diff_dict() | {"_name_or_path": ""} == {
        **config.generator_config().to_diff_dict(), "_name_or_path": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 2, "intermediate_size": 40},
        {"hidden_act": "relu", "layer_norm_eps": 1e-3},
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3},
        {"hidden_size": 16, "num_attention_heads": 2},  # no projection
        {"hidden_size": 32, "num_attention_heads": 4},
        {"is_decoder": True},
    ],
)
def test_generators_of_other_sizes_are_kept(tmp_path, changes):
    parts = pair(**changes)
    joint = join(*parts)
    assert_computes_as(joint, *parts)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", *changes):
        assert getattr(joint.generator.config, name) == getattr(parts[1].config, name), name
    joint.save_pretrained(tmp_path)
    loaded, report = ElectraForJointPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_computes_as(loaded, *parts)
    assert_tied(loaded)


def test_a_generator_without_dropout_can_be_asked_for():
    joint = join(*pair(), generator_dropout=False)
    assert joint.generator.config.hidden_dropout_prob == joint.generator.config.attention_probs_dropout_prob == 0.0
    assert joint.config.hidden_dropout_prob == 0.1


@pytest.mark.parametrize("name", tiny.SHARED)
def test_a_generator_with_a_table_of_its_own_is_refused_by_name(name):
    discriminator, generator = pair()
    with torch.no_grad():
        generator.get_parameter(name).view(-1)[-1] += 1e-3
    with pytest.raises(EffptError, match=f"The generator's `{name}` is not the discriminator's"):
        join(discriminator, generator)
    if name != WORDS:
        with pytest.raises(EffptError, match=f"The generator's `{name}` is not the discriminator's"):
            join(discriminator, generator, embedding_sharing="disentangled")
    else:  # two tables of words can be kept
        joint = join(discriminator, generator, embedding_sharing="disentangled")
        assert_computes_as(joint, discriminator, generator)


def test_a_pair_in_two_precisions_is_a_pair():
    discriminator, generator = pair()
    joint = join(discriminator, generator.half())
    assert torch.equal(joint.get_parameter(WORDS), discriminator.get_parameter(WORDS))
    assert joint.generator.dtype == torch.float32


@pytest.mark.parametrize("told", [True, False])
def test_an_untied_generator_is_refused(told):
    """The configuration may say so, or the weights alone."""
    discriminator, generator = pair(tie_word_embeddings=not told)
    if not told:
        generator.generator_lm_head.weight = nn.Parameter(generator.generator_lm_head.weight + 0.1)
    with pytest.raises(EffptError, match="is not its table of word embeddings"):
        join(discriminator, generator)


def test_what_was_added_to_a_part_is_not_lost_without_a_word():
    discriminator, generator = pair()
    generator.electra.adapter = nn.Linear(2, 2)
    with pytest.raises(EffptError, match=r"The generator has `electra\.adapter\.weight`"):
        join(discriminator, generator)
    discriminator.adapter = nn.Linear(2, 2)
    with pytest.raises(EffptError, match=r"The discriminator has `adapter\.weight`"):
        join(discriminator, generator)


def test_parts_of_other_kinds_are_refused():
    discriminator, generator = pair()
    for parts in ((generator, discriminator), (discriminator.electra, generator)):
        with pytest.raises(EffptError, match="takes an `ElectraForPreTraining` and an `ElectraForMaskedLM`"):
            join(*parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 8}, "`embedding_size` is 8, but the main model's is 16"),
        ({"vocab_size": 64}, "`vocab_size` is 64"),
        ({"max_position_embeddings": 64}, "`max_position_embeddings` is 64"),
        ({"type_vocab_size": 1}, "`type_vocab_size` is 1"),
        ({"pad_token_id": 1}, "`pad_token_id` is 1"),
        ({"hidden_size": 64}, "The generator is 64 wide, more than the 32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(EffptError, match=message):
        join(*pair(shared=False, **changes))


def test_methods_adopt_the_weights_of_a_pair():
    """All of its layers are trained, so none is left out to grow later."""
    parts = pair()
    joint = join(*parts, methods={"stacking": {"depth": 1, "at": [0.3, 0.6]}})
    assert joint.config.layer_order == [0, 1, 2, 3]
    assert_computes_as(joint, *parts)


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_both_models_are_checkpointed_where_the_configuration_says_so(objective):
    """And layers below all that learns run forward only, whichever part has enabled it."""
    model = tiny.joint(objective, gradient_checkpointing=True).train()
    for encoder in (model.electra, model.generator.electra):
        assert all(layer.gradient_checkpointing for layer in encoder.encoder.layer.children())
        for part in embeddings_of(encoder):
            part.requires_grad_(False)
        encoder.encoder.layer[0].requires_grad_(False)
    rests = []
    for encoder in (model.electra, model.generator.electra):
        encoder.encoder.layer[0].register_forward_hook(lambda _, args, output: rests.append(not output.requires_grad))
    model(**tiny.batch(objective=objective)).loss.backward()
    assert rests == [True, True]


# Resizing.


@pytest.mark.parametrize("sharing", ["vanilla", "disentangled"])
@pytest.mark.parametrize("size", [tiny.VOCAB + 6, tiny.VOCAB - 8])
def test_tables_of_both_are_resized(tmp_path, sharing, size):
    parts = pair()
    joint = join(*parts, embedding_sharing=sharing)
    joint.resize_token_embeddings(size, mean_resizing=False)
    assert joint.config.vocab_size == joint.generator.config.vocab_size == size
    assert "vocab_size" not in joint.config.generator
    assert joint.generator(IDS).logits.shape == (2, 5, size)
    least = min(size, tiny.VOCAB)
    kept = joint.eval()(IDS).logits, joint.generator(IDS).logits[..., :least]
    assert torch.allclose(kept[0], parts[0](IDS).logits, atol=1e-6)
    assert torch.allclose(kept[1], parts[1](IDS).logits[..., :least], atol=1e-6)
    if sharing == "vanilla":
        assert_tied(joint)
    elif size > tiny.VOCAB:
        assert not joint.get_parameter(WORDS)[tiny.VOCAB :].any()
    labels = torch.full_like(IDS, -100)
    labels[:, 2] = size - 1
    joint.train()(IDS, labels=labels).loss.backward()
    joint.save_pretrained(tmp_path)
    loaded, report = ElectraForJointPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_computes_as(loaded, joint.eval(), joint.generator)
    assert loaded.export_generator().config.vocab_size == loaded.export().config.vocab_size == size


def test_a_table_of_words_is_padded():
    joint = join(*pair())
    assert joint.resize_token_embeddings(tiny.VOCAB + 1, pad_to_multiple_of=8).weight.shape == (tiny.VOCAB + 8, 16)
    assert joint.generator.config.vocab_size == tiny.VOCAB + 8


def test_mcbert_keeps_its_row_for_none_of_the_above():
    model = tiny.joint("mcbert")
    none = model.config.nota_token_id
    model.resize_token_embeddings(model.config.vocab_size + 8)
    assert model.config.nota_token_id == none
    assert model.generator.generator_lm_head.bias is model.generator_lm_head.bias
    model.train()(**tiny.batch(objective="mcbert")).loss.backward()
    with pytest.raises(EffptError, match=f"`nota_token_id` is {none}, but the vocabulary has rows 0 to {none - 1}"):
        model.resize_token_embeddings(none)
    assert model.get_parameter(WORDS).shape[0] == none + 9


# Weights that a checkpoint lacks.

WIDE = {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "generator_size": 0.25}


def glorot(weight):
    return (2 / sum(weight.shape)) ** 0.5


def loaded_from(folder, cls, lacking, **settings):
    """A model loaded from the weights of an equal one without `lacking`; returns both."""
    whole = cls(EffptElectraConfig(**{**tiny.SHAPE, **WIDE, **settings}))
    kept = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith(lacking)}
    whole.save_pretrained(folder, state_dict=kept)
    return whole, cls.from_pretrained(folder)


def test_a_new_generator_begins_as_electra_has_it(tmp_path):
    """Beside a loaded discriminator: Glorot's initialisation of projections, where stock weights are normal."""
    whole, loaded = loaded_from(tmp_path, ElectraForJointPreTraining, ("generator.", "discriminator_predictions."))
    projection = loaded.generator.electra.embeddings_project.weight
    for weight in (projection, loaded.discriminator_predictions.dense_prediction.weight):
        assert weight.std().item() == pytest.approx(glorot(weight), rel=0.1)
    assert loaded.discriminator_predictions.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(loaded.electra.embeddings_project.weight, whole.electra.embeddings_project.weight)
    assert_tied(loaded)


def test_a_projection_that_a_checkpoint_lacks_begins_as_electra_has_it(tmp_path):
    _, loaded = loaded_from(
        tmp_path, ElectraForReplacedMaskedLM, ("electra.embeddings_project",), objective="replace_mlm"
    )
    weight = loaded.electra.embeddings_project.weight
    assert weight.std().item() == pytest.approx(glorot(weight), rel=0.1)


def test_disentangled_tables_begin_at_the_one_that_is_loaded(tmp_path):
    """The function of a loaded discriminator stays, and its words are those of the new generator, too."""
    whole, _ = loaded_from(tmp_path, ElectraForJointPreTraining, ("generator.",))
    config = EffptElectraConfig(**{**tiny.SHAPE, **WIDE}, embedding_sharing="disentangled")
    loaded = ElectraForJointPreTraining.from_pretrained(tmp_path, config=config)
    assert torch.allclose(loaded.eval()(IDS).logits, whole.eval()(IDS).logits, atol=1e-6)
    assert not loaded.get_parameter(WORDS).any()
    assert torch.equal(loaded.generator.get_parameter(WORDS), whole.get_parameter(WORDS))


def test_a_disentangled_table_that_a_checkpoint_lacks_begins_at_zero(tmp_path):
    whole, loaded = loaded_from(tmp_path, ElectraForJointPreTraining, (WORDS,), embedding_sharing="disentangled")
    assert not loaded.get_parameter(WORDS).any()
    assert torch.equal(loaded.generator.get_parameter(WORDS), whole.generator.get_parameter(WORDS))
