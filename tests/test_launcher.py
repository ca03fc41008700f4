"""`Moshi.command` on machines of every kind, played by scripts that keep a record."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT = ROOT / "Moshi.command"
TOOLS = {"sh", "basename", "cat", "chmod", "cksum", "cp", "dirname", "env", "mkdir", "readlink", "rm", "sed", "touch"}
SHELLS = [path for path in map(shutil.which, ("dash", "bash", "zsh")) if path]

# Keeps a record of how it was called.
RECORD = '#!/bin/sh\nprintf "%s" "${0##*/}" >>"$LOG"; for a; do printf " [%s]" "$a" >>"$LOG"; done; echo >>"$LOG"\n'
SETUP = """
[ ! -e "$FAKE/setup-fails" ] || { echo 'setup: there is no network.' >&2; exit 1; }
echo "PYTHON=${PYTHON:-}" >>"$LOG"
mkdir -p .venv/bin .venv/.stamps
cp "$FAKE/program" .venv/bin/python
touch .venv/.stamps/root
"""
# The environment's Python: pip succeeds, the program ends as it is told.
PROGRAM = RECORD + '[ "$1" != local_mlx.py ] || exit "$(cat "$FAKE/exit" 2>/dev/null || echo 0)"\n'
# An interpreter: `-c` tells whether it fits, `-m venv` makes an environment.
PYTHON = """
case $1 in
  -c) case $2 in *python_version*) echo ', and python3 is 3.9.6' ;; *) exit %d ;; esac ;;
  -m) mkdir -p "$3/bin"; cp "$FAKE/program" "$3/bin/python" ;;
esac
"""


class Machine:
    """A machine with nothing on it but a shell and the small tools that every system has."""

    def __init__(self, place: Path, system: str = "Darwin") -> None:
        self.home, self.bin, self.brew = place / "home", place / "bin", place / "brew" / "bin"
        self.folder = place / "a folder's place" / "msh mlx"
        self.fake, self.log = place / "fake", place / "log"
        for folder in (self.home, self.bin, self.brew, self.fake, self.folder / "scripts"):
            folder.mkdir(parents=True)
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, tool
            (self.bin / tool).symlink_to(path)
        shutil.copy(SCRIPT, self.folder)
        (self.folder / "local_mlx.py").write_text("the program")
        (self.folder / "requirements.txt").write_text("packages==1")
        self.script(self.folder / "scripts" / "setup.sh", RECORD + SETUP)
        self.script(self.fake / "program", PROGRAM)
        self.system = system
        self.command(
            "uname", f'[ "${{1:-}}" = -m ] && echo {"arm64" if system == "Darwin" else "x86_64"} || echo {system}'
        )
        self.command("sleep", 'touch "$FAKE/slept"')
        self.translated = 0
        if system == "Darwin":
            self.sysctl()
            self.command("sw_vers", "echo 14.5")
            self.command("xattr", "exit 1")
            self.command("xcode-select", '[ "$1" = -p ] && echo "$FAKE"')

    @staticmethod
    def script(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def command(self, name: str, text: str) -> None:
        """Put a command on the PATH that keeps a record and does `text`."""
        self.script(self.bin / name, RECORD + text + "\n")

    def sysctl(self) -> None:
        self.command(
            "sysctl",
            f"""case $2 in
  sysctl.proc_translated) echo "${{TRANSLATED:-{self.translated}}}" ;;
