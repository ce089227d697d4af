"""What tests of decoding share."""

import pytest

from components import noise


@pytest.fixture
def noise_keys(monkeypatch):
    """Collect the (stream, uid) of every noise that is drawn."""
    keys, original = [], noise.uniform

    def uniform(seed, stream, uid, n):
        keys.extend(zip(stream.tolist(), uid.tolist(), strict=True))
        return original(seed, stream, uid, n)

    monkeypatch.setattr(noise, "uniform", uniform)
    return keys
