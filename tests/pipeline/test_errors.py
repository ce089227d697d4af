"""Errors a user can cause are one family, and survive crossing processes."""

import pickle

import pytest

from pipeline.errors import ConfigError, DataError, TrainingError, UserError


@pytest.mark.parametrize("kind", [ConfigError, DataError, TrainingError])
def test_a_user_error_keeps_kind_and_message_across_processes(kind):
    error = pickle.loads(pickle.dumps(kind("what to do")))
    assert type(error) is kind and isinstance(error, UserError) and str(error) == "what to do"