esac""",
        )

    def python(self, path: Path | None = None, fits: bool = True) -> Path:
        path = path or self.bin / "python3"
        self.script(path, RECORD + PYTHON % (not fits))
        return path

    def rust(self) -> None:
        self.command("cargo", "echo cargo 1.90")
        self.command("rustc", "echo rustc 1.90")

    def equipped(self) -> Machine:
        """Install all that setting up needs."""
        self.python()
        self.rust()
        return self

    def ready(self) -> Machine:
        """Set it up, as an earlier start did."""
        self.script(self.folder / ".venv" / "bin" / "python", PROGRAM)
        (self.folder / ".venv" / ".stamps").mkdir()
        (self.folder / ".venv" / ".stamps" / "root").write_text("")
        return self

    def run(
        self, *args: str, answers: str = "", shell: str = "/bin/sh", **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shell, self.folder / "Moshi.command", *args],
            cwd="/",
            env={**self.environment(), **env},
            input=answers,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def starts(self, *args: str, **options: str) -> str:
        """Run it, see that it ends well and complains of nothing, and return what it prints."""
        result = self.run(*args, **options)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def environment(self) -> dict[str, str]:
        return {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "HOMEBREW_PREFIX": str(self.brew.parent),
            "LOG": str(self.log),
            "FAKE": str(self.fake),
        }

    def calls(self, *names: str) -> list[str]:
        """Return what was called, in order, as `name [argument]…`, of the names given."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.split()[0] in names]

    def started(self) -> str | None:
        """Return the options that the program was started with."""
        starts = [line for line in self.calls("python") if line.startswith("python [local_mlx.py]")]
        assert len(starts) <= 1
        return starts[0].removeprefix("python [local_mlx.py]").strip() if starts else None


no_other_python = pytest.mark.skipif(
    Path("/Library/Frameworks/Python.framework").exists(), reason="this Mac has Python from python.org"
)


@pytest.fixture
def mac(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def check_refused(machine: Machine, result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One sentence at the end, and nothing was set up or started."""
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert all(word in last for word in words), last
    assert machine.started() is None
    assert machine.calls("setup.sh") == []


def test_the_shell_is_clean() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_it_can_be_double_clicked() -> None:
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_text().startswith("#!/bin/sh\n")


# ---- the first start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_sets_up_and_starts(mac: Machine, shell: str) -> None:
    words = mac.equipped().starts(shell=shell)
    assert mac.started() == "[--or-demo]"
    assert mac.calls("setup.sh", "PYTHON=" + str(mac.bin / "python3")) == [
        "setup.sh [live]",
        f"PYTHON={mac.bin / 'python3'}",
    ]
    assert words.index("first start") < words.index(".venv") < words.index("Everything is set up")
    assert "[y/n]" not in words


def test_the_next_start_asks_and_says_nothing(mac: Machine) -> None:
    mac.equipped().run()
    mac.log.unlink()
    assert mac.starts() == ""
    assert mac.calls("setup.sh") == ["setup.sh [live]"]
    # The setup chooses its Python itself: another one would make the environment anew.
    assert "PYTHON=" in mac.log.read_text().splitlines()


def test_linux(tmp_path: Path) -> None:
    linux = Machine(tmp_path, "Linux")
    linux.rust()
    linux.starts()
    assert linux.started() == "[--or-demo]"
    assert "PYTHON=" in linux.log.read_text().splitlines()  # the setup knows how to get one


def test_setup_that_fails_is_said(mac: Machine) -> None:
    (mac.equipped().fake / "setup-fails").touch()
    result = mac.run()
    assert result.returncode == 1
    assert result.stderr.startswith("setup: there is no network.\n")
    assert "Open this again" in result.stderr
    assert mac.started() is None


@pytest.mark.parametrize("link", ["absolute", "relative", "chain"])
def test_through_links(mac: Machine, link: str) -> None:
    mac.ready()
    path = mac.home / "Talk to Moshi"
    target = mac.folder / "Moshi.command"
    if link == "chain":
        (mac.home / "other").symlink_to(target)
        target = Path("other")
    path.symlink_to(os.path.relpath(target, mac.home) if link == "relative" else target)
    result = subprocess.run(
        ["/bin/sh", path], cwd="/", env=mac.environment(), capture_output=True, text=True, timeout=30
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert mac.started() == "[--or-demo]"


def test_copied_elsewhere(mac: Machine) -> None:
    shutil.move(mac.folder / "Moshi.command", mac.home / "Moshi.command")
    mac.folder = mac.home
    check_refused(mac, mac.run(), "has to stay in the folder")


# ---- the Mac -------------------------------------------------------------------------------------------------------------


def test_leaves_rosetta(mac: Machine) -> None:
    mac.ready()
    mac.translated = 1
    mac.sysctl()
    mac.command("arch", 'shift; TRANSLATED=0 exec "$@"')
    mac.starts("--seed", "a b")
    assert mac.calls("arch") == [f"arch [-arm64] [/bin/sh] [{mac.folder}/Moshi.command] [--seed] [a b]"]
    assert mac.started() == "[--or-demo] [--seed] [a b]"


def test_rosetta_that_cannot_be_left(mac: Machine) -> None:
    mac.translated = 1
    mac.sysctl()
    mac.command("arch", 'shift; exec "$@"')
    check_refused(mac, mac.run(), "Rosetta")
    assert len(mac.calls("arch")) == 1


@pytest.mark.parametrize("version", ["12.7", "15.1"])
def test_intel(mac: Machine, version: str) -> None:
    mac.command("uname", '[ "${1:-}" = -m ] && echo x86_64 || echo Darwin')
    mac.command("sw_vers", f"echo {version}")
    mac.equipped().starts()
    assert "[x86_64]" in mac.log.read_text()  # the Python that is looked for
    assert mac.started() == "[--or-demo]"


@pytest.mark.parametrize("version", ["13.6.9", "12.7", "11"])
def test_an_old_macos(mac: Machine, version: str) -> None:
    mac.command("sw_vers", f"echo {version}")
    check_refused(mac, mac.run(), "macOS 14", version)


@pytest.mark.parametrize("version", ["14.0", "15.1", "26.1"])
def test_a_newer_macos(mac: Machine, version: str) -> None:
    mac.ready().command("sw_vers", f"echo {version}")
    assert mac.run().returncode == 0


def test_a_download_is_released(mac: Machine) -> None:
    mac.ready()
    mac.command("xattr", '[ "$1" = -dr ] || [ "$3" != "${3%.command}" ]')
    assert "com.apple.quarantine" in mac.starts()
    assert [call for call in mac.calls("xattr") if "[-dr]" in call] == [
        f"xattr [-dr] [com.apple.quarantine] [{mac.folder}]"
    ]


def test_no_download_no_change(mac: Machine) -> None:
    assert "quarantine" not in mac.ready().starts()
    assert mac.calls("xattr")
    assert not [call for call in mac.calls("xattr") if "-d" in call]


# ---- what is missing -----------------------------------------------------------------------------------------------------


def no_tools(mac: Machine) -> None:
    """Without the command-line tools until the third look after they were asked for."""
    mac.command(
        "xcode-select",
        """case $1 in
  --install) touch "$FAKE/asked" ;;
  -p) [ -e "$FAKE/asked" ] && [ -e "$FAKE/slept" ] && echo "$FAKE" ;;
