"""Write the page of all settings from the classes that read them, or check that it is current.

python scripts/settings.py            writes docs/settings.md and serinette/setting_names.txt
python scripts/settings.py --check    compares with it
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from api.settings import GatewaySettings
from controller.settings import ControllerSettings
from gpu_worker.settings import WorkerSettings
from serinette.settings import SharedSettings, variable

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
NAMES = Path(__file__).parent.parent / "serinette" / "setting_names.txt"
# Read by the command line, by containers of jobs, and by our own tests.
OTHER_NAMES = ("SERINETTE_URL", "SERINETTE_API_KEY", "SERINETTE_DATA_DIR", "SERINETTE_STEP", "SERINETTE_STEP_ROOT")

# Where each variable is read, and what it is there for.
SECTIONS: tuple[tuple[str, type[SharedSettings]], ...] = (
    ("Every process", SharedSettings),
    ("Gateway (`python -m api`)", GatewaySettings),
    ("Controller (`python -m controller`)", ControllerSettings),
    ("Worker (`python -m gpu_worker`)", WorkerSettings),
)

INTRODUCTION = """# Settings

Each process reads its settings from the environment once, at start; a wrong one ends it with an error that names it.
`serinette up` passes its own environment on to everything it starts, so all of these work there too. A list has
commas between its entries, or is JSON (`SERINETTE_CORS_ORIGINS=https://studio.example,https://app.example`).

Credentials of the object store are read from the usual variables of its kind (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, ...) or from the
pod's workload identity.

This page is made by `make settings` from the classes that read them.
"""


def main() -> int:
    """0 when all is well."""
    if "--check" not in sys.argv:
        PAGE.write_text(page())
        NAMES.write_text(names())
        return 0
    for path, current in ((PAGE, page()), (NAMES, names())):
        if not path.exists() or path.read_text() != current:
            print(f"{path.name} is not what the processes read: run `make settings` and commit it", file=sys.stderr)
            return 1
    return 0


def names() -> str:
    """All variables that some process reads, a line each."""
    read = {variable(name, field) for _, settings in SECTIONS for name, field in settings.model_fields.items()}
    return "".join(f"{name}\n" for name in sorted(read | set(OTHER_NAMES)) if name.startswith("SERINETTE_"))


def page() -> str:
    """All settings, as Markdown."""
    return INTRODUCTION + "".join(_section(title, settings) for title, settings in SECTIONS)


def _section(title: str, settings: type[SharedSettings]) -> str:
    inherited = SharedSettings.model_fields if settings is not SharedSettings else {}
    rows = [_row(name, field) for name, field in settings.model_fields.items() if name not in inherited]
    return "\n".join(["", f"## {title}", "", "| variable | default | meaning |", "|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{variable(name, field)}` | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.default_factory is not None:
        return "see there"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != () else "empty"


if __name__ == "__main__":
    sys.exit(main())
