"""serve: runs a backbone's frozen trunk for training in other processes, which ask it for states (``@sources.remote``)."""

from pathlib import Path


def run(*, backbone: str = "data/backbone", address: str = "127.0.0.1:7700", device: str = "cpu") -> None:
    """Answer until Ctrl-C or SIGTERM; whoever reaches the address may ask, so it must not face an open network.

    Args:
        backbone: folder of the backbone.
        address: HOST:PORT to listen on; port 0 = one that is free, which is printed.
        device: that the trunk computes on, "cpu", "cuda", "cuda:1" ...
    """
    from pipeline.data import trunk_server

    trunk_server.serve(Path(backbone), address, device)
