"""Runs whose later phases have longer rows of the same text."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value
from transformers import ModernBertForMaskedLM, set_seed

from hf_effpt.core.anatomy import rotary_base_of
from hf_effpt.core.errors import EffptError
from hf_effpt.methods.compress.distill import teacher_of
from hf_effpt.training.flops import FlopCounter
from hf_effpt.training.phases import Phase, apply_phase
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny
from tests.contract.settings import VARIANTS

SHORT, LONG = 16, 32


def rows_of(length, number=12, seed=1):
    ids = np.random.default_rng(seed).integers(5, tiny.VOCAB, (number, length)).astype(np.uint16)
    features = Features({"input_ids": Sequence(Value("uint16"), length=length)})
    return Dataset.from_dict({"input_ids": ids}, features=features)


def two(since=0.5, bases=(None, None), **changes):
    """A short phase and a long one."""
    return [Phase(0.0, rows_of(SHORT), bases[0]), Phase(since, rows_of(changes.pop("length", LONG), seed=2), bases[1])]


class Rows:
    """Shapes of all micro-batches in training, and the sums of their original ids, which identify rows."""

    def __init__(self, trainer):
        self.shapes, self.rows = [], []
        step = trainer.training_step

        def training_step(model, inputs, items=None):
            ids = torch.where(inputs["labels"] != -100, inputs["labels"], inputs["input_ids"])
            self.shapes.append(tuple(ids.shape))
            self.rows.append([tuple(row) for row in ids.tolist()])
            return step(model, inputs, items)

        trainer.training_step = training_step


def trainer_on(
    folder, phases, backbone="bert", methods=None, dropout=0.1, masks=True, layers=2, counter=None, saved=(), **changes
):
    args = tiny.arguments(folder, **{"max_steps": -1, "save_total_limit": None, **changes})
    set_seed(args.seed)
    if backbone.endswith("electra"):
        kind = "modernbert" if backbone.startswith("modern") else "bert"
        model = tiny.joint(methods=methods, backbone=kind, num_hidden_layers=layers)
    else:
        model = tiny.masked_lm(backbone, methods, dropout=dropout, num_hidden_layers=layers)
    made = EffptTrainer(
        model, args, train_dataset=phases, eval_dataset=rows_of(SHORT, seed=3),
        processing_class=tiny.tokenizer() if masks else None,
    )  # fmt: skip
    made.cost.counter = counter or tiny.RoughCounter()
    made.add_callback(tiny.SaveAt(saved))
    return made


def test_a_generator_without_full_attention_keeps_the_base_in_its_configuration():
    """As in `fast_tiny`, whose lower half has narrow windows, and whose generator has that half only."""
    model = tiny.joint(
        "electra", backbone="modernbert", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"],
        generator={"num_hidden_layers": 1, "layer_types": ["sliding_attention"]},
    )  # fmt: skip
    apply_phase(Phase(0.0, rows_of(SHORT), rotary_base=20_000.0), model.backbone)
    assert rotary_base_of(model.config) == 20_000.0
    assert model.generator.config.rope_parameters["full_attention"]["rope_theta"] == 20_000.0


def test_the_base_of_a_generator_rises_too(tmp_path):
    trainer = trainer_on(tmp_path, two(bases=(10_000.0, 160_000.0)), "modern_electra")
    trainer.train()
    model, ids = trainer.model.eval(), torch.arange(5, 5 + LONG)[None]
    assert rotary_base_of(model.config) == rotary_base_of(model.generator.config) == 160_000.0
    assert torch.allclose(model.export_generator()(ids).logits, model.generator(ids).logits, atol=1e-6)
    assert torch.allclose(model.export()(ids)[0], model.backbone(ids)[0], atol=1e-6)


def test_steps_have_as_many_tokens_in_longer_rows(tmp_path):
    trainer = trainer_on(tmp_path, two(), gradient_accumulation_steps=2)
    seen = Rows(trainer)
    trainer.train()
    assert seen.shapes == [(4, SHORT)] * 8 + [(2, LONG)] * 8
    assert trainer.clock.tokens == 8 * 2 * 4 * SHORT
    # Each pass is over all rows, in an order of its own: 12 rows are three steps of four.
    passes = [row for batch in seen.rows[8:] for row in batch]
    every = {tuple(row) for row in two()[1].rows["input_ids"]}
    assert set(passes[:12]) == every
    assert passes[:4] != passes[12:16]


@pytest.mark.parametrize(
    ("backbone", "places"), [("bert", (2, 4, 7)), ("modernbert", (2, 4, 7)), ("electra", (4,))], ids=lambda of: str(of)
)
def test_a_resumed_run_is_the_straight_one(tmp_path, backbone, places):
    """Before the change, at the step at which the first phase ends, and after it."""
    bases = (10_000.0, 160_000.0) if backbone == "modernbert" else (None, None)
    straight = trainer_on(tmp_path, two(bases=bases), backbone, saved=places)
    straight.train()
    for at in places:
        second = trainer_on(tmp_path / "resumed", two(bases=bases), backbone)
        seen = Rows(second)
        second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        assert seen.shapes == [(4, SHORT)] * max(0, 4 - at) + [(2, LONG)] * min(4, 8 - at)
        tiny.assert_same_weights(straight.model, second.model)
        assert second.clock.flops == straight.clock.flops
        if backbone == "modernbert":
            assert rotary_base_of(second.model.config) == 160_000.0


def test_growth_and_dropped_layers_go_on_through_the_change(tmp_path):
    methods = {"stacking": {"depth": 1, "at": [0.3]}, "layerdrop": {"p": 0.3}}
    straight = trainer_on(tmp_path, two(), methods=methods, saved=[5])
    straight.train()
    second = trainer_on(tmp_path / "resumed", two(), methods=methods)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    tiny.assert_same_weights(straight.model, second.model)


def test_a_teacher_keeps_its_rotary_base(tmp_path):
    """It is the model as it was before the change, also once a checkpoint of after it is loaded."""
    changes = {"backbone": "modernbert", "methods": VARIANTS["compress, distilled"], "layers": 4}
    phases = two(0.75, (10_000.0, 160_000.0))
    straight = trainer_on(tmp_path, phases, saved=[7], **changes)
    straight.train()
    second = trainer_on(tmp_path / "resumed", phases, **changes)
    seen, step = [], second.training_step

    def training_step(*args):
        teacher = teacher_of(second.model.backbone).encoder
        seen.append((rotary_base_of(teacher.config), rotary_base_of(second.model.config)))
        return step(*args)

    second.training_step = training_step
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert seen == [(10_000.0, 160_000.0)]
    tiny.assert_same_weights(straight.model, second.model)


def test_phases_follow_a_budget_of_tokens(tmp_path):
    trainer = trainer_on(tmp_path, two(0.75), budget=f"{8 * 4 * SHORT}tokens")
    seen = Rows(trainer)
    trainer.train()
    assert seen.shapes == [(4, SHORT)] * 6 + [(2, LONG)] * 2


def test_workers_load_the_rows_of_a_phase(tmp_path):
    trainers = [trainer_on(tmp_path, two(), dataloader_num_workers=workers) for workers in (0, 1)]
    seen = [Rows(trainer) for trainer in trainers]
    for trainer in trainers:
        trainer.train()
    assert seen[0].rows == seen[1].rows


def test_the_rotary_base_becomes_that_of_the_phase(tmp_path):
    """Of full attention, in the model and in its export; that of sliding attention stays."""
    trainer = trainer_on(tmp_path, two(bases=(10_000.0, 160_000.0)), "modernbert", dropout=0.0)
    bases = []
    step = trainer.training_step

    def training_step(*args):
        bases.append(rotary_base_of(trainer.model.config))
        return step(*args)

    trainer.training_step = training_step
    trainer.train()
    assert bases == [10_000.0] * 4 + [160_000.0] * 4
    trainer.save_model()
    stock = ModernBertForMaskedLM.from_pretrained(tmp_path)
    assert stock.config.rope_parameters["full_attention"]["rope_theta"] == 160_000.0
    assert stock.config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0
    ids = torch.randint(5, tiny.VOCAB, (2, LONG))
    assert torch.allclose(stock.eval()(ids).logits, trainer.model.eval()(ids).logits, atol=1e-5)
    rebuilt = type(trainer.model)(trainer.model.config).eval()
    rebuilt.load_state_dict(trainer.model.state_dict())
    assert torch.equal(rebuilt(ids).logits, trainer.model(ids).logits)
    trainer.train()  # anew, so from the first phase on
    assert bases[8:] == bases[:8]


def test_a_checkpoint_of_other_phases_is_refused(tmp_path):
    first = trainer_on(tmp_path, two(), save_strategy="steps", save_steps=2)
    first.add_callback(tiny.StopAfter(2))
    first.train()
    with pytest.raises(EffptError, match=r"has changed since .* from 0\.5: .* now .* from 0\.6: "):
        trainer_on(tmp_path, two(0.6)).train(resume_from_checkpoint=True)


def test_long_rows_are_evaluated_with_as_many_tokens(tmp_path):
    trainer = trainer_on(tmp_path, two(), per_device_eval_batch_size=4)
    sizes = [
        len(next(iter(trainer.get_eval_dataloader(rows)))["input_ids"])
        for rows in (rows_of(SHORT), rows_of(LONG), rows_of(128))
    ]
    assert sizes == [4, 2, 1]


def shuffled(rows):
    documents = np.ones((len(rows), LONG), np.uint8)
    return rows.add_column("document_ids", list(documents), feature=Sequence(Value("uint8"), length=LONG))


REFUSED = [
    (lambda: [Phase(0.1, rows_of(SHORT)), *two()[1:]], {}, r"begin at \[0.1, 0.5\] of the clock, but must from 0 on"),
    (lambda: [two()[0], Phase(0.0, rows_of(LONG))], {}, r"begin at \[0.0, 0.0\]"),
    (lambda: two(1.0), {}, r"begin at \[0.0, 1.0\]"),
    (lambda: two(length=SHORT), {}, r"have \[16, 16\] tokens, but each phase must have longer ones"),
    (lambda: two(length=40), {}, "40 tokens do not fit a model of 32 positions"),
    (lambda: two(length=24), {}, "make `per_device_train_batch_size` a multiple of 3"),
    (lambda: two(0.9), {}, "Of 8 steps none begins at 0.9 of the clock"),
    (lambda: [two()[0], Phase(0.5, shuffled(rows_of(LONG)))], {}, "Only some phases have rows with `document_ids`"),
    (lambda: two(), {"masks": False}, "need rows from `pack"),
    (lambda: two(bases=(None, 160_000.0)), {}, "has no rotary positions of full attention"),
    (lambda: two(bases=(None, -1.0)), {"backbone": "modernbert"}, "The rotary base -1.0 must be above 0"),
    (lambda: two(), {"methods": {"selection": {}}}, "`selection` remembers rows by their number"),
]


@pytest.mark.parametrize(("phases", "changes", "message"), REFUSED)
def test_impossible_phases_are_refused_at_construction(tmp_path, phases, changes, message):
    with pytest.raises(EffptError, match=message):
        trainer_on(tmp_path, phases(), **{"per_device_train_batch_size": 4, **changes})


class TestMaskRates:
    """Phases on the same rows that differ in the share of masked tokens."""

    @staticmethod
    def phases(*rates, rows=None):
        rows = rows_of(SHORT) if rows is None else rows
        return [Phase(number / len(rates), rows, mlm_probability=rate) for number, rate in enumerate(rates)]

    @staticmethod
    def masked(trainer):
        """Labels a row in each micro-batch, as they come."""
        found, step = [], trainer.training_step

        def training_step(model, inputs, items=None):
            found.append((inputs["labels"] != -100).sum(1).tolist())
            return step(model, inputs, items)

        trainer.training_step = training_step
        return found

    def test_the_share_changes_and_the_order_of_the_rows_goes_on(self, tmp_path):
        plain = trainer_on(tmp_path / "plain", rows_of(SHORT))
        trainer = trainer_on(tmp_path / "phases", self.phases(0.5, 0.25))
        seen, expected, masked = Rows(trainer), Rows(plain), self.masked(trainer)
        trainer.train()
        plain.train()
        assert masked == [[8] * 4] * 4 + [[4] * 4] * 4
        assert [sorted(batch) for batch in seen.rows] == [sorted(batch) for batch in expected.rows]

    def test_a_resumed_run_is_the_straight_one(self, tmp_path):
        methods = {"tnf": {"k": 2, "min_count": 2, "max_count": 3}}  # whose collator wraps the one that masks
        straight = trainer_on(tmp_path, self.phases(0.5, 0.25), methods=methods, saved=[2, 4, 7])
        straight.train()
        for at in (2, 4, 7):
            second = trainer_on(tmp_path / "resumed", self.phases(0.5, 0.25), methods=methods)
            masked = self.masked(second)
            second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
            assert masked == [[8] * 4] * max(0, 4 - at) + [[4] * 4] * min(4, 8 - at)
            tiny.assert_same_weights(straight.model, second.model)
            assert second.clock.flops == straight.clock.flops

    def test_fewer_masked_tokens_cost_less(self, tmp_path):
        flops = []
        for rates in ((0.5, 0.25), (0.5, 0.5)):
            trainer = trainer_on(tmp_path / str(rates), self.phases(*rates), counter=FlopCounter())
            trainer.train()
            flops.append(trainer.clock.flops)
        assert flops[0] < flops[1]

    def test_a_share_of_the_only_phase_holds(self, tmp_path):
        trainer = trainer_on(tmp_path, self.phases(0.5))
        masked = self.masked(trainer)
        trainer.train()
        assert masked == [[8] * 4] * 8

    def test_held_out_text_keeps_its_masks(self, tmp_path):
        trainer = trainer_on(tmp_path, self.phases(0.5, 0.25))
        trainer.train()
        batch = next(iter(trainer.get_eval_dataloader()))
        assert set((batch["labels"] != -100).sum(1).tolist()) == {2}  # 15 % of 16 tokens

    @pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
    def test_a_share_is_between_0_and_1(self, tmp_path, rate):
        with pytest.raises(EffptError, match="must be a share between 0 and 1"):
            trainer_on(tmp_path, self.phases(0.5, rate))

    def test_rows_must_be_masked_here(self, tmp_path):
        with pytest.raises(EffptError, match="no collator of this package masks"):
            trainer_on(tmp_path, self.phases(0.5), masks=False)

    def test_checkpoints_of_other_shares_are_refused(self, tmp_path):
        first = trainer_on(tmp_path, self.phases(0.5, 0.25), save_strategy="steps", save_steps=2)
        first.add_callback(tiny.StopAfter(2))
        first.train()
        with pytest.raises(EffptError, match=r"has changed since .*, masked 0\.25, now .*, masked 0\.3\)"):
            trainer_on(tmp_path, self.phases(0.5, 0.3)).train(resume_from_checkpoint=True)