esac""",
    )


def test_no_command_line_tools(mac: Machine) -> None:
    no_tools(mac)
    mac.equipped().starts(answers="y\n")
    calls = mac.calls("xcode-select", "sleep", "setup.sh")
    order = [calls.index(call) for call in ("xcode-select [--install]", "sleep [5]", "setup.sh [live]")]
    assert order == sorted(order)
    assert mac.started() == "[--or-demo]"


@pytest.mark.parametrize("answers", ["n\n", "\n", ""])
def test_no_command_line_tools_wanted(mac: Machine, answers: str) -> None:
    no_tools(mac)
    check_refused(mac, mac.equipped().run(answers=answers), "xcode-select --install")
    assert "xcode-select [--install]" not in mac.calls("xcode-select")


@no_other_python
def test_python_3_9_and_homebrew(mac: Machine) -> None:
    mac.python(fits=False)
    mac.rust()
    fitting = mac.python(mac.brew / "python3.12")
    mac.starts()
    assert f"PYTHON={fitting}" in mac.log.read_text().splitlines()


@no_other_python
def test_python_of_uv(mac: Machine) -> None:
    mac.python(fits=False)
    mac.rust()
    fitting = mac.python(mac.home / "uv" / "python3.11")
    mac.command("uv", f'[ "$2" = find ] && echo {fitting}')
    mac.starts()
    assert f"PYTHON={fitting}" in mac.log.read_text().splitlines()


@no_other_python
@pytest.mark.parametrize("tool", ["uv", "brew"])
def test_python_is_installed_on_demand(mac: Machine, tool: str) -> None:
    mac.python(fits=False)
    mac.rust()
    made = mac.brew / "python3.13"
    mac.python(mac.fake / "python")
    mac.command(tool, f'case $*$# in *install*) cp "$FAKE/python" {made} ;; *) exit 2 ;; esac')
    check_refused(mac, mac.run(answers="n\n"), f"{tool} ")
    assert "python3 is 3.9.6" in mac.starts(answers="y\n")
    assert f"PYTHON={made}" in mac.log.read_text().splitlines()


@no_other_python
def test_no_python_at_all(mac: Machine) -> None:
    mac.rust()
    check_refused(mac, mac.run(), "python.org")


def test_the_python_that_was_asked_for(mac: Machine) -> None:
    other = mac.equipped().python(mac.home / "my python")
    assert mac.run(PYTHON=str(other)).returncode == 0
    assert f"PYTHON={other}" in mac.log.read_text().splitlines()


def test_the_python_that_was_asked_for_does_not_fit(mac: Machine) -> None:
    other = mac.equipped().python(mac.home / "my python", fits=False)
    check_refused(mac, mac.run(PYTHON=str(other)), f"PYTHON={other}", "3.10 to 3.14")


def test_no_rust(mac: Machine) -> None:
    mac.python()
    cargo = mac.home / ".cargo" / "bin"
    # The installer comes from the standard output of curl.
    installer = """echo "rustup $*" >>"$LOG"
