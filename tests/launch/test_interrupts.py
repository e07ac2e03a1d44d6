"""A command that is told to end ends, wherever the signal meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAD = """
import os, signal, sys, time, weakref
from etude.data.errors import DataError
from etude.launch.cli import STOPS, interrupt_on, run

# A shell that starts the tests in the background has it ignored, which commands respect.
signal.signal(signal.SIGINT, signal.default_int_handler)

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

def work():
    time.sleep(30)  # as long as anything of a command may take
    print("went on to its end")
"""


def command(body: str, *, asks: str = "*STOPS") -> subprocess.CompletedProcess[str]:
    script = f"{HEAD}\ndef main():\n    interrupt_on({asks})\n"
    script += "".join(f"    {line}\n" for line in body.strip().splitlines())
    script += "\nrun(main)\n"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def is_interrupted(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 75 and done.stderr.endswith(
        "error: interrupted; run the same command again to continue.\n"
    )


LOSING = {
    "a finaliser": """
class Loses:
    def __del__(self):
        stop()
Loses()
""",
    "a weakref's callback": """
class Dies:
    pass
dies = Dies()
reference = weakref.ref(dies, lambda gone: stop())
del dies
""",
    "Ctrl-C in a finaliser": """
class Loses:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
Loses()
""",
    "a finaliser, three times": """
class Loses:
    def __del__(self):
        stop()
for _ in range(3):
    Loses()
    time.sleep(0.01)
""",
    "a finaliser in which it is raised again": """
class Loses:
    def __del__(self):
        stop()
    def __init__(self):
        self.slow = Slow()
class Slow:
    def __del__(self):
        end = time.monotonic() + 0.35
        while time.monotonic() < end:
            time.sleep(0.01)
Loses()
""",
    "a library that goes on whatever is raised": """
try:
    stop()
except BaseException:
    pass
""",
}


@pytest.mark.parametrize("losing", LOSING.values(), ids=LOSING)
def test_what_is_lost_on_the_way_ends_the_command_all_the_same(losing: str) -> None:
    done = command(f"{losing.strip()}\nwork()")
    assert is_interrupted(done) and done.stdout == "", done


@pytest.mark.parametrize("losing", LOSING.values(), ids=LOSING)
def test_what_is_lost_at_the_last_moment_is_not_a_good_end(losing: str) -> None:
    assert is_interrupted(command(losing))


def test_an_error_that_comes_of_a_lost_interrupt_is_not_told_as_one() -> None:
    lines = LOSING["a finaliser"].strip()
    done = command(f'{lines}\nraise DataError("the file is cut")')
    assert is_interrupted(done) and "the file is cut" not in done.stderr


def test_ctrl_c_is_not_lost_in_a_command_that_asks_for_no_signals() -> None:
    lines = LOSING["Ctrl-C in a finaliser"].strip()
    done = command(f"{lines}\nwork()", asks="")
    assert is_interrupted(done), done


def test_cleaning_up_is_not_interrupted_by_the_same_request() -> None:
    done = command(
        """
try:
    stop()
    work()
finally:
    for _ in range(50):
        time.sleep(0.01)
    print("tidy")
"""
    )
    assert is_interrupted(done) and done.stdout == "tidy\n", done


def test_who_takes_over_a_signal_is_told_of_the_one_that_was_lost_once() -> None:
    lines = LOSING["a finaliser"].strip()
    done = command(
        f"""
{lines}
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
while not told:
    time.sleep(0.01)
time.sleep(0.5)
print(told == [signal.SIGTERM])
"""
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done


def test_a_process_that_an_interrupted_one_starts_knows_nothing_of_it() -> None:
    done = command(
        """
try:
    stop()
finally:
    import multiprocessing, subprocess
    for method in ("fork", "spawn"):
        child = multiprocessing.get_context(method).Process(target=time.sleep, args=(0.4,))
        child.start()
        child.join()
        print(child.exitcode)
    print(subprocess.run([sys.executable, "-c", "import time; time.sleep(0.4)"]).returncode)
"""
    )
    assert is_interrupted(done) and done.stdout == "0\n0\n0\n", done
