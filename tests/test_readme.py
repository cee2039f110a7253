"""The README's commands and its Python lines are those that work."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_both_lines_do_their_own_set_up() -> None:
    assert block("main job").startswith("pip install -r requirements.txt && python run_search.py")
    assert block("tests").startswith("pip install -r requirements.txt -e ")
    assert "python -m pytest" in block("tests")


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_python_lines_run(tmp_path: Path) -> None:
    code = block("python").replace("200", "2")
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )

    assert process.returncode == 0, process.stderr
    assert "BertForSequenceClassification" in process.stdout
    assert (tmp_path / "my-model/weights.safetensors").is_file()