for name in cargo rustc; do
  mkdir -p "$HOME/.cargo/bin"
  printf '#!/bin/sh\\necho 1.90\\n' >"$HOME/.cargo/bin/$name"
  chmod +x "$HOME/.cargo/bin/$name"
done"""
    mac.command("curl", f"cat <<'END'\n{installer}\nEND")
    check_refused(mac, mac.run(answers="n\n"), "rustup.rs")
    assert mac.calls("curl") == []
    assert ".rustup" in mac.starts(answers="y\n")
    assert mac.calls("rustup") == ["rustup -y --no-modify-path --profile minimal"]
    assert mac.calls("curl") == ["curl [--proto] [=https] [--tlsv1.2] [-sSf] [https://sh.rustup.rs]"]
    assert sorted(path.name for path in cargo.iterdir()) == ["cargo", "rustc"]
    assert mac.started() == "[--or-demo]"


def test_no_rust_and_no_network(mac: Machine) -> None:
    mac.python()
    mac.command("curl", "echo 'curl: (6) no such host' >&2; exit 6")
    check_refused(mac, mac.run(answers="y\n"), "could not be downloaded")


@pytest.mark.parametrize("place", ["dist", ".", ".."])
@pytest.mark.parametrize("tools", [True, False])
def test_wheels_need_no_rust(mac: Machine, place: str, tools: bool) -> None:
    if not tools:
        no_tools(mac)
    mac.python()
    folder = mac.folder / place
    folder.mkdir(exist_ok=True)
    names = ["msh_mimi-0.1.0-cp310-abi3-macosx_14_0_arm64.whl", "msh_mlx-0.1.0-py3-none-any.whl"]
    for name in (*names, "msh_mimi-0.1.0-cp310-abi3-manylinux_2_34_aarch64.whl"):
        (folder / name).write_text(name)
    assert "[y/n]" not in mac.starts()
    (install,) = [call for call in mac.calls("python") if "[pip]" in call]
    assert install.endswith(f"[--constraint] [requirements.txt] [{place}/{names[0]}] [{place}/{names[1]}]")
    assert mac.calls("setup.sh", "curl") == []
    assert mac.started() == "[--or-demo]"
    # Again: nothing to do. With another wheel: anew.
    mac.log.unlink()
    assert "first start" not in mac.run().stdout
    assert not [call for call in mac.calls("python") if "[pip]" in call]
    (folder / names[0]).write_text("newer")
    mac.log.unlink()
    assert mac.run().returncode == 0
    assert [call for call in mac.calls("python") if "[pip]" in call]


def test_wheels_for_another_machine(mac: Machine) -> None:
    mac.python()
    (mac.folder / "dist").mkdir()
    for name in ("msh_mimi-0.1.0-cp310-abi3-manylinux_2_34_aarch64.whl", "msh_mlx-0.1.0-py3-none-any.whl"):
        (mac.folder / "dist" / name).write_text(name)
    check_refused(mac, mac.run(), "rustup.rs")


# ---- the model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--demo", "--plain"],
        ["--model", "my model", "--mimi=codec"],
        ["--help"],
        ["--record", "a folder", ""],
    ],
)
def test_the_program_chooses_the_model(mac: Machine, args: list[str]) -> None:
    assert mac.ready().starts(*args) == ""
    assert mac.started() == " ".join(f"[{arg}]" for arg in ["--or-demo", *args])


def test_commands(mac: Machine) -> None:
    assert mac.ready().run("models", "get", "moshiko-q8").returncode == 0
    assert mac.started() == "[models] [get] [moshiko-q8]"


# ---- how it ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_the_exit_code_is_the_programs(mac: Machine, code: int) -> None:
    (mac.ready().fake / "exit").write_text(str(code))
    assert mac.run().returncode == code


def in_terminal(mac: Machine, answers: bytes, **env: str) -> tuple[int, str]:
    """Run it in a terminal, as Finder does, and answer as soon as it asks."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/bin/sh", ["sh", str(mac.folder / "Moshi.command")], {**mac.environment(), **env})
    seen = b""
    try:
        while chunk := os.read(terminal, 4096):
            seen += chunk
            if seen.endswith((b"to close. ", b"[y/n] ")):
                assert answers, seen
                os.write(terminal, answers[:2])
                answers = answers[2:]
    except OSError:  # how Linux says that the terminal is closed
        pass
    finally:
        os.close(terminal)
    assert answers == b""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


