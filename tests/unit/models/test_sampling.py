import pytest
import torch
from scipy import stats

from hf_effpt.core.random import row_keys
from hf_effpt.models.sampling import sample, sample_distinct, uniforms
from tests import tiny

KNOWN = torch.tensor([0.70, 0.15, 0.08, 0.05, 0.02])
DRAWS = 40_000


def draws(dtype: torch.dtype, count: int = DRAWS) -> torch.Tensor:
    """As many samples of the known distribution, each of a position of its own."""
    keys = row_keys(torch.arange(count).view(-1, 1))
    uniform = uniforms(keys, torch.zeros(count, 1, dtype=torch.long), 1).flatten(0, 1)
    return sample(KNOWN.log().to(dtype).expand(count, -1), uniform).flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frequencies_are_those_of_the_softmax(dtype):
    # What rounding the logits does to the distribution is theirs; the sampler must add nothing to it.
    expected = KNOWN.log().to(dtype).double().softmax(0)
    found = torch.bincount(draws(dtype), minlength=5)
    assert stats.chisquare(found.numpy(), (expected * DRAWS).numpy()).pvalue > 1e-3


def test_draws_of_a_row_are_independent_of_each_other():
    """Pairs of neighbouring positions, and of draws at one position, are as frequent as the product says."""
    count = 20_000
    positions = torch.tensor([[3, 4]]).expand(count, -1)
    uniform = uniforms(row_keys(torch.arange(count).view(-1, 1)), positions, 2)
    for left, right in ((uniform[:, 0, 0], uniform[:, 1, 0]), (uniform[:, 0, 0], uniform[:, 0, 1])):
        cells = torch.bincount((left * 4).long() * 4 + (right * 4).long(), minlength=16)
        assert stats.chisquare(cells.numpy()).pvalue > 1e-3


def test_depends_on_row_and_position_alone():
    ids = torch.randint(5, 100, (6, 16))
    positions = torch.arange(3).expand(6, -1)
    whole = uniforms(row_keys(ids), positions, 2)
    for order in (torch.tensor([3, 1, 5]), torch.tensor([4])):
        assert torch.equal(uniforms(row_keys(ids[order]), positions[order], 2), whole[order])
    changed = ids.clone()
    changed[:, 7] += 1
    assert not (uniforms(row_keys(changed), positions, 2) == whole).any()
    swapped = ids[:, [1, 0, *range(2, 16)]]
    assert (row_keys(swapped) != row_keys(ids))[ids[:, 0] != ids[:, 1]].all()


def test_leaves_the_generators_alone():
    before = torch.get_rng_state()
    draws(torch.float32, 100)
    assert torch.equal(before, torch.get_rng_state())


def test_never_draws_what_is_impossible():
    logits = torch.zeros(1000, 6)
    logits[:, [0, 2, 5]] = -torch.inf
    extreme = torch.linspace(0, 1 - 2.0**-53, 1000, dtype=torch.float64).view(-1, 1)
    assert set(sample(logits, extreme).flatten().tolist()) == {1, 3, 4}


def test_a_single_position_keeps_its_shape():
    assert sample(torch.zeros(1, 7), torch.full((1, 1), 0.5, dtype=torch.float64)).shape == (1, 1)


def test_distinct_draws_have_the_frequencies_of_gumbel_top_k():
    count = 30_000
    uniform = uniforms(row_keys(torch.arange(count).view(-1, 1)), torch.zeros(count, 1, dtype=torch.long), 2)
    drawn = sample_distinct(KNOWN.log().expand(count, -1), uniform.flatten(0, 1))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    # Plackett-Luce: p_i p_j / (1 - p_i), which Gumbel top-k has, too
    known = KNOWN.double() / KNOWN.double().sum()
    expected = known[:, None] * known / (1 - known[:, None])
    expected.fill_diagonal_(0)
    found = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25)
    possible = expected.flatten() > 0
    assert stats.chisquare(found[possible].numpy(), (expected.flatten()[possible] * count).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_samples_of_a_generator_do_not_depend_on_the_side_of_the_padding(objective, backbone):
    torch.manual_seed(5)
    model = tiny.joint(objective, backbone=backbone).eval()
    inputs = tiny.batch(3, objective=objective)
    pads, replaced, sums = inputs["input_ids"].new_zeros(3, 4), [], []
    for place, sides in ((slice(None), (0, 0)), (slice(0, -4), (0, 4)), (slice(4, None), (4, 0))):
        left, right = (pads[:, :count] for count in sides)
        padded = {"input_ids": torch.cat([left, inputs["input_ids"], right], dim=1)}
        padded["labels"] = torch.cat([left - 100, inputs["labels"], right - 100], dim=1)
        padded["attention_mask"] = torch.cat([left, torch.ones_like(inputs["labels"]), right], dim=1)
        # Places that a model without relative ones reads.
        padded["position_ids"] = (padded["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        output = model(**padded)
        replaced.append(output.corrupted_ids[:, place])
        sums.append(output.sums)
    assert sums[0]["replaced"] > 0
    for corrupted, other in zip(replaced[1:], sums[1:], strict=True):
        assert torch.equal(corrupted, replaced[0])
        for name, value in sums[0].items():
            torch.testing.assert_close(other[name], value, msg=name)


def test_keys_of_rows_do_not_depend_on_padding():
    ids = torch.randint(5, 100, (4, 9))
    real = torch.ones_like(ids)
    for sides in ((3, 0), (0, 3), (2, 5)):
        padded, mask = (torch.nn.functional.pad(tensor, sides) for tensor in (ids, real))
        assert torch.equal(row_keys(padded, mask.bool()), row_keys(ids))
