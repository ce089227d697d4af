"""An S3 server on loopback, as tests of remotes and of stores need one."""

import contextlib
import logging
import urllib.request
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def s3() -> Iterator[tuple[str, dict[str, str]]]:
    """An S3 server in this process, with the bucket ``results``: its address, and the variables by which it is reached."""
    pytest.importorskip("dvc_s3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(urllib.request.Request(f"{address}/results", method="PUT"), timeout=60).close()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        yield address, {**keys, "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": host, "no_proxy": host}
    finally:
        server.stop()
