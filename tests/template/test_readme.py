"""README.md and docs/: everything they show is run, and everything they name exists.

All blocks are run in one copy of the project, in one process, in reading order: first README.md,
then the pages of docs/ by name.

- bash: `python SCRIPT.py ...` is called, each command once. The first run trains as long as its
  configuration says, other new runs for two epochs unless the command sets another number.
- json, jsonc: a configuration. It is trained, or pruned if it has a section "pruner". A first line
  `// NAME.json` is the name of the file.
- python: it is executed. If it begins with `# FOLDER/FILE.py` it is a new file, and with
  `# at the end of FOLDER/FILE.py` an addition to a file; a configuration or a command uses it.

Other languages (text, cpp) show what cannot be run here.
"""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import new_project
from tests.conftest import ROOT

MODULES = ("trainer.folds", "logger.shelf", "data_loader.shards")  # that pages call by python -m
SCRIPTS = ("train.py", "test.py", "prune.py", "export.py", "new_project.py")
DOCS = ROOT / "docs"
TUTORIAL = set(DOCS.glob("tutorial*.md"))  # its commands have a test of their own
JAPANESE = sorted(set(DOCS.glob("*.ja.md")) - TUTORIAL)
PAGES = [ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - {*JAPANESE} - TUTORIAL)]
FIRST = "saved/models/Digits_LeNet/1121_093042"  # how the pages call the first run

pytestmark = pytest.mark.skipif(
    not all((ROOT / script).exists() for script in SCRIPTS),
    reason="README.md and docs/ describe the whole template, and a verb was taken out",
)

# Calls the scripts' main() one after the other, so that torch is imported once.
DRIVER = f"""
import importlib, json, runpy, sys
from pathlib import Path

def run(words):
    first = sorted(map(str, Path("saved/models/Digits_LeNet").glob("*")))[:1] or ["{FIRST}"]
    words = [word.replace("{FIRST}", first[0]) for word in words]
    print("+", *words, flush=True)
    if words[0] == "-code":
        images = map(str, Path(first[0]).glob("test/wrong_images/*"))
        sys.argv = ["code.py", f"{{first[0]}}/model.onnx", *images]
        return exec(compile(words[1], "code.py", "exec"), {{}})
    words = words[1:] if words[0] == "-m" else words
    script = importlib.import_module(words[0].removesuffix(".py"))
    if hasattr(script, "main"):
        return script.main(words[1:])
    runpy.run_path(words[0], run_name="__main__")

for page, words in json.load(open("steps.json")):
    try:
        code = run(words)
    except BaseException:
        print(f"failed, from {{page}}: {{words}}", file=sys.stderr, flush=True)
        raise
    if code:
        sys.exit(f"ended with {{code}}, from {{page}}: {{words}}")
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of a page's fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The commands of a bash block, each as its words, without variables set before it."""
    found = []
    for line in text.splitlines():
        for command in line.split(" #")[0].split("&&"):
            words = shlex.split(command)
            while words and "=" in words[0]:
                words = words[1:]
            if words:
                found.append(words)
    return found


