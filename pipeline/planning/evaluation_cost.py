"""What evaluation will take: every model on every measure, decode, answer and likelihood. What halting rules cost is left out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.training.freezing import count_parameters
from pipeline.evaluation import evaluator
from pipeline.planning import memory
from pipeline.planning.cost import Cost, Memory
from pipeline.planning.cost_model import LOOKED_AT, CostModel
from pipeline.planning.forward_costs import depths_read, every_step_read, last_step_read, restarts_read
from pipeline.training import flops
from pipeline.training.shapes import META

OPTIONAL = {"finetune", "control_adapter", "control_lora", "control_refiner_lora"}  # models that may be switched off


@dataclass(frozen=True)
class Look:
    """So many examples of a split, each with a share of its answer masked; whether models share what runs below the split."""

    split: str
    ratio: float
    examples: int
    shared: bool = True


class EvaluationCost:
    """The evaluation of one configuration. Models share the weights that no phase trained, and in looks at the same masked examples
    what runs below the split.

    Args:
        cost_model: of the same configuration.
        trained: model of each phase, what it does not train frozen.
        optional: controls that are switched on: whole, and what they do not share with the backbone.
        with_finetune: it takes steps.
    """

    def __init__(
        self,
        cost_model: CostModel,
        trained: Mapping[str, Model],
        optional: Mapping[str, tuple[Model, Sequence[Tensor]]],
        *,
        with_finetune: bool,
    ) -> None:
        self.cost_model, self.corpus = cost_model, cost_model.corpus
        self.of = {"control_backbone": cost_model.backbone, "control_warmup": trained["controls"], **trained}
        self.optional = optional
        off = OPTIONAL - {*optional, *(("finetune",) if with_finetune else ())}
        models, self.batch_size, self.seed = cost_model.arguments("evaluate", "models", "batch_size", "seed")
        self.compared = [name for name in models if name not in off]

    def cost(self) -> Cost:
        """Reckon operations, and the memory of all models together."""
        cost_model, refined = self.cost_model, self.cost_model.refined
        own_steps = refined.n_steps
        refined.set_steps(*cost_model.arguments("evaluate", "recursion_steps"))  # what training takes was reckoned before
        whole = {"control_backbone": cost_model.backbone} | {name: model for name, (model, _) in self.optional.items()}
        evaluated = Counter([cost_model.backbone, *(whole.get(name, refined) for name in self.compared)])
        if not cost_model.has_fixed_shapes("evaluate", refined):
            del evaluated[refined]
        cut = bool(cost_model.layer) and cost_model.backbone.n_steps == 1
        below = [name for name in self.compared if name == "control_adapter" or name not in {"finetune", *whole}]
        shared = len(below) if cut and refined in evaluated else 0  # run the frozen one's trunk
        work = self._of_looks(evaluated, shared) + self._of_decodes(evaluated) + self._of_recursion(evaluated, own_steps)
        own = [tensor for name in self.compared for tensor in self._own(name)]
        states = [cost_model.trunk(self.batch_size, self.corpus.vocabulary.sequence)] if shared else []
        loaded = count_parameters(cost_model.backbone) + sum(tensor.numel() for tensor in own)
        taken = Memory(memory.weights(cost_model.backbone) + memory.size(own), batch=memory.size(states))
        return Cost("evaluate", loaded, 0, loaded, taken, beside=work)

    def _own(self, name: str) -> Sequence[Tensor]:
        """Weights of a model that it does not share."""
        return self.optional[name][1] if name in self.optional else memory.own(self.of[name])

    def _of_looks(self, evaluated: Mapping[Model, int], shared: int) -> int:
        """One pass of every model over examples whose answers are masked in part; of one with memory two."""
        sequence, refined = self.corpus.vocabulary.sequence, self.cost_model.refined
        spared = shared * flops.count(partial(self.cost_model.trunk, 1, sequence)) if shared else 0
        work = 0
        for look in self._looks():
            batch = self._batch(look.split, look.ratio)
            of_all = sum(every_step_read(model, batch.to(META), n) for model, n in evaluated.items())
            work += look.examples * (of_all - look.shared * spared)
        if refined.remembers:  # after a pass with all masked
            for split, ratio, examples in self._measures():
                again = (every_step_read(refined, self._batch(split, share).to(META)) for share in (1.0, ratio))
                work += examples * evaluated[refined] * sum(again)
        return work

    def _looks(self) -> Iterator[Look]:
        names = ("answers", "likelihood", "forgetting")
        answers, likelihood, forgetting = self.cost_model.arguments("evaluate", *names)
        causal = self.corpus.vocabulary.causal
        yield from (Look(*measure) for measure in self._measures())
        if answers is not None and causal:  # every token is read once, and read out once
            generated = answers()
            yield Look(generated.split, 1.0, min(generated.items, len(self.corpus.splits[generated.split])), shared=False)
        if likelihood is not None:  # half of an answer is masked on average
            bound = likelihood()
            yield Look(bound.split, 1.0 if causal else 0.5, bound.items * (1 if causal else bound.samples))
        if forgetting is not None:  # a look at as many tokens, in other places
            split, ratio = forgetting
            yield Look(split, ratio, len(self.corpus.splits[split]))

    def _measures(self) -> list[tuple[str, float, int]]:
        """Split, share of an answer that is masked, and examples of each measure."""
        [measures] = self.cost_model.arguments("evaluate", "measures")
        return [(split, ratio, len(self.corpus.splits[split])) for split, ratio in measures.values()]

    def _of_decodes(self, evaluated: Mapping[Model, int]) -> int:
        """Whole answers in several passes, each of which reads all tokens."""
        decodes, answers, parallelism = self.cost_model.arguments("evaluate", "decodes", "answers", "parallelism")
        written = [(split, passes, examples) for split, passes, _, examples in decodes.values()]
        written += [] if parallelism is None else parallelism().decodes()
        if answers is not None and not self.corpus.vocabulary.causal:
            generated = answers()
            written.append((generated.split, generated.passes, generated.items))
        work = 0
        for split, passes, examples in written:
            batch, rows = self._batch(split, 1.0), min(examples, len(self.corpus.splits[split]))
            work += passes * rows * sum(last_step_read(model, batch.to(META), n) for model, n in evaluated.items())
        return work

    def _of_recursion(self, evaluated: Mapping[Model, int], own_steps: int) -> int:
        """More recursion steps and restarts, on the headline."""
        names = ("measures", "depths", "breadth", "headline")
        measures, depths, breadth, headline = self.cost_model.arguments("evaluate", *names)
        split, ratio = measures[headline]
        batch, rows, work = self._batch(split, ratio), len(self.corpus.splits[split]), 0
        if depths:
            work += rows * sum(depths_read(model, batch.to(META), depths, n) for model, n in evaluated.items())
        if breadth is not None:
            each = ((restarts := breadth()).steps or own_steps, restarts.restarts[-1])
            work += rows * sum(restarts_read(model, batch.to(META), *each, n) for model, n in evaluated.items())
        return work

    def _batch(self, split: str, ratio: float) -> Batch:
        """A few of its examples with this share of each answer masked."""
        rows = self.corpus.splits[split].take(slice(0, LOOKED_AT))
        return next(evaluator.batches(rows, self.corpus.vocabulary, ratio, self.seed, LOOKED_AT))
