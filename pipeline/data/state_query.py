"""What is asked of a trunk in another process, as it stands in a URL; token ids and states travel beside it as safetensors.

Everything that decides a state's bits is in it, so that the answer is what a trunk in the same process would have made.
"""

from dataclasses import asdict, dataclass, fields
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit

import torch

from pipeline.errors import ConfigError

PATH = "/states"
COMMAND = "python -m stages serve"
MOST_BYTES = 16 << 20  # of a question: 1.8 million tokens with their padding
TOO_LARGE = f"expected {MOST_BYTES} bytes at most of a question"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class StateQuery:
    """States that are to be computed, whatever the tokens are.

    Attributes:
        backbone: digest of the backbone's manifest.
        layer: that the states enter.
        taps: layers below it whose entering states come too.
        dtype: "fp32" or "bf16", to which they are rounded.
        device: kind of device that computes them, "cpu" or "cuda".
        precision: of matrix products, "fp32" or "bf16".
        threads: CPU threads.
    """

    backbone: str
    layer: int
    taps: tuple[int, ...]
    dtype: str
    device: str
    precision: str
    threads: int

    def url(self) -> str:
        """Write the query as path and query string of a URL."""
        return f"{PATH}?{urlencode({**asdict(self), 'taps': ','.join(map(str, self.taps))})}"

    @classmethod
    def of_url(cls, url: str) -> Self:
        """Read a query from path and query string of a URL.

        Raises:
            ValueError: they are no such query; says what was expected.
        """
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=20)
        values, names = dict(pairs), {field.name for field in fields(cls)}
        if parts.path != PATH or values.keys() != names or len(pairs) != len(names):
            raise ValueError(f"expected {PATH} with {', '.join(sorted(names))}, each once")
        for name, choices in (("dtype", DTYPES), ("precision", PRECISIONS)):
            if values[name] not in choices:
                raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got '{values[name]:.20}'")
        layer, threads = _number(values, "layer", 0, 9999), _number(values, "threads", 1, 1024)
        taps = tuple(_number({"taps": tap}, "taps", 0, 9999) for tap in values["taps"].split(",")) if values["taps"] else ()
        return cls(values["backbone"], layer, taps, values["dtype"], values["device"], values["precision"], threads)


def host_and_port(address: str, source: str) -> tuple[str, int]:
    """Read an address such as 127.0.0.1:7700.

    Args:
        address: as it was typed.
        source: where, for the error.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as the resolver will; a label that is empty or too long is a ValueError
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.netloc != address or "@" in address:
        raise ConfigError(f"{source}: '{address}' is no address; expected HOST:PORT, such as 127.0.0.1:7700")
    return host, port


def _number(values: dict[str, str], name: str, low: int, high: int) -> int:
    text = values[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and low <= int(text) <= high):
        raise ValueError(f"expected {name} to be a number from {low} to {high}, got '{text:.20}'")
    return int(text)
