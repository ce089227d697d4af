"""Fields of a JSON value by their paths, for tests that change one at a time."""


def leaves(value, path=()):
    """Paths to every value of nested dicts and lists, their containers too."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def set_field(value, path, new):
    """Replace what is there; ``leaves`` itself = take it away."""
    for key in path[:-1]:
        value = value[key]
    if new is leaves:
        del value[path[-1]]
    else:
        value[path[-1]] = new