@pytest.mark.parametrize("code", [1, 2, 139])
def test_an_error_stays_on_the_screen(mac: Machine, code: int) -> None:
    (mac.ready().fake / "exit").write_text(str(code))
    status, seen = in_terminal(mac, b"\n")
    assert status == code
    assert "Press return to close." in seen


@pytest.mark.parametrize("code", [0, 129, 130, 143])
def test_a_good_end_does_not(mac: Machine, code: int) -> None:
    (mac.ready().fake / "exit").write_text(str(code))
    status, seen = in_terminal(mac, b"")
    assert status == code
    assert "Press return" not in seen


def test_ctrl_c_is_left_to_the_program(mac: Machine) -> None:
    code = """import os, signal, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(0.3), os.write(1, b"released"), os._exit(130)))
os.write(1, b"Ctrl-C to close. ")
time.sleep(20)"""
    (mac.fake / "program.py").write_text(code)
    mac.ready().script(mac.fake / "program", f'#!/bin/sh\nexec {sys.executable} "$FAKE/program.py"\n')
    status, seen = in_terminal(mac, b"\x03")
    assert status == 130
    assert "released" in seen
    assert "Press return" not in seen


def test_a_refusal_stays_on_the_screen(mac: Machine) -> None:
    mac.command("sw_vers", "echo 13.1")
    status, seen = in_terminal(mac, b"\n")
    assert status == 1
    assert seen.index("macOS 14") < seen.index("Press return")


def test_make_is_not_kept(mac: Machine) -> None:
    (mac.ready().fake / "exit").write_text("1")
    status, seen = in_terminal(mac, b"", MAKELEVEL="1")
    assert status == 1
    assert "Press return" not in seen


def test_questions_in_a_terminal(mac: Machine) -> None:
    no_tools(mac)
    mac.equipped()
    status, seen = in_terminal(mac, b"n\n\n")
    assert status == 1
    assert seen.index("[y/n]") < seen.index("xcode-select --install") < seen.index("Press return")


def test_this_python_fits(tmp_path: Path) -> None:
    """The real check of an interpreter, not a scripted one."""
    linux = Machine(tmp_path, "Linux")
    linux.rust()
    assert linux.run(PYTHON=sys.executable).returncode == 0
    assert f"PYTHON={sys.executable}" in linux.log.read_text().splitlines()
