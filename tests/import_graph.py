"""The package's import graph: modules, cycles and depth, read from the source without running it.

python tests/import_graph.py [--package galip_hf]

Counted is every import of one module of the package by another: at the top of a file, inside functions, for
type checking only, and `importlib.import_module` with a constant name. What an `__init__.py` imports lazily
from a table of names is not: it is what users import, not how the modules depend on each other.
"""

import argparse
import ast
import graphlib
from pathlib import Path

Graph = dict[str, set[str]]


def module_names(package: Path) -> dict[str, Path]:
    """Dotted name inside the package -> file; a folder's `__init__.py` has the folder's name."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _imported(node: ast.AST, module: str, is_folder: bool, package: str, known: set[str]) -> set[str]:
    """Modules of the package that one syntax node imports."""
    candidates: list[str] = []
    if isinstance(node, ast.ImportFrom):
        if node.level:
            parents = module.split(".") if module else []
            kept = len(parents) - node.level + (1 if is_folder else 0)
            base = ".".join([*parents[:kept], *([node.module] if node.module else [])])
        elif node.module and (node.module + ".").startswith(package + "."):
            base = node.module[len(package) + 1 :]
        else:
            return set()
        for alias in node.names:
            inner = f"{base}.{alias.name}" if base else alias.name
            candidates.append(inner if inner in known else base)
    elif isinstance(node, ast.Import):
        candidates += [
            alias.name[len(package) + 1 :] for alias in node.names if alias.name.startswith(package + ".")
        ]
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name, value = getattr(node.func, "attr", ""), node.args[0].value
        if name == "import_module" and isinstance(value, str) and value.startswith(package + "."):
            candidates.append(value[len(package) + 1 :])
    return {name for name in candidates if name in known and name != module}


def import_graph(package: Path) -> Graph:
    """Each module -> the modules of the package that it imports, whenever and for whatever purpose."""
    names = module_names(package)
    graph: Graph = {}
    for module, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = (
            _imported(node, module, path.name == "__init__.py", package.name, set(names))
            for node in ast.walk(tree)
        )
        graph[module] = set().union(*found)
    return graph


def without(graph: Graph, arrows: set[tuple[str, str]]) -> Graph:
    """The graph without some arrows."""
    return {name: {to for to in targets if (name, to) not in arrows} for name, targets in graph.items()}


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def loops(graph: Graph) -> list[list[str]]:
    """Groups of modules that each reach all others of the group."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {
        tuple(sorted({name} | {other for other in reach[name] if name in reach[other]}))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def depth(graph: Graph) -> int:
    """Modules on the longest chain of imports; GraphlibError for a graph with a loop."""
    lengths: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        lengths[name] = 1 + max((lengths[to] for to in graph[name]), default=0)
    return max(lengths.values())


def arrows_out_of(graph: Graph, folder: str) -> list[tuple[str, str]]:
    """Imports of modules outside a folder by modules inside it."""
    inside = f"{folder}."
    return sorted(
        (name, to)
        for name, targets in graph.items()
        if name.startswith(inside)
        for to in targets
        if not to.startswith(inside) and to != folder
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--package", type=Path, default=Path("galip_hf"))
    package = parser.parse_args().package
    graph = import_graph(package)
    folders: dict[str, int] = {}
    for name in graph:
        path = module_names(package)[name]
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(package))
            folders[folder] = folders.get(folder, 0) + 1
    print(f"modules: {sum(folders.values())}; arrows: {sum(map(len, graph.values()))}")
    print("by folder: " + ", ".join(f"{name} {count}" for name, count in sorted(folders.items())))
    found = loops(graph)
    for group in found:
        print(f"loop of {len(group)}: {', '.join(group)}")
    print(f"loops: {len(found)}" + ("" if found else f"; longest chain: {depth(graph)} modules"))
    for name, target in arrows_out_of(graph, "model"):
        print(f"model imports from outside itself: {name} -> {target}")


if __name__ == "__main__":
    main()
