"""What was quantised once is read back to the last bit, or made again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alrq_core.files import claimed
from alrq_core.weights import cache as module
from alrq_core.weights.cache import PackedCache
from alrq_core.weights.packing import pack, stored_tensors
from alrq_core.weights.quantise import quantise
from search_spaces.formats import Format
from tests.waiting import HANGS_SECONDS

CPU = torch.device("cpu")
SOURCE = "digest of the model"
FORMATS = [
    Format(16, "plain", 0),
    Format(8, "int8", 0),
    Format(8, "hqq", 64),
    Format(4, "nf4-double", 64),
    Format(4, "nf4", 32),
    Format(4, "fp4", 64),
    Format(4, "hqq", 64),
    Format(3, "hqq", 64),
    Format(2, "hqq", 32),
    Format(3, "gptq", 64),
]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stored", FORMATS, ids=str)
def test_a_file_gives_back_what_was_quantised(
    stored: Format, weight: Tensor, tmp_path: Path
) -> None:
    expected = quantise(weight, stored)
    first, second = PackedCache(tmp_path, CPU, SOURCE), PackedCache(tmp_path, CPU, SOURCE)
    for cache in (first, first, second):
        found = cache(weight, stored, "a")

        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert (first.made, second.made) == (1, 0)
    assert second.files.read == 1


@pytest.mark.parametrize("stored", FORMATS, ids=str)
def test_a_layer_over_cached_tensors_computes_the_same(
    stored: Format, weight: Tensor, tmp_path: Path
) -> None:
    linear = nn.Linear(128, 96)
    linear.weight = nn.Parameter(weight)
    x = torch.randn(5, 128)
    plain = pack(linear, stored, torch.float32)
    cached = pack(linear, stored, torch.float32, PackedCache(tmp_path, CPU, SOURCE).of("a"))

    assert torch.equal(plain(x), cached(x))
    assert stored_tensors(cached)[2] == stored
    assert type(plain) is type(cached)


def test_other_names_models_and_settings_have_their_own_files(
    weight: Tensor, tmp_path: Path
) -> None:
    cache = PackedCache(tmp_path, CPU, SOURCE)
    cache(weight, FORMATS[3], "a")
    cache(weight.clone(), FORMATS[3], "a")

    assert cache.made == 1
    cache(weight, FORMATS[3], "b")
    cache(weight.view(128, 96), FORMATS[3], "a")
    cache(weight, FORMATS[4], "a")
    PackedCache(tmp_path, CPU, "other files")(weight, FORMATS[3], "a")

    assert len(list(tmp_path.iterdir())) == 5


def test_what_a_file_stores_already_is_not_written_again(weight: Tensor, tmp_path: Path) -> None:
    half = weight.bfloat16()
    found = PackedCache(tmp_path, CPU, SOURCE)(half, FORMATS[0], "a")

    assert found["codes"].data_ptr() == half.data_ptr()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept, added", [(-3, b""), (-1, b"\x17"), (0, b"")])
def test_a_damaged_file_is_made_anew(
    kept: int, added: bytes, weight: Tensor, tmp_path: Path
) -> None:
    PackedCache(tmp_path, CPU, SOURCE)(weight, FORMATS[1], "a")
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:kept] + added)
    cache = PackedCache(tmp_path, CPU, SOURCE)
    found = cache(weight, FORMATS[1], "a")

    assert cache.made == 1
    assert torch.equal(found["codes"], quantise(weight, FORMATS[1])["codes"])
    assert path.read_bytes() == whole


def test_without_a_place_to_write_trials_still_run(
    weight: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    cache = PackedCache(tmp_path / "file" / "folder", CPU, SOURCE)
    for _ in range(2):
        assert cache(weight, FORMATS[1], "a")["codes"].any()

    assert cache.made == 1
    assert "packed weights can't be kept in" in capsys.readouterr().err


def test_other_releases_of_the_libraries_share_nothing(
    weight: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PackedCache(tmp_path, CPU, SOURCE)
    cache(weight, FORMATS[1], "a")
    monkeypatch.setattr(module, "_versions", lambda: ("9.9",))
    cache(weight, FORMATS[1], "a")

    assert cache.made == 2


def test_another_form_of_what_is_stored_shares_nothing(
    weight: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PackedCache(tmp_path, CPU, SOURCE)
    cache(weight, FORMATS[1], "a")
    monkeypatch.setattr(module, "STORED_AS", "9")
    cache(weight, FORMATS[1], "a")

    assert cache.made == 2


class Moments:
    """Of modules whose inputs go together in their own ways."""

    key = "model and text"

    def __contains__(self, name: object) -> bool:
        return name in ("a", "b")

    def get(self, name: str, /) -> Tensor | None:
        if name not in self:
            return None
        inputs = torch.randn(20, 128, generator=torch.Generator().manual_seed(ord(name)))
        return inputs.T @ inputs


def test_codes_are_made_for_the_module_and_kept_apart(weight: Tensor, tmp_path: Path) -> None:
    stored, moments = Format(2, "gptq", 64), Moments()
    cache = PackedCache(tmp_path, CPU, SOURCE, moments)
    for name in ("a", "b", "lookup"):
        expected = quantise(weight, stored, moments.get(name))
        assert torch.equal(cache.of(name)(weight, stored)["codes"], expected["codes"])
    assert cache.made == len(list(tmp_path.iterdir())) == 3
    other = PackedCache(tmp_path, CPU, SOURCE, moments)
    other.of("a")(weight, stored)
    assert (other.made, other.files.read) == (0, 1)
    moments.key = "other text"
    PackedCache(tmp_path, CPU, SOURCE, moments).of("a")(weight, stored)
    assert len(list(tmp_path.iterdir())) == 4


def fill(folder: Path, weight: Tensor) -> int:
    cache = PackedCache(folder, CPU, SOURCE, Moments())
    wanted = [
        (name, weight, Format(bits, "gptq", 64)) for name in ("a", "b") for bits in (2, 3, 4, 8)
    ]
    told = list(cache.fill(wanted))
    assert all(count == len(wanted) for _, count in told)
    assert sorted(told) == told
    assert all(cache.files.path(cache.key(w, stored, name)).is_file() for name, w, stored in wanted)
    return cache.made


def test_processes_share_the_making(weight: Tensor, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(fill, [tmp_path] * 3, [weight] * 3))

    assert sum(made) == 8
    assert len(list(tmp_path.iterdir())) == 8
    assert fill(tmp_path, weight) == 0


def test_it_is_told_how_many_codes_there_are(weight: Tensor, tmp_path: Path) -> None:
    wanted = [("a", weight, Format(bits, "gptq", 64)) for bits in (2, 3, 4, 8)]
    first = PackedCache(tmp_path, CPU, SOURCE, Moments())
    first.of("a")(weight, wanted[1][2])

    assert list(first.fill(wanted)) == [(0, 4), (2, 4), (3, 4)]
    assert first.made == 4
    assert list(first.fill(wanted)) == []


def test_what_another_process_makes_is_waited_for(weight: Tensor, tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, CPU, SOURCE, Moments())
    path = cache.files.path(cache.key(weight, Format(2, "gptq", 64), "a"))
    with ThreadPoolExecutor(1) as pool:
        with claimed(path) as mine:
            assert mine
            waiting = pool.submit(fill, tmp_path, weight)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
        assert waiting.result(timeout=HANGS_SECONDS) == 8
