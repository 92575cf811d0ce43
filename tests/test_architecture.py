"""The shape of docs/ARCHITECTURE.md, held by reading the code: floors, threads, the disk door, lazy OpenCV."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "agent"

FLOORS: dict[str, int] = {
    room: floor
    for floor, rooms in enumerate(
        (
            "agent model status errors shortage clock ulid camera_settings settings camera",
            "ladder board handoffs disk mp4 annexb masks zones thumbnail messages topics birth sdnotify"
            " strict_json mailboxes requests signatures admission audit ledger_file dial backoff gaps release"
            " arming changes provisioning site_ca echo schema records discovery access certificates tls",
            "motion events still strip annotate recorder ledger ledger_reader outbox ring retime recovery"
            " verification"
            " errands answers posting jobs archive live pictures mail uploads configuration desired operators"
            " connection media lane delivery lasts suspicion reconnect twins notices keeper announcer trial"
            " commissioning verbs packages updates rollout view viewing",
            "vision storage link commands health cameras",
            "node cli __main__",
        )
    )
    for room in rooms.split()
}
# cameras.picamera2: opening and closing libcamera is given up after a while, since it can hang in C.
THREAD_ROOMS = {"node", "cameras.paced", "cameras.picamera2"}
# cameras.picamera2: what a callback raises would kill picamera2's event loop and hang its stop().
CATCH_ALL_ROOMS = {"node", "cameras.picamera2"}
# The CLI writes what a person asked for to where the person said; the node's own keeping goes through disk.
WRITING_ROOMS = {"disk", "ledger"}


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(AGENT.rglob("*.py")):
        name = ".".join(path.relative_to(AGENT).with_suffix("").parts).removesuffix(".__init__")
        found.append(("agent" if name == "__init__" else name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


MODULES = modules()
NAMES = [name for name, _ in MODULES]


def imports_of(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node
            if node.module == "agent" or node.module.startswith("agent."):
                yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=NAMES)
def test_imports_point_down_the_floors(name: str, tree: ast.Module) -> None:
    assert room(name) in FLOORS, f"give {name} a floor here and in docs/ARCHITECTURE.md"
    for imported, node in imports_of(tree):
        if not imported.startswith("agent."):
            continue
        target = room(imported.removeprefix("agent."))
        if target not in FLOORS:  # a name of the package itself, such as agent.__version__
            continue
        assert FLOORS[target] <= FLOORS[room(name)], f"{name} line {node.lineno} imports upwards: {imported}"


def test_rooms_do_not_lean_on_each_other_in_a_circle() -> None:
    leans_on = {
        name: {
            imported.removeprefix("agent.")
            for imported, _ in imports_of(tree)
            if imported.startswith("agent.") and imported.removeprefix("agent.") in NAMES
        }
        - {name}
        for name, tree in MODULES
    }
    list(TopologicalSorter(leans_on).static_order())  # raises CycleError naming the circle


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=NAMES)
def test_each_room_opens_with_its_sentence(name: str, tree: ast.Module) -> None:
    docstring = ast.get_docstring(tree)
    assert docstring, f"{name} has no docstring"
    assert docstring.split("\n\n")[0].rstrip().endswith((".", ":")), f"{name}: the first line is not a sentence"


def test_threads_are_born_in_few_rooms_only() -> None:
    born = {
        name
        for name, tree in MODULES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in {"Thread", "Timer", "ThreadPoolExecutor", "loop_start"}
    }
    assert born <= THREAD_ROOMS


def test_only_the_disk_door_writes_what_the_node_keeps() -> None:
    offenders = []
    for name, tree in MODULES:
        if name in WRITING_ROOMS or room(name) in {"cli", "__main__"}:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                opens_to_write = call == "open" and any(
                    isinstance(arg, ast.Constant) and str(arg.value)[:1] in "wax" for arg in node.args[1:2]
                )
                touches = call in {"os.rename", "os.replace", "os.unlink", "os.remove", "os.fsync", "shutil.rmtree"}
                if opens_to_write or touches or call.endswith((".write_text", ".write_bytes", ".unlink")):
                    offenders.append(f"{name}:{node.lineno} {call}")
    assert not offenders


def test_opencv_and_picamera2_are_imported_lazily() -> None:
    for name, tree in MODULES:
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"cv2", "picamera2", "libcamera"} & set(names), f"{name} imports {names} at its top"


def test_sleeping_and_swallowing_are_not_how_this_code_works() -> None:
    broad = []
    for name, tree in MODULES:
        for node in ast.walk(tree):
            # A command in a terminal may wait for a broker; the node never does.
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep" and room(name) != "cli":
                raise AssertionError(f"{name}:{node.lineno} sleeps")
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            ):
                broad.append(name)
    assert broad.count("node") == 1, "a bug of a stage is caught in one place"
    assert set(broad) == CATCH_ALL_ROOMS


def test_rooms_stay_small() -> None:
    long = {path.name: n for path in AGENT.rglob("*.py") if (n := len(path.read_text().splitlines())) > 500}
    assert not long, f"is it still one sentence? {long}"
