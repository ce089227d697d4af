"""A cache of keys and values: entries by turn, slots that only look back, rows that are left out."""

import torch

from components.nn.attention import Block
from components.nn.key_value_cache import KeyValueCache
from components.refiners.core import causal_mask


class Library:
    """Remembers which rows were selected."""

    def __init__(self):
        self.selected = []

    def batch_select_indices(self, rows):
        self.selected.append(rows.tolist())


def places(*rows):
    return torch.tensor(rows)


def test_an_entry_grows_at_its_turn_of_every_pass():
    cache = KeyValueCache()
    first, second = torch.randn(2, 3, 4), torch.randn(2, 2, 3, 5)
    cache.admit(places([0, 1, 2], [0, 1, 2]), torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(cache.extended(first), first) and torch.equal(cache.extended(second), second)
    more, further = torch.randn(2, 1, 4), torch.randn(2, 2, 1, 5)
    cache.admit(places([3], [3]), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(cache.extended(more), torch.cat([first, more], 1))
    assert torch.equal(cache.extended(further), torch.cat([second, further], 2))
    assert cache.new == 1 and cache.places.tolist() == [[0, 1, 2, 3]] * 2


def test_a_slot_sees_the_tokens_up_to_itself_and_no_gap():
    cache = KeyValueCache()
    cache.admit(places([0, 1, 2], [0, 1, 2]), torch.tensor([[True, True, True], [True, False, False]]))
    assert cache.visible()[1, 0].tolist() == [[True, False, False]] * 3
    assert cache.visible()[0, 0].tolist() == torch.ones(3, 3).tril().bool().tolist()
    cache.admit(places([3, 4], [1, 2]), torch.tensor([[True, True], [True, False]]))
    assert cache.visible()[1, 0].tolist() == [[True, False, False, True, False]] * 2
    assert cache.visible()[0, 0].tolist() == [[True, True, True, True, False], [True] * 5]


def test_rows_that_are_left_out_leave_everything():
    library = Library()
    cache, entry = KeyValueCache(library), torch.randn(3, 2, 4)
    cache.admit(places([0, 1], [0, 1], [0, 1]), torch.tensor([[True, True], [True, False], [True, True]]))
    cache.extended(entry)
    cache.take(torch.tensor([0, 2]))
    cache.admit(places([2], [2]), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(cache.extended(torch.zeros(2, 1, 4))[:, :2], entry[[0, 2]])
    assert cache.tokens.all() and cache.tokens.shape == (2, 3) and library.selected == [[0, 2]]


def test_a_block_read_in_parts_says_what_it_says_of_the_whole():
    torch.manual_seed(0)
    block, x, cache = Block(16, 2, rotary=True).double(), torch.randn(2, 7, 16).double(), KeyValueCache()
    whole, parts = block(x, causal_mask(x)), []
    for first, last in ((0, 3), (3, 4), (4, 7)):
        where = torch.arange(first, last).expand(2, -1)
        cache.admit(where, torch.ones_like(where, dtype=torch.bool))
        parts.append(block(x[:, first:last], cache.visible(), where, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
