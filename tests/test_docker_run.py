"""scripts/docker-run.sh against a stand-in docker, and the Dockerfile that it builds."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import HANGS_SECONDS

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts" / "docker-run.sh"
CONFIGS = ("B-FP", "B-Q4", "B-Ada", "Joint-1", "Joint-2", "Joint-3")
TASKS = ("sst2", "wikitext2", "rotten_tomatoes", "imdb")
WATCHED = ("WANDB_API_KEY", "HF_TOKEN")
TOOLS = ("bash", "cat", "dirname", "env", "id", "mkdir")
# Notes each call; fails where docker would, for an absent image or a broken build.
DOCKER = """#!{python}
import json, os, sys
call = {{"argv": sys.argv[1:], "env": {{n: os.environ[n] for n in {watched} if n in os.environ}}}}
with open({record!r}, "a") as record:
    record.write(json.dumps(call) + "\\n")
failing = os.environ.get("DOCKER_FAILS_AT", "").split()
sys.exit(17 if failing and sys.argv[1:1 + len(failing)] == failing else 0)
"""


@dataclass
class Machine:
    """A machine with a stand-in docker, and with or without a GPU."""

    folder: Path

    @property
    def record(self) -> Path:
        return self.folder / "docker.jsonl"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def install(self, name: str, text: str) -> None:
        self.bin.mkdir(exist_ok=True)
        path = self.bin / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run(
        self, *arguments: str, terminal: int | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        return subprocess.run(
            [str(SCRIPT), *arguments],
            cwd=self.folder,
            env={"PATH": path, "HOME": str(self.folder)} | environment,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANGS_SECONDS,
            check=False,
        )

    def calls(self) -> list[dict[str, list[str] | dict[str, str]]]:
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]

    def argv(self, first: str) -> list[str]:
        """Return the arguments of the one call of `docker first`."""
        [found] = [call["argv"] for call in self.calls() if call["argv"][0] == first]
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    docker = DOCKER.format(python=sys.executable, watched=WATCHED, record=str(made.record))
    made.install("docker", docker)
    made.install("nvidia-smi", "#!/bin/sh\nexit 9\n")
    return made


def inside(argv: Sequence[str], image: str) -> list[str]:
    """Return the command that runs in the container."""
    return list(argv[argv.index(image) + 1 :])


def option_values(argv: Sequence[str], option: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == option]


def checked_by(*command: str | Path) -> tuple[int, str]:
    """Return how a program of the environment judges a file."""
    program = shutil.which(command[0], path=str(Path(sys.executable).parent))
    assert program is not None, f"{command[0]} is among the dev requirements"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_shellcheck_finds_nothing():
    assert checked_by("shellcheck", SCRIPT) == (0, "")


def test_hadolint_finds_nothing():
    """But packages without versions, which Debian's mirrors drop with each update, and layers that
    are apart so that a change of the code repeats the last one only.
    """
    left_out = ("--ignore", "DL3008", "--ignore", "DL3059")
    assert checked_by("hadolint", *left_out, REPOSITORY / "Dockerfile") == (0, "")


def test_script_can_be_executed():
    assert os.access(SCRIPT, os.X_OK)


def test_help_names_everything_and_starts_nothing(machine):
    done = machine.run("--help")
    assert done.returncode == 0
    options = ("--build", "--gpu", "--cpu", "--results", "--wandb-key", "--hf-token")
    for word in (*options, "run-all", "shell", *CONFIGS, *TASKS):
        assert word in done.stdout
    assert machine.calls() == []


def test_run_hands_configuration_and_task_to_the_search(machine):
    assert machine.run("run", "B-Q4", "imdb").returncode == 0
    words = "python run_search.py --space B-Q4 --task imdb --output-dir /app/results"
    assert " ".join(inside(machine.argv("run"), "alrq:cpu")) == words


@pytest.mark.parametrize("config", CONFIGS)
def test_run_takes_every_fixed_configuration(machine, config):
    assert machine.run("run", config, "sst2").returncode == 0
    assert option_values(machine.argv("run"), "--space") == [config]


@pytest.mark.parametrize("task", TASKS)
def test_run_takes_every_task(machine, task):
    assert machine.run("run", "B-FP", task).returncode == 0
    assert option_values(machine.argv("run"), "--task") == [task]


def test_run_all_runs_the_matrix(machine):
    assert machine.run("run-all").returncode == 0
    words = "python run_search.py --space matrix --output-dir /app/results"
    assert " ".join(inside(machine.argv("run"), "alrq:cpu")) == words


def test_shell_opens_bash_with_standard_input(machine):
    assert machine.run("shell").returncode == 0
    argv = machine.argv("run")
    assert inside(argv, "alrq:cpu") == ["bash"]
    assert "--interactive" in argv
    assert "--tty" not in argv


def test_terminal_is_passed_on(machine):
    master, slave = pty.openpty()
    try:
        done = machine.run("run-all", terminal=slave)
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 0
    assert {"--interactive", "--tty"} <= set(machine.argv("run"))


def test_container_ends_with_its_command_and_its_exit_code_is_passed_on(machine):
    assert machine.run("run-all", DOCKER_FAILS_AT="run").returncode == 17
    assert {"--rm", "--init"} <= set(machine.argv("run"))


def test_processor_is_the_default_without_a_gpu(machine):
    machine.run("run-all")
    assert "alrq:cpu" in machine.argv("run")
    assert "--gpus" not in machine.argv("run")


def test_gpu_is_the_default_where_nvidia_smi_works(machine):
    machine.install("nvidia-smi", "#!/bin/sh\nexit 0\n")
    machine.run("run-all")
    assert "alrq:cuda" in machine.argv("run")
    assert option_values(machine.argv("run"), "--gpus") == ["all"]


def test_flags_overrule_the_default(machine):
    machine.run("--gpu", "run-all")
    assert option_values(machine.argv("run"), "--gpus") == ["all"]
    machine.record.unlink()
    machine.install("nvidia-smi", "#!/bin/sh\nexit 0\n")
    machine.run("--cpu", "run-all")
    assert "alrq:cpu" in machine.argv("run")
    assert "--gpus" not in machine.argv("run")


@pytest.mark.parametrize(("device", "target"), [("--cpu", "cpu"), ("--gpu", "cuda")])
def test_build_alone_builds_the_target_and_runs_nothing(machine, device, target):
    assert machine.run("--build", device).returncode == 0
    assert [call["argv"] for call in machine.calls()] == [
        ["build", "--target", target, "--tag", f"alrq:{target}", str(REPOSITORY)]
    ]
    assert not (machine.folder / "results").exists()


def test_build_comes_before_the_command(machine):
    assert machine.run("run-all", "--build").returncode == 0
    assert [call["argv"][0] for call in machine.calls()] == ["build", "run"]


def test_failed_build_runs_nothing(machine):
    assert machine.run("--build", "run-all", DOCKER_FAILS_AT="build").returncode == 17
    assert [call["argv"][0] for call in machine.calls()] == ["build"]


def test_absent_image_leads_to_build(machine):
    done = machine.run("run-all", DOCKER_FAILS_AT="image inspect")
    assert done.returncode == 1
    assert "alrq:cpu" in done.stderr
    assert "--build" in done.stderr
    assert [call["argv"][0] for call in machine.calls()] == ["image"]


def test_absent_docker_is_reported(machine):
    (machine.bin / "docker").unlink()
    for tool in TOOLS:
        (machine.bin / tool).symlink_to(str(shutil.which(tool)))
    done = machine.run("run-all", PATH=str(machine.bin))
    assert done.returncode == 1
    assert "docker is not installed" in done.stderr


def test_results_default_to_a_folder_here(machine):
    machine.run("run-all")
    folder = machine.folder / "results"
    assert f"{folder}:/app/results" in option_values(machine.argv("run"), "--volume")
    assert folder.is_dir()


@pytest.mark.parametrize("absolute", [True, False])
def test_results_folder_is_made_also_with_spaces(machine, absolute):
    folder = machine.folder / "my results" / "of today"
    given = str(folder) if absolute else "my results/of today"
    assert machine.run("--results", given, "run-all").returncode == 0
    assert f"{folder}:/app/results" in option_values(machine.argv("run"), "--volume")
    assert folder.is_dir()


def test_results_belong_to_the_caller(machine):
    machine.run("run-all")
    argv = machine.argv("run")
    assert option_values(argv, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    # Ray and torch write to HOME, and the caller's uid has none in the image.
    assert "HOME=/tmp" in option_values(argv, "--env")


@pytest.mark.parametrize("command", [("run-all",), ("run", "B-FP", "sst2"), ("shell",)])
@pytest.mark.parametrize("way", ["options", "environment"])
def test_keys_travel_in_the_environment_only(machine, command, way):
    keys = {"WANDB_API_KEY": "wandb-secret", "HF_TOKEN": "hf-secret"}
    if way == "options":
        given = ("--wandb-key", keys["WANDB_API_KEY"], "--hf-token", keys["HF_TOKEN"])
        done = machine.run("--build", *given, *command)
    else:
        done = machine.run("--build", *command, **keys)
    assert done.returncode == 0
    assert "secret" not in done.stdout + done.stderr
    for call in machine.calls():
        assert not any("secret" in word for word in call["argv"])
    [run] = [call for call in machine.calls() if call["argv"][0] == "run"]
    assert run["env"] == keys
    assert set(WATCHED) <= set(option_values(run["argv"], "--env"))


def test_absent_and_empty_keys_are_not_passed(machine):
    machine.run("run-all", HF_TOKEN="")
    assert option_values(machine.argv("run"), "--env") == ["HOME=/tmp"]


def test_option_overrules_the_environment(machine):
    machine.run("--hf-token", "new", "run-all", HF_TOKEN="old")
    assert machine.calls()[-1]["env"] == {"HF_TOKEN": "new"}


@pytest.mark.parametrize(
    ("arguments", "environment", "project"),
    [
        (("--wandb-key", "k"), {}, ["alrq"]),
        (("--wandb-key", "k"), {"WANDB_PROJECT": "mine"}, ["mine"]),
        ((), {"WANDB_PROJECT": "mine"}, ["mine"]),
        ((), {"WANDB_API_KEY": "k"}, []),
    ],
)
def test_wandb_logs_where_a_project_is_meant(machine, arguments, environment, project):
    machine.run(*arguments, "run", "B-FP", "sst2", **environment)
    assert option_values(inside(machine.argv("run"), "alrq:cpu"), "--wandb") == project


@pytest.mark.parametrize(
    ("arguments", "value", "rule"),
    [
        ((), "none", "run-all, run or shell"),
        (("dance",), "'dance'", "run-all, run or shell"),
        (("--dance", "run-all"), "'--dance'", "--build --gpu --cpu"),
        (("-x", "run-all"), "'-x'", "--build --gpu --cpu"),
        (("--gpu", "--cpu", "run-all"), "both", "exclude each other"),
        (("run-all", "sst2"), "'sst2'", "must stand alone"),
        (("shell", "ls"), "'ls'", "must stand alone"),
        (("run",), "0 arguments", "CONFIG and TASK"),
        (("run", "B-FP"), "1 arguments", "CONFIG and TASK"),
        (("run", "B-FP", "sst2", "imdb"), "3 arguments", "CONFIG and TASK"),
        (("run", "B-FQ", "sst2"), "'B-FQ'", " ".join(CONFIGS)),
        (("run", "B-FP B-Q4", "sst2"), "'B-FP B-Q4'", " ".join(CONFIGS)),
        (("run", "B-FP", "mnli"), "'mnli'", " ".join(TASKS)),
        (("run", "", "sst2"), "''", " ".join(CONFIGS)),
        (("run-all", "--results"), "none", "`--results` must be followed by a value"),
        (("--results", "", "run-all"), "none", "`--results` must be followed by a value"),
        (("--results", "--gpu", "run-all"), "another option", "`--results` must be followed"),
        (("run-all", "--wandb-key"), "none", "`--wandb-key` must be followed by a value"),
        (("--hf-token", "", "run-all"), "none", "`--hf-token` must be followed by a value"),
        (("--results", "a:b", "run-all"), "a:b'", "without a colon"),
        (("--results", "/proc/alrq", "run-all"), "'/proc/alrq'", "a folder that can be written"),
    ],
)
def test_bad_input_is_refused_with_value_rule_and_next_step(machine, arguments, value, rule):
    done = machine.run(*arguments)
    assert done.returncode == 2
    before, _, after = done.stderr.partition(", got ")
    assert value in after
    assert rule in before
    assert "docker-run.sh --help" in done.stderr
    assert machine.calls() == []


def test_results_that_is_a_file_is_refused(machine):
    (machine.folder / "taken").write_text("", encoding="utf-8")
    done = machine.run("--results", "taken", "run-all")
    assert done.returncode == 2
    assert f"got '{machine.folder}/taken'" in done.stderr
    assert machine.calls() == []


def test_key_in_a_misspelled_option_is_not_printed(machine):
    done = machine.run("--wandb-key=secret", "run-all")
    assert done.returncode == 2
    assert "got '--wandb-key'" in done.stderr
    assert "secret" not in done.stderr


# The Dockerfile.


def instructions() -> list[tuple[str, str]]:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage, with those of the stage that it is built on."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for word, rest in instructions():
        if word == "FROM":
            parent, _, name = rest.split()
            current = found[name] = list(found.get(parent, []))
        else:
            current.append((word, rest))
    return found


def sources() -> list[str]:
    copies = [rest for word, rest in instructions() if word == "COPY"]
    return sorted({name for rest in copies if "--from" not in rest for name in rest.split()[:-1]})


def select(stage: str, word: str) -> list[str]:
    return [rest for found, rest in stages()[stage] if found == word]


def pyproject() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_both_targets_exist_and_the_small_one_is_the_default():
    assert {"cpu", "cuda"} <= set(stages())
    assert list(stages())[-1] == "cpu"


def test_everything_that_is_copied_exists_and_is_let_in():
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert len(sources()) >= 7
    for name in sources():
        assert (REPOSITORY / name).exists(), name
        assert f"!{name}" in ignored, name


def test_every_package_of_the_project_is_copied():
    setuptools = pyproject()["tool"]["setuptools"]
    modules = [f"{name}.py" for name in setuptools["py-modules"]]
    project = pyproject()["project"]
    named = {project["readme"], *project["license-files"]}
    packages = {package.partition(".")[0] for package in setuptools["packages"]}
    assert {*packages, *modules, *named} <= set(sources())


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_image_runs_without_root_and_installs_the_project(target):
    assert select(target, "USER")[-1] == "1000"
    assert any("pip install --no-deps --editable ." in run for run in select(target, "RUN"))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_image_has_no_entrypoint_since_ray_starts_it_with_bash(target):
    assert select(target, "ENTRYPOINT") == []
    assert json.loads(select(target, "CMD")[-1])[:2] == ["python", "run_search.py"]


@pytest.mark.parametrize(("target", "from_cpu_index"), [("cpu", True), ("cuda", False)])
def test_torch_comes_first_and_from_the_right_index(target, from_cpu_index):
    installs = [run for run in select(target, "RUN") if "pip install" in run]
    assert installs[0].endswith(" torch")
    assert ("https://download.pytorch.org/whl/cpu" in installs[0]) is from_cpu_index


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_image_gets_the_tested_versions(target):
    installs = [run for run in select(target, "RUN") if "pip install" in run]
    for install in installs:
        assert "--constraint constraints.txt" in install or "--no-deps" in install


def test_cuda_image_has_what_ray_clusters_need():
    runs = " ".join(select("cuda", "RUN"))
    for name in ("openssh-client", "rsync", "tmux", "ray[default]", "boto3", "tensorboard"):
        assert name in runs
    settings = " ".join(select("cuda", "ENV"))
    assert "HOME=/home/alrq" in settings
    assert "NVIDIA_VISIBLE_DEVICES=all" in settings


def test_dependencies_are_read_from_the_project(tmp_path):
    [command] = [run for run in select("base", "RUN") if "tomllib" in run]
    (tmp_path / "python").symlink_to(sys.executable)
    listed = tmp_path / "dependencies.txt"
    subprocess.run(
        ["sh", "-c", command.replace("/tmp/dependencies.txt", str(listed))],
        cwd=REPOSITORY,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    project = pyproject()["project"]
    expected = project["dependencies"] + project["optional-dependencies"]["wandb"]
    assert listed.read_text(encoding="utf-8").splitlines() == expected
