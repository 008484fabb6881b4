"""Draw which folder of the package imports which: python tools/architecture.py [ROOT] > architecture.svg.

The drawing and the table come from the import statements, so they cannot drift from the code.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "fsvit_edge"
BOX_WH = (132, 46)
GAP_WH = (28, 46)
MARGIN = 40


@dataclass(frozen=True)
class Room:
    """A folder of the package."""

    name: str
    purpose: str  # first sentence of its `__init__.py`
    files: int  # Python files, subfolders included
    lines: int  # of all of them
    imports: frozenset[str]  # other rooms


def rooms(root: Path) -> dict[str, Room]:
    """Read every folder of the package in a checkout."""
    folders = sorted(path.parent for path in (root / PACKAGE).glob("*/__init__.py"))
    names = {folder.name for folder in folders}
    found = {}
    for folder in folders:
        sources = {path: path.read_text() for path in folder.rglob("*.py")}
        imported = {name for text in sources.values() for name in _imported_rooms(text)}
        purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        lines = sum(len(text.splitlines()) for text in sources.values())
        others = frozenset(imported & names - {folder.name})
        found[folder.name] = Room(folder.name, purpose.partition("\n")[0], len(sources), lines, others)
    return found


def _imported_rooms(text: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if part[0] == PACKAGE and len(part) > 1}


def layers(found: dict[str, Room]) -> list[list[str]]:
    """Sort rooms so that each imports only from layers before its own.

    Raises:
        ValueError: Rooms import each other in a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(found):
        ready = [name for name, room in found.items() if name not in level and room.imports <= level.keys()]
        if not ready:
            raise ValueError(f"These folders import each other in a circle: {sorted(found.keys() - level.keys())}")
        level |= {name: max((level[other] + 1 for other in found[name].imports), default=0) for name in ready}
    return [[name for name in found if level[name] == depth] for depth in range(max(level.values()) + 1)]


def direct_imports(found: dict[str, Room]) -> set[tuple[str, str]]:
    """Pairs (importer, imported), without those that follow from the others, which would only fill the drawing."""

    def reach(name: str) -> set[str]:
        return {name}.union(*(reach(other) for other in found[name].imports))

    return {
        (name, other)
        for name, room in found.items()
        for other in room.imports
        if not any(other in reach(between) for between in room.imports - {other})
    }


def svg(found: dict[str, Room]) -> str:
    """Draw the rooms, those that import nothing at the bottom, as SVG text in the page's own text color."""
    ordered = layers(found)[::-1]
    width = max(len(row) for row in ordered) * (BOX_WH[0] + GAP_WH[0]) - GAP_WH[0] + 2 * MARGIN
    height = len(ordered) * (BOX_WH[1] + GAP_WH[1]) - GAP_WH[1] + 2 * MARGIN
    corner = {}
    for depth, row in enumerate(ordered):
        left = (width - len(row) * (BOX_WH[0] + GAP_WH[0]) + GAP_WH[0]) / 2
        for column, name in enumerate(row):
            corner[name] = (left + column * (BOX_WH[0] + GAP_WH[0]), MARGIN + depth * (BOX_WH[1] + GAP_WH[1]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Folders of the package and their imports" font-family="sans-serif" fill="currentColor" '
        f'style="max-width: {width}px; width: 100%">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for importer, imported in sorted(direct_imports(found)):
        (x1, y1), (x2, y2) = corner[importer], corner[imported]
        if y2 - y1 > BOX_WH[1] + GAP_WH[1]:  # around the rooms between, on their left
            y1, y2 = y1 + BOX_WH[1] / 2, y2 + BOX_WH[1] / 2
            line = f"M{x1:g} {y1:g}C0 {y1:g} 0 {y2:g} {x2:g} {y2:g}"
        else:
            line = f"M{x1 + BOX_WH[0] / 2:g} {y1 + BOX_WH[1]:g}L{x2 + BOX_WH[0] / 2:g} {y2:g}"
        parts.append(
            f'<path d="{line}" fill="none" stroke="currentColor" stroke-opacity="0.5" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in corner.items():
        middle = x + BOX_WH[0] / 2
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{BOX_WH[0]}" height="{BOX_WH[1]}" rx="6" fill="#7986cb" '
            'fill-opacity="0.25" stroke="currentColor"/>'
            f'<text x="{middle:g}" y="{y + 20:g}" text-anchor="middle" font-size="14" font-weight="bold">{name}</text>'
            f'<text x="{middle:g}" y="{y + 37:g}" text-anchor="middle" font-size="11">'
            f"{found[name].lines:,} lines, {found[name].files} files</text>"
        )
    return "".join([*parts, "</svg>"])


def table(found: dict[str, Room]) -> str:
    """List the rooms in Markdown, those that import nothing first."""
    rows = [
        f"| `{name}` | {found[name].purpose} | {found[name].files} | {found[name].lines:,} | "
        f"{', '.join(f'`{other}`' for other in sorted(found[name].imports)) or '-'} |"
        for row in layers(found)
        for name in row
    ]
    return "\n".join(["| folder | purpose | files | lines | imports |", "|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    print(svg(rooms(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent)))
