"""The documents: commands and Python lines that work, links that lead somewhere."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from alrq_core.context import TrialContext
from alrq_core.recipe import Recipe
from benchmarks.main_job import ROWS, SEARCHES, read
from tests.tiny import make_context

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
README_LINES = 150
# What the snippets of CONTRIBUTING would import.
BROUGHT = {"QMCSampler", "Olmo2Config"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def block(document: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", text(document), re.DOTALL)
    assert found is not None
    return found[1]


def prose(document: Path) -> str:
    """Return a document without its blocks of code."""
    return re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the anchor of each link that is no address."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            yield (document.parent / path).resolve() if path else document, anchor


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", text("CONTRIBUTING.md"), re.DOTALL)


def test_both_lines_do_their_own_set_up() -> None:
    main_job, tests = block("README.md", "main job"), block("README.md", "tests")
    assert main_job.startswith("pip install -r requirements.txt && python run_search.py")
    assert tests.startswith("pip install -r requirements.txt -e ")
    assert "python -m pytest" in tests


def test_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) < README_LINES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in links(document):
        assert path.exists(), path
        if anchor:
            assert anchor in anchors(path), f"{path}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    linked = {path for path, _ in links(index)}
    assert {page for page in DOCUMENTS if page.parent == index.parent} - {index} <= linked


def test_commands_name_programs_that_exist() -> None:
    for document in DOCUMENTS:
        if document.name in ("negative-results.md", "CHANGELOG.md"):
            # They tell of programs that are gone, with the commit that has them.
            continue
        written = document.read_text(encoding="utf-8")
        for program in re.findall(r"python (\w[\w/]*\.py)", written):
            assert (ROOT / program).is_file(), f"{document.name}: {program}"
        for module in re.findall(r"python\s+-m\s+(benchmarks\.\w+)", written):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_picture_shows_the_rows_of_the_table() -> None:
    lines = text("docs/measurements.md").splitlines()
    for row in read(ROWS):
        cells = (
            f"| {float(row['average_bits']):.2f} | {row['average_rank']} | {row['memory_mb']} MB "
            f"| {row['target_mb']} MB | {row['accuracy']} % [{row['low']}, {row['high']}] |"
        )
        difference = f"{row['difference']} [{row['difference_low']}, {row['difference_high']}] |"
        wanted = difference if row["difference"] else " - |"
        assert any(row["trial"] in x and cells in x and x.endswith(wanted) for x in lines), row


def test_the_tables_of_searches_show_the_recorded_scores() -> None:
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for row in read(SEARCHES):
        if row["limit"]:
            groups[row["task"], f"{float(row['limit']) / 1e6:.1f}", row["kind"]].append(row)
    # A table before training and one after it for each task, in the order of the file.
    tasks = list(dict.fromkeys(task for task, _, _ in groups))
    lines = text("docs/search-measurements.md").splitlines()
    for (task, limit, kind), rows in groups.items():
        every = [x.split(" | ") for x in lines if x.startswith(f"| {limit} | {kind} | ")]
        assert len(every) == 2 * len(tasks)
        found = every[2 * tasks.index(task) :][:2]
        for state, cells in zip(("start", "trained"), found, strict=True):
            assert float(cells[2]) == pytest.approx(mean(float(r["mb"]) for r in rows), abs=0.006)
            for score, cell in (("divergences", cells[3]), ("losses", cells[7])):
                recorded = mean(float(row[f"{state}_{score}"]) for row in rows)
                assert float(cell) == pytest.approx(recorded, abs=6e-5)


@pytest.mark.parametrize("snippet", snippets(), ids=lambda code: code.splitlines()[0])
def test_snippets_of_contributing_fit_the_code(snippet: str) -> None:
    """All that a snippet names is in the file that it belongs to, but for what it brings along."""
    file = text(snippet.splitlines()[0].removeprefix("# "))
    nodes = list(ast.walk(ast.parse(snippet)))
    brought = {node.name for node in nodes if isinstance(node, ast.FunctionDef)} | BROUGHT
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - brought
    for name in names:
        if name.startswith("_") or name[0].isupper():
            assert re.search(rf"\b{name}\b", file), name


@pytest.fixture
def tiny_model(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where `load_context` gives a tiny model and task."""

    def load(model: str, task: str, recipe: Recipe) -> TrialContext:
        assert (model, task) == ("minilm", "rotten_tomatoes")
        return make_context(bert_folder, "classification", replace(recipe, batch_size=8))

    monkeypatch.setattr("alrq_core.context.load_context", load)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("tiny_model")
def test_the_lines_of_references_run(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("docs/python.md", "reference").replace("200", "2").replace("50", "2"), {})
    predicted, divergences = capsys.readouterr().out.splitlines()[-2:]

    assert float(predicted) > 0
    assert len(divergences.split()) == 2


def test_the_python_lines_run(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("docs/python.md", "python").replace("200", "2"), {})

    assert "BertForSequenceClassification" in capsys.readouterr().out
    assert (tiny_model / "my-model/weights.safetensors").is_file()
