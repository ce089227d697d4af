"""The founding documents' own code, word for word but for import paths, and what their settings do."""

import pytest
import torch
from torch.nn import functional as F

from components.backbones.recursive_lm import RecursiveLM
from components.backbones.split import tail_of
from components.batch import Batch
from components.founding import RecursiveLLM, create_slot_trm_refiner
from components.objective.deep_supervision import backward
from components.refined_lm import RefinedLM

SIZES = {"vocab_size": 11, "seq_len": 8, "hidden_size": 16, "num_heads": 2, "num_layers": 1, "L_cycles": 2}


def given(sequences=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (sequences, 8), generator=g)
    masked = torch.rand(sequences, 8, generator=g) < 0.6
    return Batch(targets.masked_fill(masked, 10), targets, masked, masked / 8)


def test_the_code_example():
    batch = given()
    # fmt: off
    config = {
        **SIZES,
        "H_cycles": 4,
        "enable_deep_supervision": True,
        "deep_supervision_weight": 0.5,
    }

    model = RecursiveLLM(config)

    # Training
    carry = model.initial_carry(batch)
    carry, outputs = model(carry, batch, enable_deep_supervision=True)

    # outputs["intermediate_logits"] contains [step_0, step_1, step_2, step_3]
    # Compute loss for each and backprop
    # fmt: on
    step_0, step_1, step_2, step_3 = outputs["intermediate_logits"]
    assert step_3 is outputs["logits"] and step_0.shape == step_1.shape == step_2.shape == (3, 8, 11)
    expected = [model.readout(state.hidden) for state in model.steps(batch)]
    assert all(torch.equal(ours, plain) for ours, plain in zip(outputs["intermediate_logits"], expected, strict=True))
    losses = [F.cross_entropy(logits[batch.masked], batch.targets[batch.masked]) for logits in outputs["intermediate_logits"]]
    sum(w * loss for w, loss in zip(model.supervision_weights(), losses, strict=True)).backward()
    assert all(p.grad is not None for p in model.parameters())

    # Inference
    model.eval()
    carry, outputs = model(carry, batch)  # Deep supervision auto-disabled
    assert set(outputs) == {"logits"} and carry.steps == 8


def test_the_inference_section():
    model, batch = RecursiveLLM(SIZES), given()
    # fmt: off
    model.eval()
    with torch.no_grad():
        carry = model.initial_carry(batch)
        carry, outputs = model(carry, batch)
        # Only final output is returned, no memory overhead
        predictions = outputs["logits"]
    # fmt: on
    assert torch.equal(predictions, model.readout(model.states(batch))) and set(outputs) == {"logits"}


def test_the_factory_call():
    refiner = create_slot_trm_refiner()
    assert [refiner.slots.project[name].weight.numel() for name in ("context", "reasoning", "refinement", "confidence")] == [
        524_288, 262_144, 262_144, 131_072
    ]  # fmt: skip
    x = torch.randn(1, 4, 1024, generator=torch.Generator().manual_seed(0))
    (state, *_) = refiner.refine(x, x)
    largest = (state.hidden - F.layer_norm(x, (1024,))).abs().max().item()
    assert 0 < largest <= 0.1 + 1e-6 and refiner.n_steps == 4


def test_the_factorys_knobs_reach_the_refiner():
    refiner = create_slot_trm_refiner(64, "tiny", delta_scale=0.05, orthogonality_weight=0.5, steps=3, seed=1)
    assert refiner.update.scale == 0.05 and refiner.orthogonality == 0.5 and refiner.n_steps == 3
    again, other = (create_slot_trm_refiner(64, "tiny", seed=seed) for seed in (1, 2))
    assert torch.equal(again.delta_in.weight, refiner.delta_in.weight)
    assert not torch.equal(other.delta_in.weight, refiner.delta_in.weight)


@pytest.mark.parametrize(("enabled", "training", "asked", "deep"), [
    (True, True, None, True), (True, False, None, False), (False, True, None, False), (False, True, True, True),
    (True, True, False, False), (True, False, True, True),
])  # fmt: skip
def test_deep_supervision_is_what_the_call_says_else_what_mode_and_configuration_say(enabled, training, asked, deep):
    model = RecursiveLLM({**SIZES, "enable_deep_supervision": enabled}).train(training)
    _, outputs = model(model.initial_carry(given()), given(), asked)
    assert ("intermediate_logits" in outputs) == deep and len(outputs.get("intermediate_logits", [1] * 3)) == 3


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [0.5, 0.5, 1.0]), ("linear_decay", [0.17, 0.33, 1.0]), ("exponential_decay", [0.125, 0.25, 1.0]),
])  # fmt: skip
def test_weights_are_the_pages(schedule, expected):
    settings = {**SIZES, "enable_deep_supervision": True, "deep_supervision_schedule": schedule}
    assert RecursiveLLM(settings).supervision_weights() == pytest.approx(expected, abs=5e-3)
    assert RecursiveLLM({**settings, "deep_supervision_weight": 0.0}).supervision_weights() == [0.0, 0.0, 1.0]
    assert RecursiveLLM({**settings, "enable_deep_supervision": False}).supervision_weights() == [0.0, 0.0, 1.0]


def test_the_gradient_of_the_pages_loss_is_the_training_loops():
    batch = given()
    settings = {**SIZES, "enable_deep_supervision": True, "deep_supervision_schedule": "linear_decay"}
    model, other = RecursiveLLM(settings).double(), RecursiveLLM(settings).double()
    _, outputs = model(model.initial_carry(batch), batch)
    for weight, logits in zip(model.supervision_weights(), outputs["intermediate_logits"], strict=True):
        each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        (weight * (each * batch.weights.flatten()).sum() / len(batch)).backward(retain_graph=True)
    backward(other, batch, other.supervision_weights(), sequences=len(batch))
    for ours, plain in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad)


def test_it_is_a_backbone_that_can_be_cut_and_refined():
    model, batch = RecursiveLLM(SIZES), given()
    tail = tail_of(model, 3)
    assert type(tail) is RecursiveLM
    refined = RefinedLM(model, create_slot_trm_refiner(16, "tiny"))
    _, outputs = refined(refined.initial_carry(batch), batch)
    assert len(outputs["intermediate_logits"]) == 4


@pytest.mark.parametrize(("change", "message"), [
    ({"H_cycle": 3}, "called 'H_cycle'; the nearest is 'H_cycles'"),
    ({"deep_supervision_schedule": "linear"}, "constant, linear_decay, exponential_decay, got 'linear'"),
    ({"H_cycles": 0}, "at least 1 of steps, got 0"),
])  # fmt: skip
def test_a_configuration_that_does_not_fit_is_an_error_naming_it(change, message):
    with pytest.raises(ValueError, match=message):
        RecursiveLLM({**SIZES, **change})


def test_a_configuration_without_its_sizes_is_an_error_naming_one():
    with pytest.raises(ValueError, match="got no 'seq_len'"):
        RecursiveLLM({"vocab_size": 3, "hidden_size": 16})
