"""Fixtures that several test files use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, sync_playwright

from alrq_core import context
from alrq_core.models import digests, shared_weights
from tests.browsing import ARGUMENTS, FOUND
from tests.tiny import save_bert, save_llama, save_reviews

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes that each take all cores get in each other's way: a matrix product takes ten times
    # as long.
    torch.set_num_threads(1)


# Minutes each: begun last, one of them would run alone in the end.
LONG = ("test_faults.py", "test_kills.py", "test_ray_study.py", "test_matrix_study.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest begin first; all others keep their chance order."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the weights of tests out of the user's caches, in this process."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "cache_folder", lambda: folder / "packed")
        patch.setattr(digests, "digests_folder", lambda: folder / "digests")
        patch.setattr(shared_weights, "weights_folder", lambda: folder / "weights")
        yield


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=FOUND, args=ARGUMENTS)
        yield started
        started.close()
