"""The README and the pages in docs/: their examples run, and the files, commands and links in them exist."""

import re
import shlex
import subprocess
import sys

import make_options
import pytest
import soundfile
from paths import ROOT

from msh_mlx.errors import InputError
from msh_mlx.library.catalogue import read_catalogue

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
OTHERS = [ROOT / "assets" / "demo" / "README.md", ROOT / "rust" / "vendor" / "README.md"]
DIGITS = ["four", "one", "three", "eight", "nine", "zero"]
PROGRAMS = {"local_mlx.py": "msh-mlx", "client_opus.py": "msh-mlx client", "server_opus.py": "msh-mlx serve"}


def text(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.S | re.M)


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.S | re.M)


# ---- what is run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [README, ROOT / "docs" / "python.md", ROOT / "docs" / "family.md"], ids=lambda page: page.name
)
def test_the_examples_of_the_api_run(page, tmp_path):
    (example,) = blocks(page, "python")
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == DIGITS
    if page.name == "python.md":
        assert soundfile.info(tmp_path / "reply.wav").samplerate == 24000


def test_the_picture_of_the_terminal_is_drawn(tmp_path):
    def words(picture):
        return re.sub(r"<[^>]+>|&#160;", " ", picture.read_text(encoding="utf-8")).split()

    picture = tmp_path / "terminal.svg"
    command = [sys.executable, "scripts/make_pictures.py", "--words", "1", "--output", str(picture)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert "four" in words(picture)
    kept = words(ROOT / "docs" / "terminal.svg")
    assert [word for word in kept if word in DIGITS] == DIGITS
    for shown in (words(picture), kept):
        assert {"mic", "speaker", "step", "delay", "quit"} <= set(shown)


# ---- what is said --------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_says_early_what_was_not_measured():
    said = text(README)
    assert 8000 <= len(said.encode()) <= 10 * 1024
    commands, unmeasured, picture, claims = (
        said.index(part)
        for part in ("make demo", "Not measured: the published weights and Macs", "<img", "## Five claims")
    )
    assert commands < unmeasured < picture < claims
    assert said[:unmeasured].count("\n") < 24
    rows = re.findall(r"^\|.*\|$", said[claims : said.index("## Talk")], re.M)[2:]
    assert len(rows) == 5
    assert all(re.fullmatch(r"\| [^|]+ \| [^|]*\d[^|]* \| `[^|]+` \|", row) for row in rows)


def test_every_measurement_has_its_command():
    rows = re.findall(r"^\|(.*)\|$", text(ROOT / "docs" / "benchmarks.md"), re.M)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows if not row.startswith("---")]
    assert all(row == ["measure", "here", "against", "command"] for row in rows if "`" not in row[-1])
    assert all(
        re.match(r"`(make|(benchmarks|scripts)/\w+\.py|\.venv/bin/python -m pytest)\b", row[-1])
        for row in rows
        if "`" in row[-1]
    )
    for script, words in re.findall(
        r"`((?:benchmarks|scripts)/\w+\.py) ?([^`]*)`", text(README) + text(ROOT / "docs" / "benchmarks.md")
    ):
        source = text(ROOT / script)
        assert not [word for word in words.split() if not word.isdigit() and f'"{word}"' not in source], script


def test_the_entry_of_the_catalogue_on_the_page_is_read(tmp_path):
    (example,) = blocks(ROOT / "docs" / "models.md", "toml")
    (tmp_path / "mine.toml").write_text(example, encoding="utf-8")
    (entry,) = read_catalogue(tmp_path / "mine.toml").values()
    assert (entry.bits, entry.files["lm"].path) == (8, tmp_path / "mine.q8.safetensors")


def test_the_tables_of_options_are_what_the_programs_say():
    page = text(make_options.PAGE)
    assert make_options.written(page) == page, "`make docs` writes it"
    assert sorted(make_options.regions(page)) == sorted([*make_options.parsers(), "keys"])


def test_another_help_changes_the_tables(monkeypatch):
    parsers = make_options.parsers()
    parsers["msh-mlx bench"].add_argument("--colour", metavar="A|B", choices=("a", "b"), help="paint it in %(default)s")
    monkeypatch.setattr(make_options, "parsers", lambda: parsers)
    assert "| `--colour A\\|B` | paint it in None |" in make_options.written(text(make_options.PAGE))


def test_a_command_without_a_place_on_the_page_is_named():
    page = text(make_options.PAGE).replace("make_options.py: msh-mlx doctor -->", "make_options.py: msh-mlx nurse -->")
    with pytest.raises(LookupError, match="msh-mlx doctor"):
        make_options.written(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_pages_give_them(page):
    parsers = make_options.parsers()
    for line in "".join(blocks(page, "sh")).splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "python" and words[0] in PROGRAMS:
            program = PROGRAMS[words.pop(0)]
        elif program == "msh-mlx":
            while words and f"{program} {words[0]}" in parsers:
                program = f"{program} {words.pop(0)}"
        else:
            continue
        try:
            parsers[program].parse_args(words)
        except InputError as error:
            pytest.fail(f"{line}: {error}")


# ---- what is named -------------------------------------------------------------------------------------------------------


def anchors(page):
    """The names under which a hub shows the headings of a page."""
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page)) + re.findall(r'src="([^"]+)"', prose(page))
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[a-z-]+\.md)", prose(README)))
    assert linked == {f"docs/{page.name}" for page in DOCS}


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda page: page.name)
def test_files_and_targets_that_pages_name_are_there(page):
    named = re.findall(
        r"`(?:python )?((?:assets|benchmarks|client|docs|msh_mlx|rust|scripts|tests)/[\w./-]*)", text(page)
    )
    assert not [path for path in named if not (ROOT / path).exists()]
    targets = set(re.findall(r"^([a-z0-9-]+):", text(ROOT / "Makefile"), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text(page), re.M)) <= targets


def test_files_that_sources_name_are_there():
    sources = [ROOT / name for name in ("Makefile", "Moshi.command", "weights.toml", ".ci/run")]
    for folder in ("benchmarks", "msh_mlx", "rust", "scripts", "tests"):
        sources += (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".rs", ".sh"))
    named = re.compile(r"(?<![\w/.-])(?:benchmarks|docs|msh_mlx|rust|scripts|tests)/[\w/.]+\.\w+")
    for source in sources:
        if not {"target", "vendor"} & set(source.parts):
            for path in named.findall(text(source)):
                assert (ROOT / path).exists() or (ROOT / "client" / path).exists(), f"{source}: {path}"
