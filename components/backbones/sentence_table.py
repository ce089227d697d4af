"""SentenceTable: a frozen sentence encoder as a backbone. Its "tokens" are sentences, and it has run already: a row for each.

Rows are normalised embeddings. It is causal: the state at a sentence is a prediction of the next one's row, by a ridge regression
from this sentence, the mean of all up to it, and the first. That is the frozen model's prediction, and what a refiner starts from.
The head *is* the table: ``model.head.weight[targets]`` is what predictions are to equal, and logits are similarities.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.backbones.backbone import BackboneModel
from components.backbones.normaliser import RobustNormaliser
from components.backbones.ridge import Ridge
from components.batch import Batch


class SentenceTable(BackboneModel):
    """Embeddings of sentences 0 .. vocab - 3; the last two ids hold no sentence (one is padding), and their rows are zero.

    Args:
        vocab: number of ids, these two included.
        seq: most sentences of an example.
        dim: width of an embedding.
        layers: 0; there is nothing to cut.
        first_layer: 0.

    Raises:
        ValueError: another layer than 0 is asked for.
    """

    causal = True

    def __init__(self, vocab: int, seq: int, dim: int, layers: int = 0, first_layer: int = 0) -> None:
        super().__init__()
        if layers or first_layer:
            raise ValueError(f"a table of sentences has no layers to cut, got layers {layers} and first_layer {first_layer}")
        self.architecture: dict[str, Any] = {"model": "SentenceTable", "vocab": vocab, "seq": seq, "dim": dim, "layers": 0}
        self.first_layer = 0
        self.head = nn.Linear(dim, vocab, bias=False)
        del self.head.weight  # no parameter: what predictions are to equal must never be trained
        self.head.register_buffer("weight", torch.zeros(vocab, dim))
        self.normaliser = RobustNormaliser(dim)
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(3 * dim, dim))  # of the regression
        self.register_buffer("bias", torch.zeros(dim))
        self.origin: dict[str, Any] = {}

    def fill(self, embeddings: Float[Tensor, "sentences dim"], fitted_on: Int[Tensor, "some"]) -> None:
        """Fit the normaliser on the sentences ``fitted_on``, and keep every embedding normalised."""
        self.normaliser.fit(embeddings[fitted_on])
        self.head.weight.zero_()
        self.head.weight[: len(embeddings)] = self.normaliser(embeddings)

    def regress(self, regression: Ridge) -> None:
        """Take a regression over ``features`` as the frozen prediction."""
        self.weight.copy_(regression.weight)
        self.bias.copy_(regression.bias)

    def features(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq three_dims"]:
        """At each place the rows of the sentence there, the mean of all up to it, and the first, side by side."""
        rows = self.embed(tokens)
        counts = torch.arange(1, rows.shape[1] + 1, device=rows.device)[:, None]
        return torch.cat([rows, rows.cumsum(1) / counts, rows[:, :1].expand_as(rows)], -1)

    def raw(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Turn states back into embeddings of the encoder."""
        return self.normaliser.inverse(states)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw nothing: the table holds what the encoder computed."""

    def embed(
        self, tokens: Int[Tensor, "batch seq"], places: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Look up the table's rows of these sentences."""
        return nn.functional.embedding(tokens.long(), self.head.weight)

    def trunk(
        self, tokens: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None, split: int
    ) -> Float[Tensor, "batch seq dim"]:
        """States: what the regression says at each place.

        Raises:
            ValueError: ``split`` is not 0.
        """
        if split:
            raise ValueError(f"a table of sentences has no layer {split}")
        return self.features(tokens) @ self.weight + self.bias

    def states_and_heads(
        self, batch: Batch, layers: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq context"] | None]:
        """Compute the states of a batch. There are no heads to show: ``layers`` must be empty."""
        if layers:
            raise ValueError("a table of sentences has no heads that could be a refiner's context")
        if batch.hidden is not None:
            return batch.hidden.to(self.head.weight.dtype), None
        return self.trunk(batch.tokens, batch.attention, 0), None

    def normed(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Return the states as they are: they are normalised embeddings."""
        return state