def all_commands(page: Path) -> list[list[str]]:
    return [
        words for language, text in blocks(page) if language == "bash" for words in commands(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def make_parts(folder: Path) -> None:
    """Images of good and bad parts: twos and eights of scikit-learn's digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label, digit in (("OK", 2), ("NG", 8)):
        (folder / label).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == digit][:40]):
            image = Image.fromarray((image * 15).astype("uint8")).resize((40, 40))
            image.save(folder / label / f"{number}.png")


def shorten(words: list[str]) -> list[str]:
    """What makes a command that starts a new run take only seconds."""
    if re.search("epochs|check|profile", " ".join(words)):
        return []
    if words[1] == "train.py" and words[2] in ("-c", "--data"):
        return ["--epochs", "2"]
    if words[1:3] == ["prune.py", "-c"]:
        return ["-s", "trainer.epochs=1", "trainer.last_epochs=2"]
    return []


def write_blocks(folder: Path) -> list[tuple[str, list[str]]]:
    """Write the pages' code and configurations; returns the steps to run: (page, words)."""
    steps, shown = [], []
    for page in PAGES:
        for number, (language, text) in enumerate(blocks(page)):
            title = re.match(r"(?:#|//) (at the end of )?([\w/]+\.\w+)\n", text)
            if language == "bash":
                for words in commands(text):
                    is_run = words[0] == "python" and (words[1] != "-m" or words[2] in MODULES)
                    if is_run and words not in shown:
                        steps.append((page.name, words[1:] + (shorten(words) if shown else [])))
                        shown.append(words)
            elif language in ("json", "jsonc"):
                name = f"{page.stem}{number}.json"
                (folder / name).write_text(text, encoding="utf-8")
                if title:  # pages may use the same name: the file is copied when its turn comes
                    copy = f"import shutil; shutil.copy({name!r}, {title[2]!r})"
                    steps.append((page.name, ["-code", copy]))
                prune = ["prune.py", "-c", name, "-r", FIRST]
                train = ["train.py", "-c", name, "--epochs", "2"]
                steps.append((page.name, prune if '"pruner"' in text else train))
            elif language == "python" and title:
                with open(folder / title[2], "a" if title[1] else "x", encoding="utf-8") as file:
                    file.write(f"\n\n{text}" if title[1] else text)
            elif language == "python":
                steps.append((page.name, ["-code", text]))
    return steps


@pytest.fixture
def newcomer(tmp_path, data_dir):
    """(project, output) after everything was done that the pages show."""
    folder = tmp_path / "Kata"
    new_project.copy_template(folder, with_examples=True)
    shutil.copy2(ROOT / "README.md", folder / "README.md")
    shutil.copytree(DOCS, folder / "docs", dirs_exist_ok=True)  # all pages, also the template's own
    config = (ROOT / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "digits.npz").write_bytes((data_dir / "digits.npz").read_bytes())
    make_parts(folder / "data" / "parts")
    (folder / "steps.json").write_text(json.dumps(write_blocks(folder)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder, done.stdout


def runs_in_tensorboard(folder: Path) -> list[str]:
    """What TensorBoard calls the runs."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(folder), "--port", "0"])
    url = board.launch()
    with urllib.request.urlopen(
        f"{url}experiment/defaultExperimentId/data/runs", timeout=60
    ) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_everything_shown_runs(newcomer):
    folder, out = newcomer
    assert out.count("\n+ ") > 40
    best = float(re.search(r"best val_accuracy (\d\.\d+)", out)[1])
    assert best >= 0.97  # the README says 0.98
    names = {path.parent.parent.name for path in folder.glob("saved/models/*/*/*.pth")}
    for page in PAGES:
        for language, text in blocks(page):
            if language in ("json", "jsonc"):
                assert re.search(r'^ +"name": "(\w+)"', text, re.MULTILINE)[1] in names
    for created in ("MyProject", "NextProject"):
        assert (folder.parent / created / "train.py").exists()
    logs = folder / "saved" / "log"
    shown = runs_in_tensorboard(logs)
    assert set(shown) == {str(p.parent.relative_to(logs)) for p in logs.glob("*/*/events*")}
    assert any(re.fullmatch(r"Digits_LeNet/\d{4}_\d{6}", run) for run in shown)


def test_readme_begins_with_the_two_commands():
    first = next(text for language, text in blocks(PAGES[0]) if language == "bash")
    assert first.splitlines() == [
        "pip install -r requirements.txt && python train.py -c config.json",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]


def test_readme_has_at_most_200_lines():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 200


def test_code_fits_the_formatter():
    for page in PAGES:
        for language, text in blocks(page):
            if language == "python":
                assert max(map(len, text.splitlines())) <= 100, f"{page.name}: {text}"


def test_tree_lists_what_is_there():
    tree = re.search(r"## The tree\n\n```text\n(.*?)```", PAGES[0].read_text("utf-8"), re.DOTALL)[1]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line}
    usual = {"README.md", "LICENSE", "pyproject.toml", "requirements.txt", "requirements-dev.txt"}
    local = {"data", "benchmarks.json"}
    local |= {file.parent.name for file in ROOT.glob("*/pyvenv.cfg")}  # virtual environments
    present = {p.name for p in ROOT.iterdir() if not p.name.startswith((".", "__"))}
    assert named == present - usual - local


def test_commands_are_known():
    for page in PAGES:
        for first, *rest in all_commands(page):
            assert first in ("python", "pip", "tensorboard"), page
            assert first != "pip" or (ROOT / rest[-1]).exists()


def test_japanese_readme_shows_commands_that_were_run():
    tested = [words for page in PAGES for words in all_commands(page)]
    for page in JAPANESE:
        for words in all_commands(page):
            assert words in tested
        assert {language for language, _ in blocks(page)} <= {"bash", "text"}


# of README.md -> of docs/README.ja.md, which has more: what the pages of docs/ say
SECTIONS = {
    "Install and run": "インストールと実行",
    "The tree": "フォルダ構造",
    "Your own images": "自分の画像",
    "Write your own": "自分のコード",
    "Resume": "使い方",
    "The four commands": "テスト・プルーニング・出力",
    "I want to ...": "したいこと（説明は英語）",
    "Licence": "ライセンス",
}


def headings(page: Path) -> list[str]:
    return re.findall(r"^#{1,3} (.+)$", prose(page), re.MULTILINE)


def links(page: Path) -> set[str]:
    """The pages of docs/ that a page leads to."""
    found = re.findall(r"\]\((?:docs/)?([\w.-]+\.md)", page.read_text(encoding="utf-8"))
    return {name.replace(".ja.md", ".md") for name in found}


def test_japanese_pages_keep_step():
    """Each section, each page that is named and each command, also of beginners.md."""
    english, japanese = ROOT / "README.md", DOCS / "README.ja.md"
    assert set(headings(english)[1:]) == set(SECTIONS)
    assert set(SECTIONS.values()) <= set(headings(japanese))
    assert links(english) - {"README.md"} <= links(japanese)
    for page in JAPANESE:
        if page != japanese:
            original = page.with_name(page.name.replace(".ja.md", ".md"))
            assert len(headings(page)) == len(headings(original)), page
            assert blocks(page) == blocks(original), page
            assert links(page) == links(original), page
            for code in set(inline_code(original)):
                assert code in inline_code(page), f"{page}: {code}"


@pytest.fixture(scope="module")
def flags():
    """Script -> the flags that its --help lists."""
    listed = {}
    for script in SCRIPTS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
            importlib.import_module(script.removesuffix(".py")).main(["--help"])
        listed[script] = set(re.findall(r"(?<![\w-])--?\w[\w-]*", text.getvalue()))
    return listed


def test_flags_in_the_text_exist(flags):
    for page in [*PAGES, *JAPANESE]:
        for code in inline_code(page):
            for script, rest in re.findall(r"(?:^| )(\w+\.py)((?: (?!\w+\.py)\S+)*)", code):
                used = set(re.findall(r"(?:^| )(--?[a-z][\w-]*)", rest))
                assert used <= flags.get(script, set()), f"{page.name}: {code}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_somewhere():
    for page in [*PAGES, *JAPANESE]:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            place = page.parent / path if path else page
            assert place.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in map(slug, headings), f"{page.name}: {target}"


def test_readme_links_to_every_page():
    linked = re.findall(r"\]\((docs/[^)\s]+\.md)\)", prose(PAGES[0]))
    assert set(linked) == {f"docs/{page.name}" for page in DOCS.glob("*.md")}


def test_named_files_exist():
    """Also in fenced text, which is how architecture.md shows the tree."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"saved", "data"}
    shown = (words for page in PAGES for words in all_commands(page))
    made = {f"configs/{w[w.index('--data') + 1][5:]}.json" for w in shown if "--data" in w}
    for page in [*PAGES, *JAPANESE]:
        text = " ".join(t for language, t in blocks(page) if language == "text") + prose(page)
        for path in re.findall(r"(?<![\w/.])(\w+/[\w/.]*\.(?:py|json|html|md|png|toml))\b", text):
            if path.split("/")[0] in folders and path not in made:
                assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_architecture_names_every_file():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parts[0] for path in map(Path, re.findall(r"`(\w+/)`", text))} - {"tests"}
    files = [
        *ROOT.glob("*.py"),
        *(file for folder in folders for file in ROOT.glob(f"{folder}/**/*.py")),
    ]
    for file in files:
        if file.name != "__init__.py":
            assert f"`{file.relative_to(ROOT).as_posix()}`" in text
