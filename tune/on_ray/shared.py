"""Whether all nodes of a cluster see one place for files."""

import secrets
from dataclasses import replace

import ray

from tune.on_ray.nodes import Tell, answer_of, nodes, on_node
from tune.study.store import Store


def check_shared(store: Store, flag: str, tell: Tell) -> None:
    """Check that all nodes that could train see what this machine writes, and that it sees what
    they write.

    Args:
        store: Where they do; a folder is one too. Nothing stays there.
        flag: By which it was given.
        tell: Where it is said what is waited for.

    Raises:
        ValueError: One doesn't; it is named.
    """
    store, content = replace(store, patience=0), secrets.token_hex(8)
    name = f".alrq-{secrets.token_hex(8)}"
    written = [name]
    try:
        store.write_text(name, content)
        able = [node for node in nodes() if node.resources.get("CPU")]
        asked = [(node, on_node(node, _seen).remote(store, name, node.id)) for node in able]
        for node, task in asked:
            found = answer_of(node, task, tell)
            answer = f"{name}-{node.id}"
            written.append(answer)
            if found != content or store.read_text(answer) != content:
                raise ValueError(
                    f"`{flag}` must be a place that all nodes share, got {store.uri!r}: the node "
                    f"at {node.address} does not see there what this machine writes. Give a folder "
                    "on a file system that all have mounted at this path, such as NFS or EFS, or "
                    "--storage for which all have the keys."
                )
    finally:
        for file in written:
            store.remove(file)


@ray.remote(max_retries=2)
def _seen(store: Store, name: str, node_id: str) -> str | None:
    """Return the content of a file, after writing it beside that; None if either can't be."""
    try:
        content = store.read_text(name)
        if content is not None:
            store.write_text(f"{name}-{node_id}", content)
    except OSError:
        return None
    return content
