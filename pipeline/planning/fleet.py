"""The devices that a pipeline is planned for: how fast they are, how much they hold, and what joins them."""

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.machine.runtime import Runtime
from pipeline.settings import config, ginstate
from pipeline.training import flops

MFU = 0.4  # share of a device's largest rate that training reaches, where none is given; sudoku4's warmup on a CPU: 0.37
BYTES = ("memory", "link", "reading")  # that are given in GB


@dataclass(frozen=True)
class Fleet:
    """Devices that a pipeline is planned for.

    Attributes:
        rate: FLOP/s that training reaches on one of them; 0 = cannot be told.
        source: where this number comes from, in words.
        processes: that share every step, each on a device.
        memory: bytes of a device; 0 = not said, as below.
        link: bytes a second that a device sends to the others.
        reading: bytes a second of stored states that all devices read together.
        price: dollars for an hour of a device.
        storage: dollars for a month of 1e12 bytes.
    """

    rate: float
    source: str
    processes: int = 1
    memory: float = 0.0
    link: float = 0.0
    reading: float = 0.0
    price: float = 0.0
    storage: float = 0.0

    def holds(self, size: int) -> bool:
        """Tell whether a device has room for so many bytes; one of which nothing is known has."""
        return not self.memory or size <= self.memory


def fleet(
    text: str, peak: str = "", mfu: str = "", processes: str = "", memory: str = "", link: str = "", reading: str = "",
    price: str = "", storage: str = "",
) -> Fleet:  # fmt: skip
    """Read for what devices to plan.

    Args:
        text: resolved text of warmup, whose machine it is.
        peak: TFLOP/s of a device; "" = what a large matrix product reaches here.
        mfu: share of them that training reaches, above 0 and at most 1; "" = 0.4.
        processes: that share every step; "" = 1.
        memory: GB of a device; "" = not said, as below.
        link: GB/s that a device sends to the others.
        reading: GB/s of stored states that all devices read together.
        price: dollars for an hour of a device.
        storage: dollars for a month of a TB.

    Raises:
        ConfigError: no such number.
    """
    number = _number("processes", processes, 1e5) if processes else 1
    if number != int(number):
        raise ConfigError(f"--processes is '{processes}'; expected a whole number above 0")
    given = {"memory": memory, "link": link, "reading": reading, "price": price, "storage": storage}
    numbers = {name: _number(name, said, 1e6) * (1e9 if name in BYTES else 1.0) for name, said in given.items() if said}
    rate, source = _speed(text, peak, mfu)
    return Fleet(rate, source, int(number), **numbers)


def _speed(text: str, peak: str, mfu: str) -> tuple[float, str]:
    """FLOP/s that training will reach, and where that number comes from; 0 where it cannot be told."""
    share, origin = (_number("mfu", mfu, 1.0), "as given") if mfu else (MFU, "a guess: --mfu")
    used = f"{share:.0%} of them used (MFU, {origin})"
    if peak:
        return share * _number("peak", peak, 1e6) * 1e12, f"{float(peak):g} TFLOP/s (as given), {used}"
    config.load_text(text, "warmup")
    names = ("device", "precision", "threads")
    machine = ginstate.arguments("stages.warmup.run", "pipeline.machine.runtime.Runtime", names)
    assert machine is not None
    try:
        runtime = Runtime(**machine)
        with runtime.in_force():
            ceiling = flops.ceiling(runtime)
    except ConfigError as error:
        return 0.0, f"not told: {error}, or give --peak (TFLOP/s of the device)"
    where = f"a matrix product here: {', '.join(f'{name} {machine[name]}' for name in names)}"
    return share * ceiling, f"{ceiling / 1e12:.3g} TFLOP/s ({where}), {used}"


def _number(flag: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise ConfigError(f"--{flag} is '{text}'; expected a number above 0 and at most {most:g}")
    return value
