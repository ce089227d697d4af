"""Memory that a machine or one of its GPUs refuses: how that is told from other errors, and in which words."""

import re

MEND = "what a stage takes: python -m stages configure --plan; what to set, cheapest first: docs/troubleshooting.md#out-of-memory"
ALLOCATORS = ("DefaultCPUAllocator", "not enough memory", "out of memory", "can't allocate memory")  # words of torch's
CUBLAS = "CUBLAS_STATUS_ALLOC_FAILED"  # of the library of products, which takes memory beside torch's


def out_of_memory(error: MemoryError | RuntimeError) -> str | None:
    """Say in one line that memory was refused, and what to do; None if the error is about something else.

    torch raises a class of its own for a GPU's, which is known by its name here, without importing torch, and a plain RuntimeError
    for the machine's and for what cuBLAS takes of a GPU's.
    """
    said = str(error).partition("\n")[0]
    of_memory = {"MemoryError", "OutOfMemoryError"} & {kind.__name__ for kind in type(error).__mro__}
    if not of_memory and not any(words in said for words in (*ALLOCATORS, CUBLAS)):
        return None
    reason = re.sub(r"^\[.*?\] (err == 0\. )?", "", said)  # without the place in torch's source
    reason = ". ".join(reason.split(". ")[:2])  # of a GPU's also how much was asked for
    return f"out of memory{f' ({reason})' if reason else ''}; {MEND}"
